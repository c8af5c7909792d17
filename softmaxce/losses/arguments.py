"""The arguments of cross-entropy: their checks, and the dtypes of the arithmetic and of the result."""

import operator
import warnings

import torch
from torch import Tensor

from ..kernels.tracing import is_watched

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PLAIN_TYPES = {Tensor, torch.nn.Parameter}  # a subclass may redefine every operation


class InvalidArgumentError(ValueError, RuntimeError):
    """An argument that cross-entropy refuses. PyTorch raises a RuntimeError for some, a ValueError for others."""


# -- shapes and dtypes ------------------------------------------------------------------------------------------------


def classes_last(tensor: Tensor) -> Tensor:
    """[B, K, d1, ...] -> [B, d1, ..., K]; [B, K] and [K] as they are."""
    return tensor if tensor.ndim < 3 else tensor.movedim(1, -1)


def num_classes_of(input: Tensor) -> int:
    """K of logits [K], [B, K] or [B, K, d1, ...]."""
    return input.shape[0 if input.ndim == 1 else 1]


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of this dtype are computed."""
    return dtype if dtype == torch.float64 else torch.float32


def result_dtype(input: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """The loss's dtype: that of the logits, promoted by soft targets; under autocast float32, not 16 bits."""
    dtype = input.dtype
    if target.is_floating_point() and target.dtype != dtype:
        dtype = torch.promote_types(dtype, target.dtype)
    if weight is not None and weight.dtype != dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if dtype.itemsize == 2 and torch.is_autocast_enabled(input.device.type):
        dtype = torch.float32
    return dtype


def is_transformed(tensor: Tensor) -> bool:
    """Whether PyTorch, or the tensor's own type, has to see each operation on it."""
    return type(tensor) not in PLAIN_TYPES or is_watched()


# -- checks -----------------------------------------------------------------------------------------------------------


def check_arguments(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> None:
    """Refuse what PyTorch refuses, with the argument that does not fit. Raises: as cross_entropy."""
    check_is_tensor("input", input)
    check_is_tensor("target", target)
    ignore_index = as_int64("ignore_index", ignore_index)
    check_options(reduction, label_smoothing)
    if input.dtype not in FLOATS:
        raise InvalidArgumentError(f"input must be float32, float64, bfloat16 or float16 logits, got {input.dtype}")
    if not input.ndim:
        raise InvalidArgumentError("input must be [K], [B, K] or [B, K, d1, ...] logits, got a scalar")
    if target.device != input.device:
        raise InvalidArgumentError(f"target is on {target.device}, input on {input.device}; move one with .to(device)")
    if target.shape == input.shape:
        if not target.is_floating_point():
            raise InvalidArgumentError(
                f"target has the shape of input, {list(input.shape)}: it must hold probabilities (float), "
                f"got {target.dtype}"
            )
        if ignore_index >= 0:
            raise InvalidArgumentError(f"ignore_index {ignore_index} goes with class ids, not with probabilities")
    else:
        _check_ids_tensor(input, target)
    if weight is not None:
        _check_weight(input, target, weight)


def check_is_tensor(name: str, value: object) -> None:
    """Raises: TypeError, if an argument is a list, a number or an array."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


def check_options(reduction: str, label_smoothing: float) -> None:
    """Raises: InvalidArgumentError, if one of the two is not a value that it may have."""
    if reduction not in ("mean", "sum", "none"):
        raise InvalidArgumentError(f"reduction must be mean, sum or none, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise InvalidArgumentError(f"label_smoothing must be in [0, 1], got {label_smoothing}")


def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """The reduction that PyTorch's older arguments stand for, with its warning."""
    by_size = size_average is None or size_average
    reduction = ("mean" if by_size else "sum") if reduce is None or reduce else "none"
    warnings.warn(f"size_average and reduce are deprecated; use reduction='{reduction}'", UserWarning, stacklevel=3)
    return reduction


def _check_ids_tensor(input: Tensor, target: Tensor) -> None:
    """Refuse class ids of another shape than the logits need, or of another dtype than int64 and uint8."""
    shape = input.shape
    expected = shape[:1] + shape[2:] if len(shape) > 1 else torch.Size()
    if target.shape != expected and not (len(shape) == 1 and target.shape == (1,)):
        raise InvalidArgumentError(
            f"target must be {list(expected)} class ids or {list(shape)} probabilities for input {list(shape)}, "
            f"got {list(target.shape)}"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise InvalidArgumentError(f"class ids must be int64 (or uint8), got {target.dtype}; use target.long()")


def _check_weight(input: Tensor, target: Tensor, weight: Tensor) -> None:
    check_weight_shape(weight, num_classes_of(input))
    if target.shape != input.shape:
        if weight.requires_grad:
            raise InvalidArgumentError("weight cannot require a gradient where the target holds class ids")
        if weight.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise InvalidArgumentError(
                f"weight must have input's dtype, {input.dtype}, got {weight.dtype}; use weight.to(input.dtype)"
            )


def check_weight_shape(weight: Tensor, num_classes: int) -> None:
    """Raises: InvalidArgumentError, if the class weights are not [num_classes]."""
    if weight.shape != (num_classes,):
        raise InvalidArgumentError(
            f"weight must have one entry for each of {num_classes} classes, got the shape {list(weight.shape)}"
        )


def as_int64(name: str, value: object) -> int:
    """An argument that PyTorch takes as a whole number: an int, a NumPy integer or a tensor that holds one.

    Raises: TypeError, for a bool or a float too; InvalidArgumentError if it does not fit in int64.
    """
    if type(value) is not int:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError(f"{name} must be an int, got the bool {value}")
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(f"{name} must fit in int64, got {value}")
    return value


def check_class_ids(target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raises: IndexError if a class id is outside [0, num_classes). Not on a GPU, for which one would have to wait."""
    if target.device.type != "cpu" or not target.numel() or is_transformed(target):
        return
    invalid = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        invalid &= target != ignore_index
    if invalid.any():
        index = invalid.nonzero()[0].tolist()
        raise IndexError(out_of_range_message(int(target[tuple(index)]), index, num_classes))


def out_of_range_message(class_id: int, index: list[int], num_classes: int) -> str:
    """The message of an IndexError for a class id, with its index in the target where that is known (not [])."""
    where = f" (at {index} of the target)" if index else ""
    return f"class id {class_id}{where} is out of range: with {num_classes} classes ids go from 0 to {num_classes - 1}"
