"""Cross-entropy and its gradient on a GPU as one node of autograd's graph: it launches the Triton kernels.

Experimental: the kernels have been tested in Triton's interpreter and compiled for NVIDIA GPUs, but no release has been
measured on one. That is why `available` compares them with the reference on each device before they are first used.

The kernels are in kernels/triton_cross_entropy.py. Nothing here waits for the device: the loss, what its mean divides
by and the upstream gradient stay there, so that a training step can be captured in a CUDA graph (after a step outside
of it, as PyTorch requires anyway). The logits are never written to.

Where there is no Triton, or it cannot compile for this device, or the results differ, the reference implementation in
operations of PyTorch is used.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ran_out_of_memory
from ..kernels.tensor_memory import dense, rows
from . import reference
from .arguments import out_of_range_message

TILE = 4096  # logits that a program loads at a time
SAVED = 6  # numbers for each row that the forward pass saves for the backward pass


class LaunchPlan(NamedTuple):
    """How a matrix of logits is tiled: each program computes `rows` rows, `block` classes at a time."""

    rows: int
    block: int
    programs: int
    blocks: int
    warps: int


def launch_plan(num_rows: int, num_classes: int) -> LaunchPlan:
    """For logits [num_rows, num_classes]: tiles of TILE logits, smaller where few classes would make too many rows."""
    block = max(16, min(_power_of_two(num_classes), TILE))
    rows = max(1, min(TILE // block, 128))
    programs = -(-num_rows // rows)
    return LaunchPlan(rows, block, programs, -(-num_classes // block), 4 if rows * block < TILE else 8)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


# -- whether the kernels can be used ----------------------------------------------------------------------------------

_tested: dict[tuple[torch.device, torch.dtype], bool] = {}


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels work for logits of this dtype on this device: tested once, on a few numbers."""
    key = device, dtype
    if key not in _tested:
        if torch.cuda.is_current_stream_capturing():
            return False  # nothing can be compiled during a capture; the next call tests it
        _tested[key] = dtype != torch.float64 and _work(device, dtype)
    return _tested[key]


