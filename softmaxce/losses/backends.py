"""Which implementation computes the loss: the CPU's kernels, the GPU's, or the reference in operations of PyTorch."""

from types import ModuleType

import torch
from torch import Tensor, int64

from ..kernels.tracing import is_watched
from . import cuda
from .arguments import PLAIN_TYPES, is_transformed

try:
    from . import cpu
    from .cpu_fast_path import small_batch_fast_path
except ImportError:  # no Numba for this Python or this processor: the reference implementation computes the loss
    cpu = None  # type: ignore[assignment]

__all__ = ["fits_fast_path", "fused_backend", "small_batch_fast_path"]

MAX_SMALL_BATCH = 1 << 15  # logits that one thread computes
FAST_PATH_DTYPES = {torch.float32, torch.float64, torch.bfloat16} if cpu is not None else set()


def fits_fast_path(input: Tensor, target: Tensor) -> bool:
    """Whether these are a small batch's contiguous logits [B, K] and class ids [B] on the CPU.

    This is the usual training step. With 128 images of 10 classes the loss takes as long as some twenty lines of
    Python, so each condition here costs.
    """
    if type(input) is not Tensor or type(target) is not Tensor or is_watched():
        return False  # before the sizes are compared, for torch.export would fix them
    shape, ids_shape = input.shape, target.shape
    return (
        len(shape) == 2
        and len(ids_shape) == 1
        and shape[0] == ids_shape[0]
        and 0 < input.numel() <= MAX_SMALL_BATCH
        and input.is_cpu
        and target.is_cpu
        and input.dtype in FAST_PATH_DTYPES
        and target.dtype is int64
        and input.is_contiguous()
        and target.is_contiguous()
        and not input.is_neg()  # integers never are; torch.compile cannot trace the question
    )


def fused_backend(input: Tensor, target: Tensor, weight: Tensor | None) -> ModuleType | None:
    """The module whose `fused_cross_entropy` computes these arguments; None where the reference has to."""
    if (
        is_transformed(input)
        or type(target) not in PLAIN_TYPES
        or target.requires_grad
        or (weight is not None and weight.requires_grad)
        or not input.numel()
        or input.layout != torch.strided
    ):
        return None
    if input.is_cpu:
        return cpu
    return cuda if input.is_cuda and cuda.available(input.device, input.dtype) else None
