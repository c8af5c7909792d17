"""The one all-reduce of a training step: gradients, running statistics, metric sums and flags in a flat buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..runtime.process_group import ProcessGroup

Slot = tuple[dict[str, Tensor | None], str]  # where a module has a buffer, which it may replace


class StepReduction:
    """Sums a step over the processes. What it needs to know is fixed for an epoch; the buffer is used in every step.

    Not torch's DistributedDataParallel: a process that fails inside a step still takes part in its one collective, with
    a flag and without gradients, so that no other waits for it; shares may be uneven or empty, and a parameter unused.

    Args:
        group: the processes.
        parameters: those that get gradients, the same in every process.
        modules: their floating-point buffers (batch norm's running statistics) are averaged over the processes.
        sums: how many other numbers are added up.
        copied: the optimizer may keep the gradients, so that they are copied out of the buffer.
    """

    def __init__(
        self,
        group: ProcessGroup,
        parameters: Sequence[nn.Parameter],
        modules: Sequence[nn.Module],
        sums: int,
        *,
        copied: bool,
    ) -> None:
        self.group, self.copied = group, copied
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
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
        gradients = [None if failed else parameter.grad for parameter in self.parameters]
        for view, gradient in zip(self.gradients, gradients, strict=True):
            if gradient is None:
                view.zero_()
        given = [(view, g) for view, g in zip(self.gradients, gradients, strict=True) if g is not None]
        _copy([view for view, _ in given], [gradient for _, gradient in given])
        self.present.copy_(torch.tensor([float(gradient is not None) for gradient in gradients]))
        self.sums.copy_(sums)
        self._write_changes(failed)
        self.group.all_reduce(self.flat)
        tail = self.tail.tolist()
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
