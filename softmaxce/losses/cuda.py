"""Cross-entropy and its gradient on a GPU, for autograd: which kernels run, over what, and what they leave behind.

The kernels are in triton_kernels.py. Nothing here waits for the device: the loss, what its mean divides by and the
upstream gradient stay there, so that a training step can be captured in a CUDA graph (after a step outside of it, as
PyTorch asks for anyway). The logits are never written to.

Where there is no Triton, or it cannot compile for this device, `available` says so and `definition` does the work.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ran_out_of_memory
from ..kernels.tensor_memory import dense, rows

TILE = 4096  # so many logits a program takes at a time
SAVED = 6  # numbers that the forward pass leaves to the backward pass, a row


class Plan(NamedTuple):
    """How a matrix of logits is cut up: each program takes so many rows, and so many of their classes at a time."""

    rows: int
    block: int
    programs: int
    blocks: int
    warps: int


def plan(num_rows: int, num_classes: int) -> Plan:
    """The cut for logits [num_rows, num_classes]: tiles of TILE logits, fewer where rows of few classes are few."""
    block = max(16, min(_power_of_two(num_classes), TILE))
    rows = max(1, min(TILE // block, 128))
    programs = -(-num_rows // rows)
    return Plan(rows, block, programs, -(-num_classes // block), 4 if rows * block < TILE else 8)


def _power_of_two(number: int) -> int:
    """The least power of two that is at least this large."""
    return 1 << (number - 1).bit_length()


class Traffic(NamedTuple):
    """Bytes that a forward and a backward pass read and write, and the fewest with which it could be done."""

    moved: int
    least: int


def traffic(num_rows: int, num_classes: int, dtype: torch.dtype, soft: torch.dtype | None = None) -> Traffic:
    """For a mean without weights, over class ids or over probabilities of the dtype `soft`.

    The least is: in either pass the logits and the labels are read; once the gradient is written.
    """
    cut = plan(num_rows, num_classes)
    logits = num_rows * num_classes * dtype.itemsize
    labels = num_rows * (8 if soft is None else num_classes * soft.itemsize)
    targets = num_rows * dtype.itemsize if soft is None else 0  # each row's target logit is looked up
    per_row = 4 * SAVED * num_rows
    sums = 4 * 2 * cut.programs
    forward = logits + labels + targets + per_row + sums
    reduce = sums + dtype.itemsize + 4
    scalars = (dtype.itemsize + 4) * cut.programs * cut.blocks  # the upstream gradient and the divisor
    backward = logits + (labels if soft else 0) + per_row * cut.blocks + scalars + logits
    return Traffic(forward + reduce + backward, 3 * logits + 2 * labels)


# -- whether it can be used -------------------------------------------------------------------------------------------

_tried: dict[tuple[torch.device, torch.dtype], bool] = {}


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels work for logits of this dtype on this device. It is tried once, on a few numbers."""
    key = device, dtype
    if key not in _tried:
        if torch.cuda.is_current_stream_capturing():
            return False  # this is not the time to compile; it is asked again
        _tried[key] = dtype != torch.float64 and _work(device, dtype)
    return _tried[key]


def _work(device: torch.device, dtype: torch.dtype) -> bool:
    """Compute a loss and its gradient, twice, and compare with the definition."""
    from .reference import definition

    had_notes = device in _wrong
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = torch.linspace(-2, 3, 20, device=device).view(2, 10).to(dtype).requires_grad_()
            target = torch.tensor([9, 4], device=device)
            exact = definition(logits.double(), target)
            (slope,) = torch.autograd.grad(exact, logits)
            for _ in range(2):
                loss = fused_cross_entropy(logits, target, None, -100, "mean", 0.0, torch.float32)
                (gradient,) = torch.autograd.grad(loss, logits)
                close = torch.allclose(gradient, slope, rtol=0.02, atol=1e-6)
                if not (close and torch.allclose(loss.double(), exact)):
                    raise ArithmeticError("the kernels are wrong")
    except Exception as error:  # no Triton, no compiler for its launcher, a GPU it does not know, ...
        if ran_out_of_memory(error):
            raise
        if not had_notes:  # else the kernels work there for another dtype
            _wrong.pop(device, None)
        return False
    return True


# -- class ids that are none ------------------------------------------------------------------------------------------

_wrong: dict[torch.device, Tensor] = {}  # for each device [an id that is no class, the number of classes], or zeros


def _wrong_ids(device: torch.device) -> Tensor:
    if device not in _wrong:
        with torch.inference_mode(False):  # it outlives the mode that is on now
            _wrong.setdefault(device, torch.zeros(2, dtype=torch.int64, device=device))  # another thread's stays
    return _wrong[device]


def check_class_ids() -> None:
    """Raise the error for a class id out of range that a loss on a GPU has met since the last call.

    To raise it where it is met, the program would have to wait for the device in each step. So the kernel notes the id
    on the device and makes the row's loss NaN, and whoever waits for the device anyway calls this: training does, at
    the end of each epoch. It waits for each device that has computed a loss; on the CPU there is nothing to wait for,
    as the loss itself raises the error.

    Raises: IndexError, with the class id.
    """
    for wrong in _wrong.values():
        class_id, num_classes = wrong.tolist()
        if num_classes:
            from .arguments import out_of_range

            wrong.zero_()
            raise IndexError(out_of_range(class_id, [], num_classes))


