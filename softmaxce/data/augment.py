"""Augmentations of batches, on the batch's own device; each image draws its own random numbers.

An augmentation is called with images [B, C, H, W], float in [0, 1], before normalization, and returns the same shape.
One that has the parameters `indices` and `epoch` is also given, by name, which images of the split these are ([B]
int64) and the number of the epoch, counted from 1. Random numbers come from torch's global generator of the device, so
that a run's seed and a checkpoint's random state cover them. One whose `moves_pixels` is true gives pixels other
places, or 0, and is called with bytes where the images are bytes, channels last in memory or not.

Where several processes train together, one that has the parameter `share` is given which part of the batch it gets, and
draws for all of it (`share.per_image`): an image's augmentation then does not depend on the number of processes. Any
other draws from a generator of its process's own.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..argument_types import (
    HalfTurn,
    Magnitude,
    NonNegativeFloat,
    PositiveInt,
    Probability,
    TwoFactors,
    TwoFractions,
)
from .share import Share, per_image

LARGE = 1 << 13  # numbers of an image, from which mirroring one by one on the CPU takes less time than torch.where
HASH_MULTIPLIER = 0x1E3779B97F4A7C15  # odd, without a pattern in its bits: multiplying by it mixes all bits


class RandomCrop:
    """Pad on all sides, then crop to the old size at a random position: shifts of up to `padding` pixels.

    Args:
        padding: pixels on each side.
        padding_mode: how the border is filled: constant (black), reflect or replicate.
    """

    def __init__(
        self, padding: PositiveInt = 4, padding_mode: Literal["constant", "reflect", "replicate"] = "constant"
    ) -> None:
        self.padding = padding
        self.padding_mode = padding_mode

    @property
    def moves_pixels(self) -> bool:
        """With a black border; a GPU may not reflect or replicate bytes."""
        return self.padding_mode == "constant"

    def __call__(self, images: Tensor, share: Share | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        batch, _, height, width = images.shape
        padded = functional.pad(images, (self.padding,) * 4, mode=self.padding_mode)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2p+1, 2p+1, H, W], a view
        places = 2 * self.padding + 1
        top, left = per_image(lambda n: torch.randint(places, (2, n), device=images.device), images, share, 1)
        return windows[torch.arange(batch, device=images.device), :, top, left]


class RandomHorizontalFlip:
    """Mirror an image left to right.

    Args:
        p: the probability, in [0, 1].
        alternate: mirror an image in every second epoch, half of the images in the first, instead of at random, so that
            any two epochs show each both ways (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds"). p is then 0.5.
    Raises: ValueError if alternate is set with another p.
    """

    moves_pixels = True

    def __init__(self, p: Probability = 0.5, alternate: bool = False) -> None:
        if alternate and p != 0.5:
            raise ValueError(f"alternate mirrors each image in every second epoch: p must be 0.5, got {p}")
        self.p = p
        self.alternate = alternate

    def __call__(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None, share: Share | None = None
    ) -> Tensor:
        """Images [B, C, H, W] -> the same shape; `alternate` needs indices [B] and the epoch, and else is random."""
        flips = self.drawn(images, indices, epoch, share)
        if images.is_cpu and images.numel() >= LARGE * len(images):
            mirrored = images.clone()
            for index in flips.nonzero().flatten().tolist():
                mirrored[index] = images[index].flip(2)
            return mirrored
        return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)

    def drawn(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None, share: Share | None = None
    ) -> Tensor:
        """Which of the images are to be mirrored, [B] bool; the arguments are those of a call."""
        if self.alternate and indices is not None and epoch is not None:
            hashed = indices * HASH_MULTIPLIER  # modulo 2^64
            hashed = (hashed ^ (hashed >> 32)) * HASH_MULTIPLIER
            return ((hashed >> 40) + epoch) % 2 == 1
        return per_image(lambda n: torch.rand(n, device=images.device), images, share) < self.p


class RandomAffine:
    """Rotate, shift and scale; the border is black. The arguments have torchvision's names.

    Args:
        degrees: the largest rotation in either direction.
        translate: the largest shift in either direction, as fractions of width and height.
        scale: the smallest and the largest factor.
    Raises: ValueError if translate or scale are not two numbers each.
    """

    def __init__(
        self,
        degrees: NonNegativeFloat = 0.0,
        translate: TwoFractions = (0.0, 0.0),
        scale: TwoFactors = (1.0, 1.0),
    ) -> None:
        if len(translate) != 2:
            raise ValueError(f"translate must be two fractions [x, y], got {translate}")
        if len(scale) != 2 or scale[0] > scale[1]:
            raise ValueError(f"scale must be [smallest, largest], got {scale}")
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    def __call__(self, images: Tensor, share: Share | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        _, _, height, width = images.shape
        draw = per_image(lambda n: torch.rand(4, n, device=images.device), images, share, 1)
        angle = (2 * draw[0] - 1) * math.radians(self.degrees)
        shift_x = ((2 * draw[1] - 1) * self.translate[0] * width).round()  # whole pixels, as torchvision's
        shift_y = ((2 * draw[2] - 1) * self.translate[1] * height).round()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[3]
        return affine(images, angle, shift_x, shift_y, factor)


def affine(images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, factor: Tensor) -> Tensor:
    """Rotate about the centre (clockwise, radians), scale, then shift (pixels); bilinear; each argument is [B]."""
    _, _, height, width = images.shape
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    # grid_sample takes the inverse map, output -> input, in coordinates from -1 to 1
    x, y = -2 * shift_x / width, -2 * shift_y / height
    across, down = sin * height / width, sin * width / height
    first = torch.stack([cos, across, cos * x + across * y], 1)
    second = torch.stack([-down, cos, -down * x + cos * y], 1)
    theta = torch.stack([first, second], 1).to(images.dtype)  # [B, 2, 3]
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class Cutout:
    """Blank a square at a random position, cut off at the border (DeVries & Taylor 2017).

    Args:
        size: its side, in pixels.
    The square takes the image's own mean per channel, so that the image's mean changes little.
    """

    def __init__(self, size: PositiveInt = 8) -> None:
        self.size = size

    def __call__(self, images: Tensor, share: Share | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        _, _, height, width = images.shape
        device = images.device
        top = per_image(lambda n: torch.randint(height, (n, 1), device=device), images, share) - self.size // 2
        left = per_image(lambda n: torch.randint(width, (n, 1), device=device), images, share) - self.size // 2
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        inside_rows = (rows >= top) & (rows < top + self.size)  # [B, H]
        inside_columns = (columns >= left) & (columns < left + self.size)  # [B, W]
        hole = (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)  # [B, 1, H, W]
        return torch.where(hole, images.mean((2, 3), keepdim=True), images)


class ColorJitter:
    """Change brightness, contrast, saturation and hue, in this order, each by a random amount per image.

    Args:
        brightness: the factor is drawn from [max(0, 1 - b), 1 + b].
        contrast: likewise.
        saturation: likewise; gray images are left as they are.
        hue: the shift is drawn from [-h, h], as a fraction of the color circle; h is at most 0.5.
    """

    def __init__(
        self,
        brightness: NonNegativeFloat = 0.0,
        contrast: NonNegativeFloat = 0.0,
        saturation: NonNegativeFloat = 0.0,
        hue: HalfTurn = 0.0,
    ) -> None:
        if hue > 0.5:
            raise ValueError(f"hue must be in [0, 0.5], got {hue}")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def __call__(self, images: Tensor, share: Share | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        if self.brightness:
            images = (images * _factors(images, self.brightness, share)).clamp(0, 1)
        if self.contrast:
            images = _blend(images, _gray(images).mean((2, 3), keepdim=True), _factors(images, self.contrast, share))
        if self.saturation and images.shape[1] == 3:
            images = _blend(images, _gray(images), _factors(images, self.saturation, share))
        if self.hue and images.shape[1] == 3:
            from torchvision.transforms.v2.functional import adjust_hue

            turns = ((2 * per_image(torch.rand, images, share) - 1) * self.hue).tolist()
            images = torch.stack([adjust_hue(image, turn) for image, turn in zip(images, turns, strict=True)])
        return images


def _factors(images: Tensor, strength: float, share: Share | None) -> Tensor:
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + (high - low) * per_image(lambda n: torch.rand(n, 1, 1, 1, device=images.device), images, share)


def _gray(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W] by ITU-R BT.601, with the coefficients of torchvision and PIL."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _blend(images: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * towards).clamp(0, 1)


class RandAugment:
    """RandAugment (Cubuk et al. 2020), torchvision's, image by image.

    Args:
        num_ops: operations per image.
        magnitude: their strength, 0 to 30.
    Raises: ValueError if the magnitude is outside [0, 30].
    """

    def __init__(self, num_ops: PositiveInt = 2, magnitude: Magnitude = 9) -> None:
        if not 0 <= magnitude <= 30:
            raise ValueError(f"magnitude must be in [0, 30], got {magnitude}")
        from torchvision.transforms import v2

        self.transform = v2.RandAugment(num_ops=num_ops, magnitude=int(magnitude))

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        return one_by_one(self.transform, images)


class TrivialAugment:
    """TrivialAugment (Mueller & Hutter 2021), torchvision's TrivialAugmentWide, image by image."""

    def __init__(self) -> None:
        from torchvision.transforms import v2

        self.transform = v2.TrivialAugmentWide()

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        return one_by_one(self.transform, images)


def one_by_one(transform: Any, images: Tensor) -> Tensor:
    """One call per image, as torchvision draws once per call; on bytes, as in the papers."""
    if images.shape[1] not in (1, 3):  # some of the operations would fail, but not every batch draws them
        raise ValueError(f"torchvision's operations take images of 1 or 3 channels, got {images.shape[1]}")
    pixels = (images * 255).round().to(torch.uint8)
    return torch.stack([transform(image) for image in pixels]).float() / 255
