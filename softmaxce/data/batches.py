"""From a split to batches on the device: gathered, augmented and normalized there, a batch at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import (
    SoftmaxceError,
)
from ..runtime.process_group import SINGLE, ProcessGroup
from ..runtime.random_state import own_random_numbers
from .arrays import FULL_SCALE
from .augment import RandomHorizontalFlip
from .augmentation import Augmentation, named
from .loading import FileLoader, Files, stack
from .order import epoch_order
from .preprocessing import Preprocessing
from .sampling import ClassSampler
from .share import Share
from .splits import InMemory, OnDisk, Split
from .views import View, image_keys, refuse_later
from .whole_images import WholeImages, whole_images

if TYPE_CHECKING:
    from ..kernels.gather_normalize import BatchGatherer
    from ..kernels.normalize import Normalizer


Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] float, normalized; labels [B] int64


class Batches:
    """A split's batches on a device, epoch after epoch.

    Args:
        split: the images.
        preprocessing: their shape and normalization.
        batch_size: B; the last batch may be smaller.
        device: where batches are made and used.
        augment: applied in this order, to images in [0, 1] (floating-point ones as they are); see augment.py.
        shuffle_seed: the order is drawn from it and the epoch's number; None keeps the split's order.
        compiled: on the CPU, normalize images of bytes in one compiled pass, which also gathers those of a split in
            memory without augmentation. The result has the same bits; loading the compiled code takes longer than it
            saves in a single pass over a small split.
        group: the processes that train together: `epoch` gives this one's share of each batch, which is cut as for a
            single process. A process without a share gets that of rank 0, and draws the same random numbers.
        sampler: draws the images of each epoch; None takes each once. Needs shuffle_seed.
        with_previous: the share begins with one image more, the one before it in the batch (before the first, the
            last): mixup and CutMix mix each image with that.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        device: torch.device,
        augment: Sequence[Augmentation | Callable[..., Tensor]] = (),
        shuffle_seed: int | None = None,
        compiled: bool = False,
        sampler: ClassSampler | None = None,
        group: ProcessGroup = SINGLE,
        with_previous: bool = False,
    ) -> None:
        self.split = split
        self.group = group
        self.with_previous = with_previous
        self.batch_size = batch_size
        self.device = device
        augmentations = [named(each) for each in augment]
        refuse_later(augmentations)
        self.view: View | None = None
        if augmentations and augmentations[0].takes_whole:
            self.view = View(augmentations[0], split.shape, shuffle_seed or 0, preprocessing.depth)
        self.augment = augmentations[1:] if self.view else augmentations
        # How many of the first ones only move pixels, which takes a quarter of the time with bytes.
        self.moving = sum(1 for _ in takewhile(lambda each: each.moves_pixels, self.augment))
        self.shuffle_seed = shuffle_seed
        self.sampler = sampler
        self.mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)
        self.full_scale = FULL_SCALE[preprocessing.depth]  # as floats: fractions of it
        self.mean_as_stored, self.scale_as_stored = self.mean * self.full_scale, 1 / (self.std * self.full_scale)
        self.labels = split.labels.to(device)
        self.images = split.images.to(device) if isinstance(split, InMemory) else None
        self.whole: WholeImages | OnDisk | None = whole_images(split) if self.view else None
        self.loader = self._loader_of(split)
        self.whole_loader = self._loader_of(self.whole)
        self.gatherer: BatchGatherer | None = None
        self.normalizer: Normalizer | None = None
        if compiled and device.type == "cpu" and preprocessing.depth == "uint8":
            self._use_kernels()

    def _use_kernels(self) -> None:
        """Use the compiled passes where they fit; PyTorch's operations give the same bits."""
        if self.mean.dtype is not torch.float32 or self.mean.numel() != self.split.shape[0]:
            return  # another default dtype, or one mean for several channels
        try:
            from ..kernels.gather_normalize import BatchGatherer
            from ..kernels.normalize import Normalizer
        except ImportError:  # no Numba for this Python or this processor
            return
        shape, images = self.split.shape, self.images
        if self.augment:
            if self.moving == len(self.augment):
                self.normalizer = Normalizer(self.mean, self.std, shape, fractions=True)
        elif images is None or self.view is not None:
            self.normalizer = Normalizer(self.mean_as_stored, self.scale_as_stored, shape, fractions=False)
        elif images.dtype is torch.uint8 and images.is_contiguous() and not images.is_neg():
            self.gatherer = BatchGatherer(images, self.mean_as_stored, self.scale_as_stored)

    def _loader_of(self, split: Split | WholeImages | None) -> FileLoader | None:
        """Decodes the images of a split on disk; its processes are kept from one training epoch to the next."""
        if not isinstance(split, OnDisk):
            return None
        files = Files(split, self.view if split is self.whole else None)
        return FileLoader(files, keep=self.shuffle_seed is not None, pin_memory=self.device.type == "cuda")

    @property
    def num_images(self) -> int:
        """Images in the split."""
        return len(self.split)

    @property
    def images_per_epoch(self) -> int:
        """Images in an epoch: as many as the split has, but for a last batch of one while shuffling.

        Batch normalization cannot train on one image; every epoch leaves out a different one.
        """
        single = self.num_images > self.batch_size and self.num_images % self.batch_size == 1
        return self.num_images - (single and self.shuffle_seed is not None)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.images_per_epoch // self.batch_size)

    def images_in(self, index: int) -> int:
        """Images of batch `index`, of all processes."""
        return min(self.batch_size, self.images_per_epoch - index * self.batch_size)

    def epoch(self, number: int, start: int = 0, stride: int = 1) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on; with `stride`, every stride-th of them.

        The order depends on the epoch's number and the seed alone.
        """
        size = self.batch_size
        if self.shuffle_seed is None and self.images is not None and self.group.is_single:
            for first in range(start * size, self.num_images, size * stride):
                here = slice(first, first + size)
                yield self._gather(here, number), self.labels[here]
            return
        if self.shuffle_seed is None:
            order = torch.arange(self.num_images)
        else:
            generator = torch.Generator().manual_seed((self.shuffle_seed * 1_000_003 + number) % 2**63)
            order = epoch_order(self.split, generator, self.sampler)
        order = order[start * size : self.images_per_epoch]
        if not len(order):
            return
        on_device = order.to(self.device)  # all in one copy: each copy would wait for the device
        labels = self.labels.index_select(0, self._index(on_device))
        batches = zip(on_device.split(size)[::stride], labels.split(size)[::stride], strict=True)
        parts = (self._share(indices, ids, (number, start + i)) for i, (indices, ids) in enumerate(batches))
        if self.images is not None and self.view is None:
            for indices, ids, share in parts:
                yield self._gather(indices, number, share), ids
        else:
            own = [self._share(chunk, chunk, ())[0] for chunk in order.split(size)[::stride]]
            views = self._decoded(map(self._index, own)) if self.view is None else self._views(own, number)
            for (indices, ids, share), images in zip(parts, views, strict=True):
                yield self.prepared(images.to(self.device, non_blocking=True), indices, number, share), ids
        if self.shuffle_seed is None and self.normalizer is not None:
            self.normalizer.release_memory()  # an evaluation's batches are large, and training needs the memory next

    def _share(self, indices: Tensor, ids: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Tensor, Share | None]:
        """This process's part of a batch: indices and labels, and which part it is; None of a single process."""
        if self.group.is_single:
            return indices, ids, None
        count = len(indices)
        own = self.group.share(count) or range(count // self.group.working(count))
        positions = torch.arange(own.start - self.with_previous, own.stop, device=indices.device) % count
        share = Share(count, positions, (self.shuffle_seed or 0, *batch, self.group.rank))
        return indices.index_select(0, positions), ids.index_select(0, positions), share

    def _index(self, drawn: Tensor) -> Tensor:
        """Which images of the split these are, whose numbers also say how often they have come in the epoch."""
        return drawn if self.sampler is None else drawn % self.num_images

    def _gather(self, indices: Tensor | slice, epoch: int, share: Share | None = None) -> Tensor:
        """The images at `indices` of a split in memory, prepared."""
        assert self.images is not None
        if self.gatherer is not None:
            return self.gatherer.normalized(self._index(indices) if isinstance(indices, Tensor) else indices)
        if isinstance(indices, Tensor):
            return self.prepared(_rows(self.images, self._index(indices)), indices, epoch, share)
        return self.prepared(self.images[indices])

    def _views(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """The views of the images of each batch, [B, C, H, W] of their depth, on the CPU."""
        assert self.view is not None
        assert self.whole is not None
        numbered = [(self._index(batch).tolist(), self.view.keys(epoch, batch.tolist())) for batch in batches]
        requests = [list(zip(indices, keys, strict=True)) for indices, keys in numbered]
        if not isinstance(self.whole, OnDisk):
            return self.view.batches(self.whole, requests)
        assert self.whole_loader is not None
        return self.whole_loader(requests)

    def pixels(self) -> Iterator[Tensor]:
        """The split's images as they are stored, in its order: [B, C, H, W], not normalized; on the CPU."""
        if isinstance(self.split, InMemory):
            yield from self.split.images.cpu().split(self.batch_size)
        else:
            decoded = self._decoded(torch.arange(self.num_images).split(self.batch_size))
            yield from (images.contiguous() for images in decoded)

    def sample(self, count: int) -> Tensor:
        """Up to `count` of the split's images, evenly spread over it, normalized and not augmented."""
        indices = torch.arange(0, self.num_images, -(-self.num_images // count))
        if self.images is not None:
            images = _rows(self.images, indices.to(self.device))
        else:
            images = torch.cat(list(self._decoded(indices.split(self.batch_size)))).to(self.device)
        return self._normalized(images.float().div_(self.full_scale))

    def try_augmentations(self) -> list[str]:
        """Call each augmentation once on the split's first images, before training.

        Global random numbers are used; the caller restores them.

        Returns: warnings.
        Raises: ConfigError with the augmentation, if what it returns cannot be trained on; as training.
        """
        indices = torch.arange(min(4, self.num_images))
        if self.view is not None:
            images = next(self._views([indices], 1)).to(self.device)
        elif self.images is not None:
            images = self.images[: len(indices)]
        else:
            assert isinstance(self.split, OnDisk)
            files = Files(self.split)
            stacked = stack([files[i] for i in indices.tolist()])
            if isinstance(stacked, SoftmaxceError):
                raise stacked
            images = torch.as_tensor(stacked, device=self.device)
        prepared, warnings = images.contiguous().float().div_(self.full_scale), []
        for augmentation in self.augment:
            prepared, warning = augmentation.try_on(prepared)
            warnings.append(warning)
        return [warning for warning in warnings if warning]

    def _decoded(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        assert self.loader is not None
        return self.loader([indices.tolist() for indices in batches])

    def prepared(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None, share: Share | None = None
    ) -> Tensor:
        """Pixels as the model sees them: augmented and normalized.

        Args:
            images: [B, C, H, W] as they are stored, on the device.
            indices: [B] int64, which images of the split these are, as the order of an epoch numbers them; None if
                they are of none.
            epoch: its number, counted from 1; None outside an epoch.
            share: which part of a batch these are; None if they are all of it.
        Returns: [B, C, H, W] float, channels last in memory.
        """
        if not self.augment:  # the same in two passes over the pixels; the rounding may differ in the last place
            if self.normalizer is not None and images.dtype is torch.uint8:
                return self.normalizer(images)
            images = images.float() if images.dtype is torch.uint16 else images  # of which not every torch subtracts
            normalized = torch.sub(images, self.mean_as_stored).mul_(self.scale_as_stored)
            return normalized.contiguous(memory_format=torch.channels_last)
        augmented = partial(self._augmented, indices=indices, epoch=epoch, share=share)
        moving = self.moving if images.dtype is torch.uint8 else 0
        if self.normalizer is not None and moving == len(self.augment):
            return self._normalized_bytes(images, indices, epoch, share)
        images = augmented(images, range(moving))
        if moving == len(self.augment):  # bytes have a quarter of the memory to rearrange
            images = images.contiguous(memory_format=torch.channels_last)
            return images.float().div_(self.full_scale).sub_(self.mean).div_(self.std)
        prepared = images.contiguous().float().div_(self.full_scale)  # as the user's augmentations may need it
        return self._normalized(augmented(prepared, range(moving, len(self.augment))))

    def _normalized_bytes(
        self, images: Tensor, indices: Tensor | None, epoch: int | None, share: Share | None
    ) -> Tensor:
        """Images whose augmentations only move pixels; a flip that comes last is done in the pass that normalizes."""
        assert self.normalizer is not None
        last = len(self.augment) - 1
        flip = self.augment[last].function
        if type(flip) is not RandomHorizontalFlip:  # a subclass may do something else
            return self.normalizer(self._augmented(images, range(last + 1), indices, epoch, share))
        images = self._augmented(images, range(last), indices, epoch, share)
        flips = flip.drawn(images, **self._arguments(last, len(images), indices, epoch, share))
        return self.normalizer(images, flips)

    def _augmented(
        self, images: Tensor, places: range, indices: Tensor | None, epoch: int | None, share: Share | None
    ) -> Tensor:
        """Images after the augmentations at these places; the arguments are those of `prepared`."""
        for place in places:
            augmentation = self.augment[place]
            arguments = self._arguments(place, len(images), indices, epoch, share)
            if share is None or augmentation.uses_share:
                augmented = augmentation.function(images, **arguments)
            else:
                with own_random_numbers((*share.key, place), self.device):
                    augmented = augmentation.function(images, **arguments)
            images = augmentation.check(images, augmented)
        return images

    def _arguments(
        self, place: int, count: int, indices: Tensor | None, epoch: int | None, share: Share | None
    ) -> dict[str, Any]:
        """What the augmentation at this place is called with besides the images, of which there are `count`."""
        augmentation = self.augment[place]
        arguments: dict[str, Any] = {}
        if augmentation.uses_indices and indices is not None:
            arguments = {"indices": self._index(indices), "epoch": epoch}
        if augmentation.uses_keys:
            which = range(count) if indices is None else indices.tolist()
            position = place + 1 if self.view else place
            arguments["keys"] = image_keys(self.shuffle_seed or 0, epoch or 0, which, position)
        if augmentation.uses_share and share is not None:
            arguments["share"] = share
        return arguments

    def _normalized(self, images: Tensor) -> Tensor:
        normalized = (images - self.mean).div_(self.std)
        return normalized.contiguous(memory_format=torch.channels_last)


def _rows(images: Tensor, indices: Tensor) -> Tensor:
    """The images at `indices`; of uint16 as int16, which every device selects from."""
    if images.dtype is torch.uint16:
        return images.view(torch.int16).index_select(0, indices).view(torch.uint16)
    return images.index_select(0, indices)
