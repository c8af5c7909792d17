"""What cross-entropy accepts: the checks of its arguments, the dtypes it computes in and returns."""

import operator

import torch
from torch import Tensor, nn

from ..kernels.tracing import is_watched

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class InvalidArgumentError(ValueError, RuntimeError):
    """An argument that cross-entropy refuses. PyTorch calls some of these a RuntimeError and some a ValueError."""


def _classes_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim < 3 else tensor.movedim(1, -1)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this dtype are computed in."""
    return dtype if dtype == torch.float64 else torch.float32


def _result_dtype(input: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """The loss's dtype: that of the logits, promoted by soft targets; under autocast float32, not 16 bits."""
    dtype = input.dtype
    if target.is_floating_point() and target.dtype != dtype:
        dtype = torch.promote_types(dtype, target.dtype)
    if weight is not None and weight.dtype != dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if dtype.itemsize == 2 and torch.is_autocast_enabled(input.device.type):
        dtype = torch.float32
    return dtype


def _check(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> None:
    """Refuse what PyTorch refuses, and say where it does not fit. Raises: as cross_entropy."""
    for name, value in (("input", input), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    ignore_index = as_int64("ignore_index", ignore_index)
    if reduction not in ("mean", "sum", "none"):
        raise InvalidArgumentError(f"reduction must be mean, sum or none, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise InvalidArgumentError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if input.dtype not in FLOATS:
        raise InvalidArgumentError(f"input must be float32, float64, bfloat16 or float16 logits, got {input.dtype}")
    shape = input.shape
    if not shape:
        raise InvalidArgumentError("input must be [K], [B, K] or [B, K, d1, ...] logits, got a scalar")
    if target.device != input.device:
        raise InvalidArgumentError(f"target is on {target.device}, input on {input.device}; move one with .to(device)")
    num_classes = shape[0 if len(shape) == 1 else 1]
    if target.shape == shape:
        if not target.is_floating_point():
            raise InvalidArgumentError(
                f"target has the shape of input, {list(shape)}: it must hold probabilities (float), got {target.dtype}"
            )
        if ignore_index >= 0:
            raise InvalidArgumentError(f"ignore_index {ignore_index} goes with class ids, not with probabilities")
    else:
        expected = shape[:1] + shape[2:] if len(shape) > 1 else torch.Size()
        if target.shape != expected and not (len(shape) == 1 and target.shape == (1,)):
            raise InvalidArgumentError(
                f"target must be {list(expected)} class ids or {list(shape)} probabilities for input {list(shape)}, "
                f"got {list(target.shape)}"
            )
        if target.dtype not in (torch.int64, torch.uint8):
            raise InvalidArgumentError(f"class ids must be int64 (or uint8), got {target.dtype}; use target.long()")
    if weight is not None:
        if weight.shape != (num_classes,):
            raise InvalidArgumentError(
                f"weight must have one entry for each of {num_classes} classes, got the shape {list(weight.shape)}"
            )
        if target.shape != shape:
            if weight.requires_grad:
                raise InvalidArgumentError("weight cannot require a gradient where the target holds class ids")
            if weight.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
                raise InvalidArgumentError(
                    f"weight must have input's dtype, {input.dtype}, got {weight.dtype}; use weight.to(input.dtype)"
                )


def as_int64(name: str, value: object) -> int:
    """A whole number that PyTorch takes as one: an int, a NumPy integer or a tensor with one; not a bool or a float.

    Raises: TypeError; InvalidArgumentError if it does not fit in int64.
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


def _check_ids(target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raises: IndexError if a class id is outside [0, num_classes). On another device looking would be a wait."""
    if target.device.type != "cpu" or not target.numel() or _is_transformed(target):
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise IndexError(out_of_range(int(target[tuple(place)]), place, num_classes))


def out_of_range(class_id: int, place: list[int], num_classes: int) -> str:
    """The message of an IndexError for the class id at a place of the target."""
    where = f" (at {place} of the target)" if place else ""
    return f"class id {class_id}{where} is out of range: with {num_classes} classes ids go from 0 to {num_classes - 1}"


def _is_transformed(tensor: Tensor) -> bool:
    """Whether PyTorch is tracing, transforming or watching operations: it must then see each of them."""
    return type(tensor) not in _PLAIN or is_watched()


_PLAIN = {Tensor, nn.Parameter}
