"""Predictions: what probabilities say of an image, and images in Python's usual forms as pixels. Needs no torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.arrays import Pixels
from ..data.decode import Decode
from ..data.paths import Unreadable
from ..data.prefetch import Decoded, decode_to
from ..data.resizing import Resizing
from ..errors import DataError

AHEAD = 2  # batches that are decoded while another is in the model

ImageLike = str | PathLike[str] | Image.Image | Pixels
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


@dataclass(frozen=True)
class Predictor:
    """Makes predictions of pixels; the same for every kind of model.

    Attributes:
        probabilities: images [N, C, H, W], of the model's depth -> [N, K].
        classes: the K names.
        batch_size: images at once.
    """

    probabilities: Callable[[Pixels], NDArray[np.floating]]
    classes: tuple[str, ...]
    batch_size: int

    def of_pixels(self, images: Pixels, paths: Sequence[str] | None = None, top: int | None = None) -> list[Prediction]:
        """One prediction for each image of a batch; `top` classes each, None for all."""
        rows = self.probabilities(images) if len(images) else np.zeros((0, len(self.classes)))
        return self.ranked(rows, paths, top)

    def ranked(
        self, rows: NDArray[np.floating], paths: Sequence[str] | None = None, top: int | None = None
    ) -> list[Prediction]:
        """The predictions that probabilities [N, K] are; as of_pixels."""
        ids = np.argsort(-rows, axis=1, kind="stable")[:, : top or len(self.classes)]
        values = np.take_along_axis(rows, ids, 1)
        return [
            Prediction(path, tuple(self.classes[i] for i in ranked), tuple(numbers))
            for path, ranked, numbers in zip(paths or [""] * len(rows), ids.tolist(), values.tolist(), strict=True)
        ]

    def of_images(
        self,
        images: ImageLike | Iterable[ImageLike],
        shape: tuple[int, int, int],
        resizing: Resizing,
        top: int | None = None,
    ) -> list[Prediction]:
        """Of images in any form, brought to `shape` (C, H, W). Raises: DataError, as pixels_of."""
        decode = decode_to(shape, resizing)
        items = iter([images] if isinstance(images, IMAGE_TYPES) else images)
        predictions: list[Prediction] = []
        while chunk := list(islice(items, self.batch_size)):
            pixels = np.stack([pixels_of(item, decode) for item in chunk])
            paths = [str(item) if isinstance(item, str | PathLike) else "" for item in chunk]
            predictions += self.of_pixels(pixels, paths, top)
        return predictions

    def of_decoded(self, decoded: Iterable[Decoded], top: int | None = None) -> Iterator[Prediction | Unreadable]:
        """Of decoded files, in their order; an Unreadable stays one."""
        items = iter(decoded)
        while chunk := list(islice(items, self.batch_size)):
            readable = [item for item in chunk if not isinstance(item, Unreadable)]
            predictions: Iterator[Prediction] = iter(())
            if readable:
                paths, arrays = zip(*readable, strict=True)
                predictions = iter(self.of_pixels(np.stack(arrays), paths, top))
            for item in chunk:
                yield item if isinstance(item, Unreadable) else next(predictions)


def pixels_of(image: ImageLike, decode: Decode) -> Pixels:
    """An image as [C, H, W], brought to a model's shape as image files are: converted and resized.

    Args:
        image: a file, a PIL image, or an array [H, W] or [H, W, C]: for a model of gray or color images of 8 bits,
            uint8 with C of 1, 3 or 4; for another, what its .npy files may hold.
        decode: how the model's image files are decoded.
    Raises: DataError if the file cannot be read, or the array has another shape or type.
    """
    if isinstance(image, Image.Image):
        return decode.pixels(image.copy())
    if isinstance(image, np.ndarray) and not decode.is_plain:
        try:
            if image.ndim not in (2, 3):
                raise ValueError(f"it must be [height, width] or [height, width, channels], got {list(image.shape)}")
            return decode.of_samples(image if image.ndim == 3 else image[:, :, None])
        except ValueError as error:
            raise DataError(f"an image as an array: {error}") from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise DataError(
                f"an image as an array must be uint8 [height, width] or [height, width, 1, 3 or 4], got {image.dtype} "
                f"{list(image.shape)}"
            )
        return decode.pixels(Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image))
    return decode.array(fspath(image))
