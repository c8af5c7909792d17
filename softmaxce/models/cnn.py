"""A small convolutional network for small images: the workhorse of the recipes."""

from torch import nn

from ..kinds import Fraction, PositiveInt


def cnn(
    channels: list[PositiveInt] | tuple[PositiveInt, ...] = (32, 64, 128),
    convs_per_stage: PositiveInt = 1,
    dropout: Fraction = 0.0,
    *,
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
) -> nn.Sequential:
    """Stages of 3x3 convolutions with batch normalisation and ReLU, halved between, then a global maximum.

    Args:
        channels: the width of each stage.
        convs_per_stage: convolutions in each.
        dropout: the share of the last features that is dropped in training.
        in_channels: C.
        image_size: (H, W) in pixels.
        num_classes: K.
    Returns: images [B, C, H, W] -> logits [B, K].
    Raises: ValueError if the images are too small to be halved between the stages.

    The first convolution of all is 5x5 where the images allow (at least 16x16).
    """
    smallest = 2 ** (len(channels) - 1)
    if min(image_size) < smallest:
        raise ValueError(f"{len(channels)} stages need images of at least {smallest}x{smallest}, got {image_size}")
    layers: list[nn.Module] = []
    inputs = in_channels
    for stage, outputs in enumerate(channels):
        for _ in range(convs_per_stage):
            kernel = 5 if not layers and min(image_size) >= 16 else 3
            layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        if stage < len(channels) - 1:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))
