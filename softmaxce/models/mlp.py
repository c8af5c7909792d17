"""Fully connected layers on the flattened pixels."""

from torch import nn

from ..argument_types import Fraction, PositiveInt


def mlp(
    hidden: list[PositiveInt] | tuple[PositiveInt, ...] = (256, 128),
    dropout: Fraction = 0.0,
    *,
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
) -> nn.Sequential:
    """Fully connected layers with ReLU between them.

    Args:
        hidden: the widths of the hidden layers.
        dropout: the fraction of each hidden layer's outputs that is dropped in training.
        in_channels: C.
        image_size: (H, W) in pixels.
        num_classes: K.
    Returns: images [B, C, H, W] -> logits [B, K].
    """
    height, width = image_size
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_channels * height * width
    for outputs in hidden:
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))
