"""Images of any number of channels and depth as people are shown them."""

import torch
from torch import Tensor


def as_picture(image: Tensor) -> Tensor:
    """An image [C, H, W] of any depth as one that can be drawn, [1 or 3, H, W] uint8.

    Of three channels or more the first three are red, green and blue; of two, the first is drawn in gray. Of 16 bits,
    the upper 8; floating-point pixels from their smallest to their largest.
    """
    channels = image[:3] if len(image) >= 3 else image[:1]
    if image.dtype is torch.uint8:
        return channels
    values = channels.double()
    if image.dtype is torch.uint16:
        return (values / 256).floor().to(torch.uint8)
    low, high = values.aminmax()
    return (255 * (values - low) / (high - low).clamp_min(1e-300)).round().to(torch.uint8)
