"""What the CPU's kernels for long and for short rows share: the options, and a row's loss from its exponentials."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .numbers import LN_2, f64, headroom, log1p, order

# Products may be fused with the sum they go into (one rounding less). Only sums may be reordered too, to be vectorized.
CONTRACT = {"contract"}
REORDER = {"contract", "reassoc", "nsz"}

# What a kernel has to do, as bits of `options`; see CrossEntropyJob.
WEIGHT, SMOOTH, SOFT, UPSTREAM, LOSSES, GRADIENT, VALIDATE, MEAN = (1 << bit for bit in range(8))


class Step(NamedTuple):
    """The numbers that are the same for every row; see `CrossEntropyJob`."""

    num_classes: Any
    ignore_index: Any
    options: Any
    uniform_mass: Any
    target_mass: Any
    scale: Any


@njit(forceinline=True)
def is_finite(largest: Any, smallest: Any, like: Any) -> Any:
    """Whether a row with these extremes has no NaN and no +infinity, and not only -infinity."""
    lowest, highest = order(like(-np.inf)), order(like(np.inf))
    return lowest < largest and largest < highest and smallest >= lowest


@njit(error_model="numpy", forceinline=True)
def add_exactly(total: Any, lost: Any, value: Any, like: Any) -> Any:
    """total + value, and `lost` with what that sum has rounded away (Knuth's TwoSum), both float64.

    Where `like`, an array of the arithmetic's numbers, is float32, `lost` stays 0: it would be too small to show.
    """
    new = total + value
    if like.itemsize == 4:  # a constant of the compilation
        return new, lost
    added = new - total
    return new, lost + ((total - (new - added)) + (value - added))


@njit(error_model="numpy", forceinline=True)
def compensated(total: Any, lost: Any) -> Any:
    """A sum with what was rounded away; as it is where it is infinite or NaN, for which `lost` is NaN."""
    return total + lost if abs(total) < np.inf else total


@njit(error_model="numpy", forceinline=True)
def minus_log_softmax(rest: Any, e_y: Any, x_y: Any, offset: Any, lowest: Any, k: Any) -> Any:
    """-log S_y in float64, with all digits: from rest / e_y, unless e_y has underflowed, and then from x_y."""
    ratio = rest / e_y
    if x_y - offset > lowest and ratio < np.inf:
        return log1p(ratio)
    return math.log(rest + e_y) + (k - headroom(x_y)) * LN_2 + (offset - f64(x_y))


@njit(error_model="numpy", forceinline=True)
def distribution_loss(
    total: Any, label_y: Any, product: Any, loss_y: Any, x_y: Any, origin: Any, sum_of_e: Any, offset: Any, k: Any
) -> Any:
    """T (-log S_y) - sum_i Q_i (x_i - x_y), where Q sums to T, and `product` is the second sum with `origin` for x_y.

    The origin is x_y, unless that is -infinity: then the loss is infinite if Q_y is not 0, and else any origin will do.
    """
    if x_y == origin:
        return total * loss_y - product
    from_origin = math.log(sum_of_e) + (k - headroom(x_y)) * LN_2 + (offset - origin)
    return total * from_origin - product if label_y == 0 else np.inf
