"""From a split to batches on the device: chosen, augmented and normalised there, a batch at a time."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, MemoryRanOutError, SoftmaxceError, WorkerError, in_one_line, ran_out_of_memory
from .preprocessing import Preprocessing
from .splits import InMemory, OnDisk, Split

if TYPE_CHECKING:
    from ..kernels.gather_normalize import BatchGatherer


Failure = DataError | MemoryRanOutError
Augmentation = Callable[[Tensor], Tensor]  # images [B, C, H, W] in [0, 1] -> the same shape
Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] float, normalised; labels [B] int64


class Batches:
    """A split's batches on a device, epoch after epoch.

    Args:
        split: the images.
        preprocessing: their shape and normalisation.
        batch_size: B; the last batch may be smaller.
        device: where batches are made and wanted.
        augment: applied in this order, to images in [0, 1]; see augment.py.
        shuffle_seed: the order is drawn from it and the epoch's number; None keeps the split's order.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        device: torch.device,
        augment: Sequence[Augmentation] = (),
        shuffle_seed: int | None = None,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.device = device
        self.augment = tuple(augment)
        self.shuffle_seed = shuffle_seed
        self.mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)
        self.mean_of_bytes, self.scale_of_bytes = self.mean * 255, 1 / (self.std * 255)
        self.labels = split.labels.to(device)
        self.images = split.images.to(device) if isinstance(split, InMemory) else None
        self.taker = None
        if self.images is not None and not self.augment:
            self.taker = _taker(self.images, self.mean_of_bytes, self.scale_of_bytes)

    @property
    def num_images(self) -> int:
        """How many images an epoch has."""
        return len(self.split)

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return -(-self._images_an_epoch() // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the one at `start` on.

        The same number gives the same order, whatever was drawn before.
        """
        size = self.batch_size
        if self.shuffle_seed is None and self.images is not None:
            for first in range(start * size, self.num_images, size):
                here = slice(first, first + size)
                yield self._taken(here), self.labels[here]
            return
        if self.shuffle_seed is None:
            order = torch.arange(self.num_images)
        else:
            generator = torch.Generator().manual_seed((self.shuffle_seed * 1_000_003 + number) % 2**63)
            order = torch.randperm(self.num_images, generator=generator)
        order = order[start * size : self._images_an_epoch()]
        if not len(order):
            return
        on_device = order.to(self.device)  # at once: each copy would wait for the device
        labels = self.labels.index_select(0, on_device)
        parts = zip(on_device.split(size), labels.split(size), strict=True)
        if self.images is not None:
            for chosen, ids in parts:
                self._place(number, chosen)
                yield self._taken(chosen), ids
        else:
            for (chosen, ids), images in zip(parts, self._decoded(order), strict=True):
                self._place(number, chosen)
                yield self.prepared(images.to(self.device, non_blocking=True)), ids

    def _place(self, epoch: int, chosen: Tensor) -> None:
        for augmentation in self.augment:
            if (place := getattr(augmentation, "place", None)) is not None:
                place(epoch, chosen)

    def _taken(self, chosen: Tensor | slice) -> Tensor:
        """The chosen images of those in memory, prepared."""
        assert self.images is not None
        if self.taker is not None:
            return self.taker.normalized(chosen)
        return self.prepared(self.images[chosen] if isinstance(chosen, slice) else self.images.index_select(0, chosen))

    def sample(self, count: int) -> Tensor:
        """Up to `count` of the split's images, evenly spread over it, normalised and not augmented."""
        chosen = torch.arange(0, self.num_images, -(-self.num_images // count))
        if self.images is not None:
            images = self.images.index_select(0, chosen.to(self.device))
        else:
            images = torch.cat(list(self._decoded(chosen))).to(self.device)
        return self._normalized(images.float().div_(255))

    def _images_an_epoch(self) -> int:
        """All, but for a last batch of one: batch normalisation cannot train on it, and the next epoch's is another."""
        alone = self.num_images > self.batch_size and self.num_images % self.batch_size == 1
        return self.num_images - (alone and self.shuffle_seed is not None)

    def _decoded(self, order: Tensor) -> Iterator[Tensor]:
        assert isinstance(self.split, OnDisk)
        loader = DataLoader(
            _Files(self.split),
            batch_sampler=[chunk.tolist() for chunk in order.split(self.batch_size)],
            num_workers=self.split.workers,
            collate_fn=_stacked,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # so that the global one is left alone
            worker_init_fn=_ignore_interrupts,
        )
        try:
            for images in loader:
                if isinstance(images, SoftmaxceError):
                    raise images
                yield images
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # else it was raised in one, by the user's own code
                raise
            raise WorkerError(
                "a process that decodes images was killed, often because memory ran out; lower data.workers "
                f"(0 decodes in the training process) or data.batch_size ({str(error).splitlines()[0]})"
            ) from error

    def prepared(self, images: Tensor) -> Tensor:
        """[B, C, H, W] uint8, on the device -> float, augmented, normalised."""
        if not self.augment:  # the same in two passes over the pixels; the rounding may differ in the last place
            normalised = torch.sub(images, self.mean_of_bytes).mul_(self.scale_of_bytes)
            return normalised.contiguous(memory_format=torch.channels_last)
        prepared = images.float().div_(255)
        for augmentation in self.augment:
            prepared = augmentation(prepared)
        return self._normalized(prepared)

    def _normalized(self, images: Tensor) -> Tensor:
        normalised = (images - self.mean).div_(self.std)
        return normalised.contiguous(memory_format=torch.channels_last)


def _taker(images: Tensor, mean: Tensor, scale: Tensor) -> "BatchGatherer | None":
    """What takes and normalises images on the CPU in one pass, to what `Batches.prepared` gives, if it can.

    None where neither model nor loss has brought Numba in: a prediction would wait for it longer than it gains.
    """
    usual = images.is_cpu and images.dtype is torch.uint8 and images.is_contiguous() and not images.is_neg()
    channels = images.shape[1]
    # One mean for several channels is broadcast, and under another default dtype the means are not float32.
    usual &= all(each.dtype is torch.float32 and each.numel() == channels for each in (mean, scale))
    if not usual or "numba" not in sys.modules:
        return None
    from ..kernels.gather_normalize import BatchGatherer

    return BatchGatherer(images, mean, scale)


class _Files(Dataset[Tensor | Failure]):
    """A split on disk as torch's DataLoader wants it; an error is handed over, as a worker adds its traceback."""

    def __init__(self, split: OnDisk) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor | Failure:
        try:
            return self.split.decode(self.split.files[index])
        except (DataError, MemoryRanOutError) as error:
            return error
        except Exception as error:  # noqa: BLE001 - the user's own source has a decode of its own
            if ran_out_of_memory(error):
                return MemoryRanOutError(f"{self.split.files[index]}: memory ran out while decoding it")
            return DataError(f"{self.split.files[index]}: {in_one_line(error)}")


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal; the training one ends its workers when it has finished its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stacked(images: list[Tensor | Failure]) -> Tensor | Failure:
    """[C, H, W] images as [B, C, H, W], or the first error among them."""
    error = next((image for image in images if isinstance(image, SoftmaxceError)), None)
    return error or torch.stack([image for image in images if isinstance(image, Tensor)])
