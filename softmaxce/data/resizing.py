"""How an image of any size is brought to a model's size. Needs no torch."""

import math
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image, ImageOps

from ..argument_types import ColorProfiles, Decoding, Depth, Fit, Interpolation

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,  # antialiased, as bicubic
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Resizing:
    """The part of a run's preprocessing that is done to image files: the same in training and for predictions.

    Attributes:
        fit: crop, resized by the shorter side and center-cropped; pad, resized by the longer side, with black on both
            sides; stretch, resized without regard to the proportions.
        interpolation: bilinear or bicubic, both antialiased, or nearest.
        decode: full; or reduced, a JPEG file at 1/2, 1/4 or 1/8 of its size, as long as that is twice the size or more.
        depth: the type of the pixels.
        icc: ignore color profiles; or srgb, convert the pixels of an image with another profile to sRGB.
    """

    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    decode: Decoding = "full"
    depth: Depth = "uint8"
    icc: ColorProfiles = "ignore"

    def to_dict(self) -> dict[str, Any]:
        """As JSON. What earlier versions did not have is left out where it is the default: files stay as they were."""
        added = {field.name: field.default for field in fields(self) if field.name in ("depth", "icc")}
        return {name: value for name, value in vars(self).items() if name not in added or value != added[name]}

    def reduce(self, image: Image.Image, size: tuple[int, int]) -> None:
        """Let an opened file that is to be resized to `size`, in either order, decode fewer pixels, where it can."""
        if self.decode == "reduced":
            side = 2 * max(size)  # of both sides, as the file may have to be turned by its EXIF tag
            image.draft(None, (side, side))

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The image at `size` (H, W); itself if it has that already. Files are prepared by `reduce` before."""
        height, width = size
        if image.size == (width, height):
            return image
        method = FILTERS[self.interpolation]
        if self.fit == "pad":
            return _padded(image, (width, height), method)
        if self.fit == "stretch":
            return image.resize((width, height), method)
        return ImageOps.fit(image, (width, height), method)


DEFAULT = Resizing()


def within(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """The largest size of the same proportions with so many pixels at most; the size itself if it has no more."""
    factor = math.sqrt(pixels / (size[0] * size[1]))
    if factor >= 1:
        return size
    first, second = (min(pixels, max(1, int(side * factor))) for side in size)
    return first, second


def _padded(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """ImageOps.pad, but for a line so thin that nothing would be left of it: one row or column of it stays."""
    width, height = size
    if round(image.height / image.width * width) == 0:
        image = image.resize((width, 1), method)
    elif round(image.width / image.height * height) == 0:
        image = image.resize((1, height), method)
    return ImageOps.pad(image, size, method)
