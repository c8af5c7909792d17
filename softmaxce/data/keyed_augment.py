"""Augmentations whose random numbers depend on the run's seed, the epoch and the image alone.

So an image is augmented in the same way whichever process, thread or batch it is in, and after resuming. A method
`from_whole(image, (H, W), generator)` cuts a view of that size from a whole image (PIL, of mode L or RGB; with other
channels or depths an array [H, W, C]), where it is decoded; a call with images [B, C, H, W] and `keys`, a seed for
each, is one of a batch as in augment.py.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..argument_types import (
    AugMixSeverity,
    Interpolation,
    PositiveFloat,
    PositiveInt,
    Probability,
    TwoFactors,
    TwoFractions,
)
from ..runtime.random_state import own_random_numbers
from .arrays import Pixels, height_and_width, resized
from .augment import one_by_one
from .resizing import Resizing

Whole = TypeVar("Whole", Image.Image, Pixels)
ATTEMPTS = 10  # draws of a rectangle that fits, as in torchvision


class RandomResizedCrop:
    """A part of the whole image, of random area and proportions, resized to data.size (Szegedy et al. 2015).

    Args:
        scale: the smallest and largest area, as fractions of the image's.
        ratio: the smallest and largest ratio of width to height.
        interpolation: bilinear or bicubic, both antialiased, or nearest.
    Raises: ValueError if scale or ratio are not two numbers in order.
    """

    def __init__(
        self,
        scale: TwoFractions = (0.08, 1.0),
        ratio: TwoFactors = (0.75, 1.3333333333333333),
        interpolation: Interpolation = "bilinear",
    ) -> None:
        _check_order(scale, ratio)
        self.scale = scale
        self.log_ratio = torch.log(torch.tensor(ratio)).tolist()
        self.ratio = ratio
        self.resizing = Resizing("stretch", interpolation)

    def from_whole(self, image: Whole, size: tuple[int, int], generator: torch.Generator) -> Whole:
        """A view of `size` (H, W), of an array each channel by itself; the draws are torchvision's, in its order."""
        height, width = height_and_width(image)
        left, top, width, height = self._rectangle(width, height, generator)
        if isinstance(image, Image.Image):
            return self.resizing(image.crop((left, top, left + width, top + height)), size)
        return np.moveaxis(resized(image[top : top + height, left : left + width], size, self.resizing), 0, 2)

    def _rectangle(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Left, top, width and height in an image of this size."""
        for _ in range(ATTEMPTS):
            area, ratio = _area_and_ratio(width * height, self.scale, self.log_ratio, generator)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = _randint(height - h + 1, generator), _randint(width - w + 1, generator)
                return left, top, w, h
        w, h = width, height  # as much of the center as the limits of the ratio allow
        if width / height < self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        return (width - w) // 2, (height - h) // 2, w, h


class RandomErasing:
    """Blank a random rectangle of some images (Zhong et al. 2020). The arguments have torchvision's names.

    Args:
        p: the probability that an image loses one.
        scale: the smallest and largest area, as fractions of the image's.
        ratio: the smallest and largest ratio of height to width.
        fill: mean, the image's own mean per channel; black; or noise, uniform in each pixel.
    Raises: ValueError if scale or ratio are not two numbers in order.
    """

    def __init__(
        self,
        p: Probability = 0.5,
        scale: TwoFractions = (0.02, 0.33),
        ratio: TwoFactors = (0.3, 3.3),
        fill: Literal["mean", "black", "noise"] = "mean",
    ) -> None:
        _check_order(scale, ratio)
        self.p = p
        self.scale = scale
        self.log_ratio = torch.log(torch.tensor(ratio)).tolist()
        self.fill = fill

    def __call__(self, images: Tensor, keys: Sequence[int] | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        _, _, height, width = images.shape
        device = images.device
        generators = [torch.Generator().manual_seed(key) for key in _keys(images, keys)]
        rectangles = [self._rectangle(height, width, generator) for generator in generators]
        top, left, high, wide = torch.tensor(rectangles, device=device).unsqueeze(2).unbind(1)  # [B, 1] each
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        inside_rows, inside_columns = (rows >= top) & (rows < top + high), (columns >= left) & (columns < left + wide)
        hole = (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)  # [B, 1, H, W]
        if self.fill == "mean":
            value = images.mean((2, 3), keepdim=True)
        elif self.fill == "black":
            value = torch.zeros((), dtype=images.dtype, device=device)
        else:
            noise = [torch.rand(images.shape[1:], generator=generator) for generator in generators]
            value = torch.stack(noise).to(device, images.dtype)
        return torch.where(hole, value, images)

    def _rectangle(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width; of no height if nothing is erased."""
        if torch.rand(1, generator=generator).item() >= self.p:
            return 0, 0, 0, 0
        for _ in range(ATTEMPTS):
            area, ratio = _area_and_ratio(width * height, self.scale, self.log_ratio, generator)
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                return _randint(height - h + 1, generator), _randint(width - w + 1, generator), h, w
        return 0, 0, 0, 0


class AutoAugment:
    """AutoAugment (Cubuk et al. 2019), torchvision's, image by image.

    Args:
        policy: the data set that it was learned on: imagenet, cifar10 or svhn.
    """

    def __init__(self, policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet") -> None:
        from torchvision.transforms import AutoAugmentPolicy, v2

        self.transform = v2.AutoAugment(AutoAugmentPolicy(policy))

    def __call__(self, images: Tensor, keys: Sequence[int] | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        return _keyed(self.transform, images, keys)


class AugMix:
    """AugMix (Hendrycks et al. 2020), torchvision's, image by image; without the consistency loss of the paper.

    Args:
        severity: the strength of the operations, 1 to 10.
        mixture_width: chains of operations that are mixed.
        chain_depth: operations in a chain; null draws 1 to 3 for each.
        alpha: the parameter of the Dirichlet and Beta distributions of the mixture's weights.
        all_ops: also use brightness, contrast, color and sharpness.
    """

    def __init__(
        self,
        severity: AugMixSeverity = 3,
        mixture_width: PositiveInt = 3,
        chain_depth: PositiveInt | None = None,
        alpha: PositiveFloat = 1.0,
        all_ops: bool = True,
    ) -> None:
        from torchvision.transforms import v2

        self.transform = v2.AugMix(severity, mixture_width, chain_depth or -1, alpha, all_ops)

    def __call__(self, images: Tensor, keys: Sequence[int] | None = None) -> Tensor:
        """Images [B, C, H, W] -> the same shape."""
        return _keyed(self.transform, images, keys)


def _keyed(transform: Any, images: Tensor, keys: Sequence[int] | None) -> Tensor:
    """A transform of torchvision's for each image, with random numbers of the image's own."""
    results = []
    for image, key in zip(images, _keys(images, keys), strict=True):
        with own_random_numbers((key,), images.device):  # AugMix also draws there, not on the CPU alone
            results.append(one_by_one(transform, image.unsqueeze(0)))
    return torch.cat(results)


def _keys(images: Tensor, keys: Sequence[int] | None) -> Sequence[int]:
    """The keys; outside a training run, from torch's global generator."""
    return torch.randint(2**62, (len(images),)).tolist() if keys is None else keys


def _check_order(scale: Sequence[float], ratio: Sequence[float]) -> None:
    for name, values in (("scale", scale), ("ratio", ratio)):
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise ValueError(f"{name} must be [smallest, largest], above 0, got {values}")


def _area_and_ratio(
    whole: int, scale: Sequence[float], log_ratio: Sequence[float], generator: torch.Generator
) -> tuple[float, float]:
    area = whole * torch.empty(1).uniform_(scale[0], scale[1], generator=generator).item()
    return area, torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1], generator=generator)).item()


def _randint(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (1,), generator=generator).item())
