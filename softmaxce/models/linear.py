"""Softmax regression: one linear layer on the pixels."""

from torch import nn


def linear(*, in_channels: int, image_size: tuple[int, int], num_classes: int) -> nn.Sequential:
    """One weighted sum of the pixels per class: softmax regression.

    Args:
        in_channels: C.
        image_size: (H, W) in pixels.
        num_classes: K.
    Returns: images [B, C, H, W] -> logits [B, K].
    """
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, num_classes))
