"""A small convolutional network for small images, used by most recipes."""

from torch import nn

from ..argument_types import Fraction, PositiveInt
from .max_pool import MaxPool2x2


def cnn(
    channels: list[PositiveInt] | tuple[PositiveInt, ...] = (32, 64, 128),
    convs_per_stage: PositiveInt = 1,
    dropout: Fraction = 0.0,
    batch_norm: bool = True,
    hidden: PositiveInt | None = None,
    *,
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
) -> nn.Sequential:
    """Stages of 3x3 convolutions with batch normalization and ReLU, 2x2 pooling between them, then a global maximum.

    Args:
        channels: the width of each stage.
        convs_per_stage: convolutions in each.
        dropout: the fraction of the last features that is dropped in training.
        batch_norm: normalize after each convolution; else the convolutions have biases.
        hidden: the width of a fully connected layer on all features of the last stage, which is then halved too, in
            place of the global maximum; null for none.
        in_channels: C.
        image_size: (H, W) in pixels.
        num_classes: K.
    Returns: images [B, C, H, W] -> logits [B, K].
    Raises: ValueError if the images are too small for the number of stages.

    The first convolution of all is 5x5 where the images allow (at least 16x16).
    """
    halvings = len(channels) - (hidden is None)
    if min(image_size) < 2**halvings:
        raise ValueError(
            f"{len(channels)} stages need images of at least {2**halvings}x{2**halvings}, "
            f"got {image_size[0]}x{image_size[1]}"
        )
    layers: list[nn.Module] = []
    inputs = in_channels
    for stage, outputs in enumerate(channels):
        for conv in range(convs_per_stage):
            kernel = 5 if not layers and min(image_size) >= 16 else 3
            layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not batch_norm))
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            halved = stage < halvings and conv == convs_per_stage - 1
            layers.append(MaxPool2x2(relu=True) if halved else nn.ReLU())
            inputs = outputs
    if hidden is None:
        layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    else:
        inputs *= (image_size[0] >> halvings) * (image_size[1] >> halvings)
        layers += [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()]
        inputs = hidden
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))