# -- for autograd -----------------------------------------------------------------------------------------------------


def fused_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Tensor:
    """Cross-entropy of logits [N, K] and its gradient; the arguments are those of `cross_entropy`, checked.

    Args:
        target: [N] int64 class ids or [N, K] probabilities.
        dtype: of the result.
    Returns: [N] for the reduction "none", else a scalar. A class id out of range makes it NaN; see check_class_ids.
    """
    if dtype == torch.float64:  # soft labels or weights have made it so
        from .reference import definition

        return definition(logits, target, weight, ignore_index, reduction, label_smoothing).to(dtype)
    loss: Tensor = _Fused.apply(logits, target, weight, ignore_index, reduction, label_smoothing, dtype)
    return loss


class _Launch(NamedTuple):
    """What both passes give to their kernels alike."""

    logits: Tensor
    labels: Tensor
    weight: Tensor | None
    constants: dict[str, Any]
    strides: tuple[int, int]  # of the logits' rows and the labels'
    spread: float
    share: float


def _launch(logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float) -> _Launch:
    from ..kernels import triton_cross_entropy as kernels

    num_rows, num_classes = logits.shape
    logits, stride = rows(logits)
    labels, label_stride = rows(target) if target.ndim == 2 else (dense(target), 1)
    _check_sizes(num_rows, num_classes, labels, weight)
    kind = kernels.SOFT if target.ndim == 2 else kernels.SMOOTH if label_smoothing > 0 else kernels.IDS
    constants = {
        "KIND": kind.value,
        "WEIGHTED": weight is not None,
        "EXACT": logits.dtype == torch.float32,
        "REDUCED": reduction != "none",
    }
    weight = None if weight is None else dense(weight)
    strides = stride, label_stride
    return _Launch(logits, labels, weight, constants, strides, label_smoothing / num_classes, 1.0 - label_smoothing)


def _check_sizes(num_rows: int, num_classes: int, labels: Tensor, weight: Tensor | None) -> None:
    """Raises: ValueError if labels or weights are not as many as the kernels would read."""
    if labels.shape not in ((num_rows,), (num_rows, num_classes)) or (
        weight is not None and len(weight) != num_classes
    ):
        raise ValueError(
            f"the kernels expect targets and weights for logits {[num_rows, num_classes]}, got targets "
            f"{list(labels.shape)}; a tensor that autograd has saved must not be resized before the backward pass"
        )


class _Fused(torch.autograd.Function):
    """The kernels as one node of the graph. Any number of backward passes may follow a forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        dtype: torch.dtype,
    ) -> Tensor:
        from ..kernels import triton_cross_entropy as kernels

        launch = _launch(logits, target, weight, reduction, label_smoothing)
        num_rows, num_classes = logits.shape
        cut = plan(num_rows, num_classes)
        saved = logits.new_empty(SAVED, num_rows, dtype=torch.float32)
        reduced = reduction != "none"
        sums = logits.new_empty(2, cut.programs, dtype=torch.float32) if reduced else None
        divisor = logits.new_empty((), dtype=torch.float32) if reduced else None
        result = logits.new_empty(() if reduced else num_rows, dtype=dtype)
        with torch.cuda.device_of(logits):
            kernels.forward[(cut.programs,)](
                launch.logits,
                launch.labels,
                launch.weight,
                None if reduced else result,
                sums,
                saved,
                _wrong_ids(logits.device),
                num_rows,
                num_classes,
                *launch.strides,
                ignore_index,
                launch.spread,
                launch.share,
                **launch.constants,
                ROWS=cut.rows,
                BLOCK=cut.block,
                num_warps=cut.warps,
            )
            if reduced:
                block = min(_power_of_two(cut.programs), TILE)
                kernels.reduce[(1,)](sums, result, divisor, cut.programs, MEAN=reduction == "mean", BLOCK=block)
        ctx.save_for_backward(logits, target, weight, saved, divisor)
        ctx.arguments = ignore_index, reduction, label_smoothing
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, saved, divisor = ctx.saved_tensors
        rest = (None,) * 6
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            from .reference import definition

            loss = definition(logits, target, weight, *ctx.arguments)
            return *torch.autograd.grad(loss, logits, upstream.to(loss.dtype), create_graph=True), *rest
        from ..kernels import triton_cross_entropy as kernels

        _, reduction, label_smoothing = ctx.arguments
        launch = _launch(logits, target, weight, reduction, label_smoothing)
        num_rows, num_classes = logits.shape
        cut = plan(num_rows, num_classes)
        if upstream.ndim:
            upstream = dense(upstream)
        gradient = logits.new_empty(logits.shape)
        with torch.cuda.device_of(logits):
            kernels.backward[(cut.programs, cut.blocks)](
                launch.logits,
                launch.labels,
                launch.weight,
                saved,
                upstream,
                divisor,
                gradient,
                num_rows,
                num_classes,
                *launch.strides,
                1 if upstream.ndim else 0,
                launch.spread,
                launch.share,
                **launch.constants,
                ROWS=cut.rows,
                BLOCK=cut.block,
                num_warps=cut.warps,
            )
        return gradient, *rest
