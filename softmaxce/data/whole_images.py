"""Whole images, neither cropped nor at the model's size, for augmentations that cut their views from them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import streams
from ..runtime.process_group import local_world_size
from ..waiting import Counting
from . import cache, decode
from .arrays import Pixels
from .decode import Decode, decoding_threads
from .splits import OnDisk, Split

PLAIN = {1: "L", 3: "RGB"}  # the mode of images of 8 bits, by their channels; others are arrays


class WholeImages(Protocol):
    """The whole images of a split, in memory."""

    def __getitem__(self, index: int) -> Image.Image | Pixels:
        """One of them: of mode L or RGB; [H, W, C] for other channels or another depth."""


@dataclass(frozen=True)
class OneSize:
    """Images of a data set without files, or whose files are all of the model's size.

    Attributes:
        images: [N, C, H, W].
    """

    images: Pixels

    def __getitem__(self, index: int) -> Image.Image | Pixels:
        """One image."""
        return image_of(self.images[index])


@dataclass(frozen=True)
class ManySizes:
    """Images one behind the other.

    Attributes:
        pixels: of all, [H, W, C] each.
        starts: [N + 1], where each begins.
        sizes: [N, 2], width and height.
        channels: C.
    """

    pixels: Pixels
    starts: NDArray[np.int64]
    sizes: NDArray[np.int32]
    channels: int

    def __getitem__(self, index: int) -> Image.Image | Pixels:
        """One image."""
        width, height = self.sizes[index].tolist()
        pixels = self.pixels[self.starts[index] : self.starts[index + 1]]
        mode = PLAIN.get(self.channels)
        if mode is None or pixels.dtype != np.uint8:
            return pixels.reshape(height, width, self.channels)
        return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)


def image_of(pixels: Pixels) -> Image.Image | Pixels:
    """[C, H, W] as an image, or as [H, W, C] unless it is gray or RGB of 8 bits."""
    if len(pixels) not in PLAIN or pixels.dtype != np.uint8:
        return pixels.transpose(1, 2, 0)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def whole_images(split: Split) -> WholeImages | OnDisk:
    """The whole images of a split; where they do not fit in memory, its files, to be read in every epoch.

    Raises: DataError if a file cannot be decoded, because it has changed since.
    """
    if isinstance(split, OnDisk):
        return split
    reading = split.reading
    if split.files is None or reading is None or reading.decode.size is None:
        return OneSize(split.images.numpy())
    if not reading.whole_in_memory:
        return OnDisk(split.files, split.labels, split.shape, reading.decode, reading.workers)
    return _cached(split.files, reading.decode) if reading.cache else _decoded(split.files, reading.decode)


def _cached(files: Sequence[str], how: Decode) -> ManySizes:
    """As _decoded, from the cache if the files are unchanged since."""
    options = ("whole images", how, decode.program(), decode.formats())
    key = cache.key_of(files, *options)
    if key is None or local_world_size() == 1:
        return _read_or_decode(files, how, key, options)
    with cache.one_process(key):  # of those that train together
        return _read_or_decode(files, how, key, options)


def _read_or_decode(files: Sequence[str], how: Decode, key: str | None, options: tuple[object, ...]) -> ManySizes:
    cached = cache.read(key, None) if key is not None else None
    if cached is not None:
        content = cached[0]
        sizes = content[: 8 * len(files)].view(np.int32).reshape(-1, 2)
        return _stored(content[8 * len(files) :].view(how.resizing.depth), sizes, how)
    whole = _decoded(files, how)
    if key is not None and key == cache.key_of(files, *options):
        try:
            cache.write(key, whole.sizes, whole.pixels)
        except OSError as error:
            streams.warning(cache.cannot_be_written(error))
    return whole


def _decoded(files: Sequence[str], how: Decode) -> ManySizes:
    """The files decoded in threads, each into a slot as large as the largest; then the gaps are closed."""
    assert how.whole_pixels is not None
    slot = how.whole_pixels * how.channels
    pixels, sizes = np.empty(len(files) * slot, how.resizing.depth), np.empty((len(files), 2), np.int32)

    def fill(chunk: range) -> None:
        for index in chunk:
            image = np.asarray(how.whole(files[index]))
            sizes[index] = image.shape[1::-1]
            values = image.reshape(-1)
            pixels[index * slot : index * slot + len(values)] = values
            counting.advance()

    threads = decoding_threads(files[0])
    step = max(1, min(256, len(files) // (4 * threads)))
    with Counting("decoding whole images", len(files)) as counting, ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, [range(at, min(at + step, len(files))) for at in range(0, len(files), step)]):
            pass
    whole = _stored(pixels, sizes, how)
    for index, (start, end) in enumerate(pairwise(whole.starts.tolist())):
        pixels[start:end] = pixels[index * slot : index * slot + end - start]
    pixels.resize(int(whole.starts[-1]), refcheck=False)  # in place: the rest of its memory is returned
    return whole


def _stored(pixels: Pixels, sizes: NDArray[np.int32], how: Decode) -> ManySizes:
    starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(1) * how.channels)])
    return ManySizes(pixels, starts, sizes, how.channels)
