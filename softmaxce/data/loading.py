"""Loads image files in processes beside the training process, by torch's DataLoader."""

import contextlib
import multiprocessing
import pickle
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from .. import streams
from ..config.signatures import current_folder_last
from ..errors import (
    ConfigError,
    DataError,
    MemoryRanOutError,
    SoftmaxceError,
    WorkerError,
    in_one_line,
    ran_out_of_memory,
)
from ..runtime.allocator import return_large_buffers
from ..runtime.processors import processors
from .arrays import Pixels
from .decode import Decode
from .shared_batches import SharedBatches
from .splits import OnDisk
from .views import View, stacked
from .whole_images import image_of

Failure = DataError | ConfigError | MemoryRanOutError
PREFETCHED = 2  # batches of each worker process


class FileLoader:
    """Loads batches of files, in order.

    Args:
        files: the split.
        keep: keep the processes for the next batches: they have to be started once, not in each epoch.
        pin_memory: as of torch's DataLoader.
    """

    def __init__(self, files: "Files", *, keep: bool, pin_memory: bool) -> None:
        self._files, self._keep, self._pin_memory = files, keep, pin_memory
        self._idle: tuple[DataLoader[Any], _Requests] | None = None  # a loader whose workers wait for requests

    def __call__(self, requests: Sequence[Sequence[Any]]) -> Iterator[Tensor]:
        """The images of each batch, [B, C, H, W], on the CPU; `requests` are the entries of `files`.

        Raises: what `files` returns instead of an image; WorkerError if a process was killed.
        """
        loader, batches = self._idle or self._started(requests)
        self._idle = None  # until all batches are loaded: two calls at a time need workers each
        batches.batches = requests
        try:
            with _quiet():
                loaded = iter(loader)  # requests the next batches from persistent workers
            for images in loaded:
                images = batches.received(images)
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
        if self._keep:
            self._idle = loader, batches

    def _started(self, requests: Sequence[Sequence[Any]]) -> "tuple[DataLoader[Any], _Requests]":
        requested = self._files.split.workers
        workers = _possible_workers(torch.get_num_threads() if requested is None else requested)
        return_large_buffers()
        batches = _Requests(self._shared_batches(workers, requests))
        with _quiet():
            loader: DataLoader[Any] = DataLoader(
                _BatchesOfFiles(self._files, batches.shared),
                batch_size=None,  # an item is a batch
                sampler=batches,
                num_workers=workers,
                collate_fn=_unchanged,
                pin_memory=self._pin_memory,
                generator=torch.Generator(),  # so that the global one is left alone
                worker_init_fn=_ignore_interrupts,
                persistent_workers=self._keep and workers > 0,
                prefetch_factor=PREFETCHED if workers else None,
            )
        return loader, batches

    def _shared_batches(self, workers: int, requests: Sequence[Sequence[Any]]) -> SharedBatches | None:
        """Memory for the batches that are loaded at a time, if there are enough to use it again."""
        slots = PREFETCHED * workers + 2  # the last batch may be in use while the next one has been loaded
        split = self._files.split
        if self._pin_memory or not workers or len(requests) <= slots or not isinstance(split.decode, Decode):
            return None  # batches in pinned memory are copies; the user's own `decode` may return anything
        channels, height, width = split.shape
        dtype = getattr(torch, split.decode.resizing.depth)
        return SharedBatches(slots, (max(map(len, requests)), height, width, channels), dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning of more processes than processors; _possible_workers has a limit of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class Request(NamedTuple):
    """A batch to load: the entries of a split, and the slot of the shared memory to load them into, if there is one."""

    entries: Sequence[Any]
    slot: int | None


class _Requests(Sampler[Request]):
    """What a DataLoader is to load next, and where the batches that it loads are."""

    def __init__(self, shared: SharedBatches | None) -> None:
        self.batches: Sequence[Sequence[Any]] = ()
        self.shared = shared
        self._slots: deque[int | None] = deque()  # of the batches that are being loaded, in their order

    def __iter__(self) -> Iterator[Request]:
        for entries in self.batches:
            slot = self.shared.take(len(entries)) if self.shared else None
            self._slots.append(slot)
            yield Request(entries, slot)

    def __len__(self) -> int:
        return len(self.batches)

    def received(self, loaded: "Tensor | Pixels | Failure | Filled") -> Tensor | Failure:
        """The next batch, from what the DataLoader returned for it."""
        slot = self._slots.popleft()
        if isinstance(loaded, Filled):
            assert self.shared is not None
            assert slot is not None
            return self.shared.batch(slot, loaded.images)
        if self.shared is not None and slot is not None:
            self.shared.give_back(slot)
        return torch.from_numpy(loaded) if isinstance(loaded, np.ndarray) else loaded


class Files(Dataset[Tensor | Failure]):
    """A split on disk for torch's DataLoader. Errors are returned: raised in a worker, they gain its traceback.

    An item is an index; with a view, an index and the key of the image's random numbers.
    """

    def __init__(self, split: OnDisk, view: View | None = None) -> None:
        self.split = split
        self.view = view

    def __reduce__(self) -> tuple[Any, ...]:
        return _files_of, (pickle.dumps((self.split, self.view)),)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: int | tuple[int, int]) -> Tensor | Failure:
        image = self.decoded(item)
        return torch.tensor(image) if isinstance(image, np.ndarray) else image

    def decoded(self, item: int | tuple[int, int]) -> Pixels | Tensor | Failure:
        """An image, [C, H, W], as it was decoded: an array that may be read-only, and [H, W, C] in memory."""
        index, key = (item, 0) if isinstance(item, int) else item
        decode, file = self.split.decode, self.split.files[index]
        try:
            if self.view is None:
                return decode.as_decoded(file) if isinstance(decode, Decode) else decode(file)
            whole = decode.whole(file) if isinstance(decode, Decode) else image_of(decode(file).numpy())
            return self.view.of(whole, key)
        except (DataError, ConfigError, MemoryRanOutError) as error:
            return error
        except Exception as error:  # noqa: BLE001 - the user's own data set has a decode of its own
            if ran_out_of_memory(error):
                return MemoryRanOutError(f"{self.split.files[index]}: memory ran out while decoding it")
            return DataError(f"{self.split.files[index]}: {in_one_line(error)}")


