"""The sum of a training step over the processes: gradients, running statistics, metric sums and flags.

They are in one flat buffer, which is reduced at once. Many gradients are reduced in buckets, parts of it, while the
backward pass computes the next (Li et al. 2020, "PyTorch Distributed", section 3.2.3). What is reduced, and in which
order, depends on the parameters alone: a process may begin a bucket early, or at the end of the step. So a process that
fails in its backward pass begins the buckets that are left at the end, and none waits for it; flags are in the last.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..runtime.process_group import ProcessGroup

BUCKET = 25 * 2**18  # gradients in a bucket, at least: 25 MiB in float32
MANY = 25_000_000  # gradients, beyond which those of one machine are reduced in buckets too

Slot = tuple[dict[str, Tensor | None], str]  # where a module has a buffer, which it may replace


class StepReduction:
    """Sums a step over the processes. What it needs to know is fixed for an epoch; the buffer is used in every step.

    Not torch's DistributedDataParallel: a process that fails inside a step still takes part in all of its collectives,
    with a flag and without gradients, so that no other waits for it; shares may be uneven or empty, and a parameter
    unused.

    Args:
        group: the processes.
        parameters: those that get gradients, the same in every process.
        modules: their floating-point buffers (batch norm's running statistics) are averaged over the processes.
        sums: how many other numbers are added up.
        copied: the optimizer may keep the gradients, so that they are copied out of the buffer.
        overlapping: many gradients may be reduced while the backward pass computes others.
    """

    def __init__(
        self,
        group: ProcessGroup,
        parameters: Sequence[nn.Parameter],
        modules: Sequence[nn.Module],
        sums: int,
        *,
        copied: bool,
        overlapping: bool = True,
    ) -> None:
        self.group, self.copied = group, copied
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        count = sum(p.numel() for p in self.parameters)
        self.several = overlapping and count > (BUCKET if group.world_size > group.local_world_size else MANY)
        if self.several:
            self.parameters.reverse()  # about the order in which their gradients are computed
        self.floating: list[Slot] = []
        self.others: list[Slot] = []  # counters, the same in all processes that take part in a step
        for module in modules:
            for owner in module.modules():
                for name, buffer in owner._buffers.items():
                    if buffer is not None:
                        (self.floating if buffer.is_floating_point() else self.others).append((owner._buffers, name))
        buffers = self._tensors(self.floating)
        tensors = [*self.parameters, *buffers]
        wide = any(tensor.dtype is torch.float64 for tensor in tensors)
        sizes = [tensor.numel() for tensor in tensors]
        statistics = sum(sizes[len(self.parameters) :])
        sums += self.several  # self.late
        total = sum(sizes) + len(self.parameters) + sums
        device = tensors[0].device
        self.flat = torch.zeros(total, dtype=torch.float64 if wide else torch.float32, device=device)
        pieces = self.flat.split([*sizes, len(self.parameters), sums])
        # With the parameters' own strides: torch's fused steps pair elements by their offset in memory.
        self.gradients = [_shaped(piece, p) for piece, p in zip(pieces, self.parameters, strict=False)]
        self.present, self.sums = pieces[-2:]
        self.tail = self.flat[total - len(self.parameters) - sums :]
        start = total - len(self.parameters) - sums - statistics
        self.changes = self.flat[start : start + statistics]
        self.statistics = torch.empty_like(self.changes)  # before the step, the same in all processes
        views = self.statistics.split(sizes[len(self.parameters) :])
        self.views = [_shaped(piece, buffer) for piece, buffer in zip(views, buffers, strict=True)]
        self.change_views = [
            _shaped(piece, buffer)
            for piece, buffer in zip(self.changes.split(sizes[len(self.parameters) :]), buffers, strict=True)
        ]
        _copy(self.views, buffers)
        self.buckets = self._cut(sizes[: len(self.parameters)], total)
        self.begun: list[Callable[[], None]] = []  # what waits for a bucket that is being reduced
        self.late = False  # a gradient has changed after its bucket was begun

    def _cut(self, sizes: Sequence[int], total: int) -> list[tuple[slice, slice]]:
        """The buckets: of each, the indices of its parameters, and its part of the buffer."""
        buckets, first, start, end = [], 0, 0, 0
        for number, size in enumerate(sizes[:-1], 1):
            end += size
            if self.several and end - start >= BUCKET:
                buckets.append((slice(first, number), slice(start, end)))
                first, start = number, end
        return [*buckets, (slice(first, len(sizes)), slice(start, total))]

    @contextlib.contextmanager
    def overlapped(self) -> Iterator[None]:
        """The backward pass of a step's last batch: a bucket is begun when its gradients and those before it are there.

        The last bucket is not begun in it, nor one after a parameter that gets no gradient.
        """
        missing = [set(range(*indices.indices(len(self.parameters)))) for indices, _ in self.buckets[:-1]]

        def hook_for(number: int, index: int) -> Callable[[Tensor], None]:
            def ready(parameter: Tensor) -> None:
                if number < len(self.begun):  # added to twice, as reentrant checkpointing does
                    self.late = True
                missing[number].discard(index)
                while len(self.begun) < len(missing) and not missing[len(self.begun)]:
                    self._begin(failed=False)

            return ready

        pairs = [(number, index) for number, indices in enumerate(missing) for index in indices]
        hooks = [self.parameters[i].register_post_accumulate_grad_hook(hook_for(n, i)) for n, i in pairs]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _begin(self, *, failed: bool) -> None:
        """Begin to reduce the next bucket."""
        indices, part = self.buckets[len(self.begun)]
        views = self.gradients[indices]
        gradients = [None if failed else parameter.grad for parameter in self.parameters[indices]]
        for view, gradient in zip(views, gradients, strict=True):
            if gradient is None:
                view.zero_()
        given = [(view, g) for view, g in zip(views, gradients, strict=True) if g is not None]
        _copy([view for view, _ in given], [gradient for _, gradient in given])
        self.begun.append(self.group.begin_all_reduce(self.flat[part]))

    @torch.no_grad()
    def __call__(self, sums: Tensor, working: int, *, failed: bool, all_work: bool) -> list[float]:
        """Sum a step's gradients and numbers, and average the changes of the running statistics.

        Args:
            sums: [sums], on the CPU or the parameters' device.
            working: the number of processes whose images changed the statistics.
            failed: this process has no gradients to give.
            all_work: every process had images in each of the step's batches.
        Returns: the sums over all processes.
        """
        tail = self._reduce(sums, failed)
        if self.several and tail.pop():  # of any process: again, with the gradients as they are now
            tail = self._reduce(sums, failed)[:-1]
        for parameter, view, count in zip(self.parameters, self.gradients, tail, strict=False):
            gradient = view.to(parameter.dtype)
            parameter.grad = (gradient.clone() if self.copied else gradient) if count else None
        if self.floating:
            self.statistics.add_(self.changes, alpha=1 / working)
            self.restore_statistics()
        if not all_work and self.others:
            self.group.broadcast_tensors(self._tensors(self.others))
        totals: list[float] = tail[len(self.parameters) :]
        return totals

    def _reduce(self, sums: Tensor, failed: bool) -> list[float]:
        """Reduce the buckets that are not begun yet, and wait for all. Returns: the tail of the buffer."""
        given = [not failed and parameter.grad is not None for parameter in self.parameters]
        self.present.copy_(torch.tensor(given, dtype=torch.float32))
        self.sums[: len(sums)].copy_(sums)
        self.sums[len(sums) :] = float(self.late)
        self._write_changes(failed)
        while len(self.begun) < len(self.buckets):
            self._begin(failed=failed)
        for wait in self.begun:
            wait()
        self.begun, self.late = [], False
        tail: list[float] = self.tail.tolist()
        return tail

    def _write_changes(self, failed: bool) -> None:
        """By how much this process's images changed the statistics: exactly 0 where they did not, also of infinity."""
        if failed:
            self.changes.zero_()
        elif self.floating:
            _copy(self.change_views, self._tensors(self.floating))
            same = self.changes == self.statistics
            self.changes.sub_(self.statistics).masked_fill_(same, 0)

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Set the running statistics to those that all processes have in common."""
        _copy(self._tensors(self.floating), self.views)

    @staticmethod
    def _tensors(slots: Sequence[Slot]) -> list[Tensor]:
        return [tensor.detach() for buffers, name in slots if (tensor := buffers[name]) is not None]


def _shaped(piece: Tensor, like: Tensor) -> Tensor:
    return piece.as_strided(like.shape, like.stride(), piece.storage_offset())


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
