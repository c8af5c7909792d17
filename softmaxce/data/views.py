"""Views: training images that an augmentation cuts from whole images, by random numbers of the image's own."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..argument_types import Depth
from ..errors import in_one_line, ran_out_of_memory
from ..kernels.reused_memory import ReusedMemory
from ..runtime.processors import processors
from .arrays import Pixels, height_and_width
from .augmentation import Augmentation
from .whole_images import WholeImages

AHEAD = 2  # batches beyond those that the threads work on
SMALL = 96 * 96  # pixels of a view, below which most of the work holds Python's lock, and threads slow each other down


def image_keys(seed: int, epoch: int, indices: Sequence[int], position: int) -> list[int]:
    """A seed of each image's own, below 2^63, for its random numbers.

    Args:
        seed: the run's.
        epoch: its number.
        indices: which images of the split these are.
        position: of the augmentation in the config's list.
    """
    texts = (f"{seed} {epoch} {index} {position}" for index in indices)
    return [int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1 for text in texts]


@dataclass(frozen=True)
class View:
    """How a whole image becomes one of the model's shape.

    Attributes:
        augmentation: with a method from_whole(image, (H, W), generator) -> image.
        shape: (C, H, W).
        seed: the run's.
        depth: of the pixels.
    """

    augmentation: Augmentation
    shape: tuple[int, int, int]
    seed: int
    depth: Depth

    def keys(self, epoch: int, indices: Sequence[int]) -> list[int]:
        """What `of` takes, for these images of the split."""
        return image_keys(self.seed, epoch, indices, 0)

    def of(self, whole: Image.Image | Pixels, key: int) -> Pixels:
        """The view of an image, [C, H, W], in memory still [H, W, C] where the augmentation made it so.

        Raises: ConfigError if the augmentation fails, or returns no such image.
        """
        size = self.shape[1:]
        generator = torch.Generator().manual_seed(key)
        if isinstance(whole, np.ndarray):  # often a part of what every epoch reads; Pillow's images are copied
            whole = whole.view()
            whole.flags.writeable = False
        try:
            image = self.augmentation.function.from_whole(whole, size, generator)
        except Exception as error:  # the user's augmentation may raise anything
            if ran_out_of_memory(error):
                raise
            height, width = height_and_width(whole)
            message = f"failed on an image of {width}x{height} pixels: {in_one_line(error)}"
            raise self.augmentation.error(message) from error
        if not _fits(image, whole, size):
            raise self.augmentation.error(f"must return {_needed(whole, size)}; it returned {_description(image)}")
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def batches(self, whole: WholeImages, batches: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Tensor]:
        """The views of each batch, [B, C, H, W] of their depth, cut in threads ahead of their use.

        Args:
            whole: the split's whole images.
            batches: of each, the images' indices in the split and their keys.
        """

        def cut(batch: Sequence[tuple[int, int]]) -> Tensor:
            channels, height, width = self.shape
            views = memory.empty(len(batch), height, width, channels).permute(0, 3, 1, 2)
            for (index, key), pixels in zip(batch, views.numpy(), strict=True):
                pixels[:] = self.of(whole[index], key)
            return views

        memory = ReusedMemory(getattr(torch, self.depth))
        waiting = iter(batches)
        queue: deque[Future[Tensor]] = deque()
        threads = processors() if self.shape[1] * self.shape[2] >= SMALL else 1
        pool = ThreadPoolExecutor(threads)
        try:
            while True:
                while len(queue) < threads + AHEAD and (batch := next(waiting, None)) is not None:
                    queue.append(pool.submit(cut, batch))
                if not queue:
                    return
                yield queue.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fits(image: object, whole: Image.Image | Pixels, size: tuple[int, int]) -> bool:
    """Whether an augmentation's view of a whole image is of its kind, and of `size` (H, W)."""
    if isinstance(whole, Image.Image):
        return isinstance(image, Image.Image) and image.size == size[::-1] and image.mode == whole.mode
    shape = (*size, whole.shape[2])
    return isinstance(image, np.ndarray) and image.shape == shape and image.dtype == whole.dtype


def _needed(whole: Image.Image | Pixels, size: tuple[int, int]) -> str:
    if isinstance(whole, Image.Image):
        return f"a PIL image of mode {whole.mode} with {size[1]}x{size[0]} pixels"
    return f"an array of {whole.dtype} {[*size, whole.shape[2]]}"


def _description(image: object) -> str:
    if isinstance(image, Image.Image):
        return f"{image.mode}, {image.width}x{image.height}"
    if isinstance(image, np.ndarray):
        return f"{image.dtype} {list(image.shape)}"
    return f"{type(image).__module__}.{type(image).__qualname__}"


def stacked(images: list[Tensor], stack: Callable[[list[Tensor]], Tensor] = torch.stack) -> Tensor:
    """[C, H, W] images as [B, C, H, W], by `stack`.

    In channels_last, as models take them, if all images are [H, W, C] in memory, as they are decoded: the pixels need
    not be rearranged.
    """
    pixels = [image.movedim(0, -1) for image in images]
    if all(each.ndim == 3 and each.is_contiguous() for each in pixels):
        return stack(pixels).permute(0, 3, 1, 2)
    return stack(images)


def refuse_later(augmentations: Sequence[Augmentation]) -> None:
    """Raises: ConfigError if another than the first augmentation takes whole images."""
    for each in augmentations[1:]:
        if each.takes_whole:
            raise each.error("cuts from whole images, so it must be the first in data.augment")