def _work(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a loss and its gradient, computed twice, are the reference's."""
    is_known = device in _invalid_ids
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = torch.linspace(-2, 3, 20, device=device).view(2, 10).to(dtype).requires_grad_()
            target = torch.tensor([9, 4], device=device)
            exact = reference.cross_entropy(logits.double(), target)
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
        if not is_known:  # else the kernels work there for another dtype
            _invalid_ids.pop(device, None)
        return False
    return True


# -- class ids out of range -------------------------------------------------------------------------------------------

_invalid_ids: dict[torch.device, Tensor] = {}  # for each device [a class id out of range, K], or zeros


def _invalid_id_of(device: torch.device) -> Tensor:
    if device not in _invalid_ids:
        with torch.inference_mode(False):  # it outlives the mode that is on now
            _invalid_ids.setdefault(device, torch.zeros(2, dtype=torch.int64, device=device))  # another thread's stays
    return _invalid_ids[device]


def check_class_ids() -> None:
    """Raise the error for a class id out of range that a loss on a GPU has met since the last call.

    To raise it at once, the program would have to wait for the device in each step. So the kernel stores the id on the
    device and makes the row's loss NaN, and a caller that waits for the device anyway calls this: training does, at the
    end of each epoch. It waits for each device that has computed a loss; on the CPU the loss itself raises the error.

    Raises: IndexError, with the class id.
    """
    for invalid in _invalid_ids.values():
        class_id, num_classes = invalid.tolist()
        if num_classes:
            invalid.zero_()
            raise IndexError(out_of_range_message(class_id, [], num_classes))


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
    if dtype == torch.float64:  # promoted by soft labels or weights
        return reference.cross_entropy(logits, target, weight, ignore_index, reduction, label_smoothing).to(dtype)
    loss: Tensor = _FusedCrossEntropy.apply(logits, target, weight, ignore_index, reduction, label_smoothing, dtype)
    return loss


class _KernelArguments(NamedTuple):
    """What the forward and the backward kernel both take."""

    logits: Tensor
    labels: Tensor
    weight: Tensor | None
    constants: dict[str, Any]
    strides: tuple[int, int]  # of the logits' rows and the labels'
    uniform_mass: float
    target_mass: float


def _kernel_arguments(
    logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> _KernelArguments:
    from ..kernels import triton_cross_entropy as kernels  # here, as there may be no Triton

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
    uniform_mass, target_mass = label_smoothing / num_classes, 1.0 - label_smoothing
    return _KernelArguments(logits, labels, weight, constants, strides, uniform_mass, target_mass)


def _check_sizes(num_rows: int, num_classes: int, labels: Tensor, weight: Tensor | None) -> None:
    """Raises: ValueError if there are not as many labels or weights as the kernels read."""
    if labels.shape not in ((num_rows,), (num_rows, num_classes)) or (
        weight is not None and len(weight) != num_classes
    ):
        raise ValueError(
            f"the kernels expect targets and weights for logits {[num_rows, num_classes]}, got targets "
            f"{list(labels.shape)}; a tensor that autograd has saved must not be resized before the backward pass"
        )


class _FusedCrossEntropy(torch.autograd.Function):
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

        shared = _kernel_arguments(logits, target, weight, reduction, label_smoothing)
        num_rows, num_classes = logits.shape
        plan = launch_plan(num_rows, num_classes)
        saved = logits.new_empty(SAVED, num_rows, dtype=torch.float32)
        reduced = reduction != "none"
        sums = logits.new_empty(2, plan.programs, dtype=torch.float32) if reduced else None
        divisor = logits.new_empty((), dtype=torch.float32) if reduced else None
        result = logits.new_empty(() if reduced else num_rows, dtype=dtype)
        with torch.cuda.device_of(logits):
            kernels.forward[(plan.programs,)](
                shared.logits,
                shared.labels,
                shared.weight,
                None if reduced else result,
                sums,
                saved,
                _invalid_id_of(logits.device),
                num_rows,
                num_classes,
                *shared.strides,
                ignore_index,
                shared.uniform_mass,
                shared.target_mass,
                **shared.constants,
                ROWS=plan.rows,
                BLOCK=plan.block,
                num_warps=plan.warps,
            )
            if reduced:
                block = min(_power_of_two(plan.programs), TILE)
                kernels.reduce[(1,)](sums, result, divisor, plan.programs, MEAN=reduction == "mean", BLOCK=block)
        ctx.save_for_backward(logits, target, weight, saved, divisor)
        ctx.arguments = ignore_index, reduction, label_smoothing
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, saved, divisor = ctx.saved_tensors
        rest = (None,) * 6
        if torch.is_grad_enabled():  # create_graph: the gradient will be differentiated
            loss = reference.cross_entropy(logits, target, weight, *ctx.arguments)
            return *torch.autograd.grad(loss, logits, upstream.to(loss.dtype), create_graph=True), *rest
        from ..kernels import triton_cross_entropy as kernels

        _, reduction, label_smoothing = ctx.arguments
        shared = _kernel_arguments(logits, target, weight, reduction, label_smoothing)
        num_rows, num_classes = logits.shape
        plan = launch_plan(num_rows, num_classes)
        if upstream.ndim:
            upstream = dense(upstream)
        gradient = logits.new_empty(logits.shape)
        with torch.cuda.device_of(logits):
            kernels.backward[(plan.programs, plan.blocks)](
                shared.logits,
                shared.labels,
                shared.weight,
                saved,
                upstream,
                divisor,
                gradient,
                num_rows,
                num_classes,
                *shared.strides,
                1 if upstream.ndim else 0,
                shared.uniform_mass,
                shared.target_mass,
                **shared.constants,
                ROWS=plan.rows,
                BLOCK=plan.block,
                num_warps=plan.warps,
            )
        return gradient, *rest