def _files_of(pickled: bytes) -> Files:
    """In a worker process that was not forked: the user's `decode` is looked up as the config's names are."""
    with current_folder_last():
        return Files(*pickle.loads(pickled))


class Filled(NamedTuple):
    """A worker process has written so many images to the slot of its request."""

    images: int


class _BatchesOfFiles(Dataset[Any]):
    """Batches of a split on disk: an item is a request.

    Args:
        files: the split.
        shared: where the requests' slots are.
    """

    def __init__(self, files: Files, shared: SharedBatches | None) -> None:
        self.files, self.shared = files, shared

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: Request) -> Tensor | Pixels | Failure | Filled:
        if self.shared is None or request.slot is None:
            return stack([self.files[entry] for entry in request.entries])
        slot = self.shared.pixels(request.slot)
        for pixels, entry in zip(slot, request.entries, strict=False):  # a slot may have more
            image = self.files.decoded(entry)
            if isinstance(image, SoftmaxceError):
                return image
            pixels.transpose(2, 0, 1)[:] = image
        return Filled(len(request.entries))


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Leave ctrl-C, which a terminal sends to all processes, to the training process: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stack(images: list[Tensor | Failure]) -> Tensor | Pixels | Failure:
    """[C, H, W] images as [B, C, H, W], or the first error among them.

    In a worker process the batch is put into shared memory, which a container often limits to 64 MB. A batch that does
    not fit goes to the training process through a pipe, as the array that is returned: it costs about 2 ms per MB.
    Torch itself would lose it, and the training process would wait for it forever.
    """
    error = next((image for image in images if isinstance(image, SoftmaxceError)), None)
    if error is not None:
        return error
    tensors = [image for image in images if isinstance(image, Tensor)]
    if get_worker_info() is None:
        return stacked(tensors)
    try:
        return stacked(tensors, default_collate)  # which writes to shared memory
    except (RuntimeError, OSError):  # no room there, or no shared memory at all
        return stacked(tensors).numpy()


@cache
def _possible_workers(workers: int) -> int:
    """As many worker processes as are requested, within reason, if this system has their semaphores; else 0."""
    most = max(16, 4 * processors())  # decoding keeps a processor busy; more than that wait for slow storage
    if workers > most:
        streams.warning(f"data.workers: {workers} is too many for {processors()} processors; {most} are used")
        workers = most
    try:
        _ = [multiprocessing.Lock() for _ in range(8 * (workers + 1) if workers else 0)]  # some more than torch makes
    except OSError as error:
        streams.warning(
            f"images are decoded in the training process, as worker processes need shared memory ({error.strerror}: "
            "is /dev/shm mounted and writable?); set data.workers: 0 to do so without this warning"
        )
        return 0
    return workers
