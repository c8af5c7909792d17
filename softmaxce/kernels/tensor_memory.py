"""Tensors as addresses: what a compiled kernel may read and write.

A kernel gets an address and sizes, not PyTorch's strides and flags. The numbers at `data_ptr()` are the tensor's, in
order, only if its strides say so, and strides say nothing in a dimension of size 1: a contiguous [1, K] tensor may have
any stride between its (one) rows. Three more things that a tensor's type and shape do not show: rows may overlap
(`expand`, `unfold`, `as_strided`), the numbers may have to be negated (`conj().imag` and other negative views), and
there may be no memory at all (PyTorch's zero tensors of forward-mode differentiation).
"""

import torch
from torch import Tensor


def _no_zero_tensors(tensor: Tensor) -> bool:
    return False


# A private name of torch, of which this is the only use. In a version without it a zero tensor would be refused by
# `address`, as it has no memory.
_is_zero_tensor = getattr(Tensor, "_is_zerotensor", _no_zero_tensors)


def has_own_numbers(tensor: Tensor) -> bool:
    """Whether the numbers in memory are the tensor's: it is no negative view and no zero tensor."""
    return not tensor.is_neg() and not _is_zero_tensor(tensor)


def dense(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The tensor with its numbers one after the other from `data_ptr()` on: itself if that is so, else a copy."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if _is_zero_tensor(tensor):
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.contiguous(memory_format=memory_format)


def rows(matrix: Tensor) -> tuple[Tensor, int]:
    """A matrix [N, K] whose rows a kernel may read, and its stride: by how many numbers the rows' starts differ.

    Returns: the matrix itself if its rows are dense and do not overlap, else a dense copy; a stride of at least K.
    """
    stride, step = matrix.stride()
    num_columns = matrix.shape[1]
    if step == 1 and stride >= num_columns and has_own_numbers(matrix):
        return matrix, stride
    return dense(matrix), num_columns


def address(
    tensor: Tensor, dtype: torch.dtype, size: int, memory_format: torch.memory_format = torch.contiguous_format
) -> int:
    """The address at which a kernel may read or write `size` numbers of this dtype.

    Raises: ValueError if the tensor does not fit: another size, dtype or device, not dense, or without memory.
    """
    if tensor.dtype != dtype or tensor.numel() != size or not tensor.is_cpu:
        raise ValueError(
            f"a kernel expects {size} numbers of {dtype} on the CPU, got {tensor.numel()} of {tensor.dtype} on "
            f"{tensor.device}; a tensor that autograd has saved must not be resized before the backward pass"
        )
    if not tensor.is_contiguous(memory_format=memory_format) or tensor.is_neg():
        raise ValueError(f"a kernel expects a dense tensor, got the strides {tensor.stride()}")
    pointer = tensor.data_ptr()
    if not pointer and size:
        raise ValueError("a kernel got a tensor whose memory has been freed")
    return pointer
