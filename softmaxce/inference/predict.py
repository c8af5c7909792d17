"""Predictions: what a classifier's probabilities say of an image, and images in Python's usual forms as pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.prefetch import decode_to
from ..errors import DataError

AHEAD = 2  # batches that are decoded while another is in the model

ImageLike = str | PathLike[str] | Image.Image | NDArray[np.uint8]
IMAGE_TYPES = (str, PathLike, Image.Image, np.ndarray)  # the same, for isinstance


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable first, with their probabilities in [0, 1].

    Attributes:
        path: the image's file; empty for an image that is not a file.
        classes: their names.
        probabilities: of these classes.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.probabilities[0]


def top_classes(
    probabilities: Tensor, paths: Sequence[str], classes: tuple[str, ...], top: int | None
) -> list[Prediction]:
    """One prediction for each row of probabilities [N, K]; `top` classes each, None for all."""
    values, ids = probabilities.topk(min(top or len(classes), len(classes)), 1)
    return [
        Prediction(path, tuple(classes[i] for i in row), tuple(numbers))
        for path, row, numbers in zip(paths, ids.tolist(), values.tolist(), strict=True)
    ]


def pixels_of(image: ImageLike, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An image as [C, H, W] uint8, brought to a model's shape as image files are: converted, resized, center-cropped.

    Args:
        image: a file, a PIL image, or a uint8 array [H, W] or [H, W, C] with C of 1, 3 or 4.
        shape: (C, H, W) of the model's images.
    Raises: DataError if the file cannot be read, the array has another shape or type, or C is neither 1 nor 3.
    """
    decode = decode_to(shape)
    if isinstance(image, Image.Image):
        return decode.pixels(image.copy())
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise DataError(
                f"an image as an array must be uint8 [height, width] or [height, width, 1, 3 or 4], got {image.dtype} "
                f"{list(image.shape)}"
            )
        return decode.pixels(Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image))
    return decode.array(fspath(image))
