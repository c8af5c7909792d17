"""Cross-entropy and its gradient on the CPU: one walk over the rows, compiled by Numba.

The arithmetic is that of `definition` in cross_entropy.py, written as the loops a processor runs. For each row:

1. Its largest logit. From it comes k, by which every exponent of two is lowered, so that exp cannot overflow.
2. e_i = exp(x_i) / 2^k, the costly step: a polynomial and a shift of the exponent, without a branch, as many numbers at
   once as the processor has room for. Nothing is subtracted from x_i first, for that would round: a float32 difference
   of 40 is off by up to 2e-6, and so would be its exp.
3. rest = the sum of e without the target's own term e_y. Then -log S_y = log1p(rest / e_y) and 1 - S_y = rest / (rest +
   e_y): neither cancels, however sure the model is. Where e_y has underflowed, the loss comes from the logits: it is
   log sum - x_y.
4. The loss T (-log S_y) - sum_i Q_i (x_i - x_y) and the gradient T S - Q, where Q is the label (one-hot, smoothed,
   weighted or soft) and T its sum: for a one-hot label -log S_y and S - L. The gradient is written once and rounded
   once, and no second array of its size is made.

Rows of a few classes are too short for the processor's lanes, so there the same is done for many rows side by side.

16-bit logits are widened to float32 as they are read. A long sum is made of short ones, which are added in float64.
Numba compiles the walk when it is first needed, for each dtype, for short rows and for long ones, and keeps the machine
code on disk: only a machine's first run waits for it.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import overload
from torch import Tensor, bfloat16, empty_like, is_grad_enabled, scalar_tensor

from ..kernels.numba_runtime import at, compiled, parts_of, run, take_part
from ..kernels.tensor_memory import address, dense, rows

f32, f64, i16, i32, i64, u16, u32 = np.float32, np.float64, np.int16, np.int32, np.int64, np.uint16, np.uint32

# Products may be fused with the sum they go into (one rounding less). Only sums may also be reordered, to run in lanes.
CONTRACT = {"contract"}
REORDER = {"contract", "reassoc", "nsz"}

SHORT = 2048  # numbers summed in their own dtype before the sum goes on in float64
FEW_CLASSES = 32  # below, rows are computed side by side
ABREAST = 128  # so many of them


# -- numbers ----------------------------------------------------------------------------------------------------------
#
# Each of these is one operation for all the kinds of number that logits come in. To Numba, bfloat16 is uint16 and
# float16 is int16: their bits, which it cannot confuse. ACCUMULATE says in what each kind is computed.

KINDS = {
    torch.float32: f32,
    torch.float64: f64,
    torch.bfloat16: u16,
    torch.float16: i16,
}
ACCUMULATE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def widen(x: Any) -> Any:
    """A logit as the number it is computed with: 16-bit ones as float32."""


@overload(widen)
def _widen(x: Any) -> Any:
    def bfloat16(x: Any) -> Any:
        bits = i32(i32(x) << i32(16))
        return bits.view(f32)

    def float16(x: Any) -> Any:
        bits = i32(x)
        magnitude = i32(i32(bits & i32(0x7FFF)) << i32(13))
        number = f32(magnitude.view(f32) * f32(2.0**112))  # float32's exponents are so much smaller
        special = i32(0x7F800000) if magnitude >= i32(0x0F800000) else i32(0)  # infinite or NaN
        result = i32(i32(number.view(i32) | special) | i32(i32(bits & i32(0x8000)) << i32(16)))
        return result.view(f32)

    def itself(x: Any) -> Any:
        return x

    return {types.uint16: bfloat16, types.int16: float16}.get(x, itself)


def narrow(x: Any, like: Any) -> Any:
    """A number of the arithmetic as one of the array `like`, rounded to nearest, ties to even."""


@overload(narrow)
def _narrow(x: Any, like: Any) -> Any:
    def bfloat16(x: Any, like: Any) -> Any:
        number = f32(x)
        bits = number.view(u32)
        half = u32(u32(0x7FFF) + u32(u32(bits >> u32(16)) & u32(1)))
        rounded = u32(u32(bits + half) >> u32(16))
        return u16(rounded) if number == number else u16(0x7FC0)

    def float16(x: Any, like: Any) -> Any:
        number = f32(x)
        bits = number.view(i32)
        sign = i32(i32(bits >> i32(16)) & i32(0x8000))
        magnitude = i32(bits & i32(0x7FFFFFFF))
        absolute = magnitude.view(f32)
        # Below float16's normal numbers the processor's own addition rounds: the sum's last bits are the result.
        shifted = f32(absolute + f32(0.5))
        small = i32(shifted.view(i32) - i32(0x3F000000))
        odd = i32(i32(magnitude >> i32(13)) & i32(1))
        normal = i32(i32(i32(magnitude - i32(112 << 23)) + i32(i32(0xFFF) + odd)) >> i32(13))
        result = small if magnitude < i32(113 << 23) else normal
        result = i32(0x7C00) if magnitude >= i32(0x477FF000) else result  # 65520 and more round to infinity
        result = i32(0x7E00) if magnitude > i32(0x7F800000) else result
        return i16(i32(result | sign))

    def itself(x: Any, like: Any) -> Any:
        return like.dtype.type(x)

    return {types.uint16: bfloat16, types.int16: float16}.get(like.dtype, itself)


def order(x: Any) -> Any:
    """A float as an integer that compares as it does: whole rows are compared in lanes. NaN lies outside +-infinity."""


@overload(order)
def _order(x: Any) -> Any:
    def float32(x: Any) -> Any:
        number = f32(x)
        bits = number.view(i32)
        return i32(bits ^ i32(i32(bits >> i32(31)) & i32(0x7FFFFFFF)))

    def float64(x: Any) -> Any:
        number = f64(x)
        bits = number.view(i64)
        return i64(bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF))

    return float32 if x == types.float32 else float64


def unorder(x: Any) -> Any:
    """The float that `order` made an integer of."""


@overload(unorder)
def _unorder(x: Any) -> Any:
    def float32(x: Any) -> Any:
        bits = i32(x ^ i32(i32(x >> i32(31)) & i32(0x7FFFFFFF)))
        return bits.view(f32)

    def float64(x: Any) -> Any:
        bits = i64(x ^ ((x >> 63) & 0x7FFFFFFFFFFFFFFF))
        return bits.view(f64)

    return float32 if x == types.int32 else float64


# exp(x) = 2^n exp(r), where n = round(x / ln 2) and |r| <= ln(2) / 2. Adding MAGIC rounds: it leaves n in the number's
# last bits, from where a shift takes it to the exponent; n - k is what goes there, so that no row overflows. MAGIC adds
# HEADROOM to n: results are 2^HEADROOM larger, and stay normal numbers down to DEPTH below the row's largest logit,
# where exp times any sensible factor rounds to 0. ln 2 is taken off in two parts, the first with so few bits
# that its product with n is exact (Cody and Waite 1980) while |x| < LIMIT.
LOG2_E, LN_2 = math.log2(math.e), math.log(2.0)
HEADROOM_32, DEPTH_32, LIMIT_32, LN2_32 = 48, 119.0, 8192.0, (f32(355 / 512), f32(-2.1219444005469057e-4))
HEADROOM_64, DEPTH_64, LIMIT_64, LN2_64 = 192, 835.0, 1048576.0, (0.693145751953125, 1.4286068203094173e-6)
MAGIC_32, MAGIC_64 = f32(1.5 * 2**23 + HEADROOM_32), 1.5 * 2.0**52 + HEADROOM_64
# exp(r) = 1 + r + r^2 (P_0 + P_1 r + ...): in float32 the polynomial of least relative error (3e-9), in float64
# Taylor's (1e-17 at the ends of the interval).
P_32 = tuple(
    map(f32, (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.00836874544620514, 0.0013814540579915047))
)
P_64 = tuple(1 / math.factorial(k) for k in range(2, 14))


def exp(x: Any, k: Any) -> Any:
    """exp(x) 2^(HEADROOM - k), to about one unit in the last place."""


@overload(exp)
def _exp(x: Any, k: Any) -> Any:
    def float32(x: Any, k: Any) -> Any:
        shifted = f32(x * f32(LOG2_E) + MAGIC_32)
        n = shifted - MAGIC_32
        r = (x - n * LN2_32[0]) - n * LN2_32[1]
        p = P_32[0] + r * (P_32[1] + r * (P_32[2] + r * (P_32[3] + r * P_32[4])))
        p = f32(f32(1.0) + r * (f32(1.0) + r * p))
        bits = i32(p.view(i32) + i32(i32(shifted.view(i32) - k) << i32(23)))
        return bits.view(f32)

    def float64(x: Any, k: Any) -> Any:
        shifted = f64(x * LOG2_E + MAGIC_64)
        n = shifted - MAGIC_64
        r = (x - n * LN2_64[0]) - n * LN2_64[1]
        p = P_64[8] + r * (P_64[9] + r * (P_64[10] + r * P_64[11]))
        p = P_64[4] + r * (P_64[5] + r * (P_64[6] + r * (P_64[7] + r * p)))
        p = P_64[0] + r * (P_64[1] + r * (P_64[2] + r * (P_64[3] + r * p)))
        p = f64(1.0 + r * (1.0 + r * p))
        bits = i64(p.view(i64) + ((shifted.view(i64) - k) << 52))
        return bits.view(f64)

    return float32 if x == types.float32 else float64


def scaling(top: Any) -> Any:
    """For a row whose largest logit is `top`: (an offset, the lowest x, k), for exp(max(x - offset, lowest), k).

    The offset is 0 unless the logits are so large that x - top is exact wherever exp of it is not 0.
    """


@overload(scaling)
def _scaling(top: Any) -> Any:
    def float32(top: Any) -> Any:
        if -LIMIT_32 < top < LIMIT_32:
            return f32(0), f32(top - f32(DEPTH_32)), i32(math.floor(top * LOG2_E + 0.5))
        return f32(top), f32(-DEPTH_32), i32(0)

    def float64(top: Any) -> Any:
        if -LIMIT_64 < top < LIMIT_64:
            return 0.0, top - DEPTH_64, i64(math.floor(top * LOG2_E + 0.5))
        return top, -DEPTH_64, i64(0)

    return float32 if top == types.float32 else float64


def headroom(x: Any) -> Any:
    """HEADROOM for this kind of number."""


@overload(headroom)
def _headroom(x: Any) -> Any:
    def float32(x: Any) -> Any:
        return HEADROOM_32

    def float64(x: Any) -> Any:
        return HEADROOM_64

    return float32 if x == types.float32 else float64


# -- loops over one row -----------------------------------------------------------------------------------------------


@njit(fastmath=CONTRACT, forceinline=True)
def extremes(x: Any) -> Any:
    """The largest and the smallest of a row, as `order` has them."""
    largest = smallest = order(widen(x[0]))
    for i in range(len(x)):
        key = order(widen(x[i]))
        largest = max(largest, key)
        smallest = min(smallest, key)
    return largest, smallest


@njit(fastmath=CONTRACT, forceinline=True)
def exponentials(x: Any, offset: Any, lowest: Any, k: Any, e: Any) -> None:
    """e = exp(x - offset) 2^(HEADROOM - k)."""
    for i in range(len(x)):
        z = widen(x[i]) - offset
        e[i] = exp(z if z > lowest else lowest, k)


@njit(fastmath=CONTRACT, forceinline=True)
def scaled(e: Any, factor: Any, gradient: Any) -> None:
    """The gradient of a label that is 0 here: factor e."""
    for i in range(len(e)):
        gradient[i] = narrow(e[i] * factor, gradient)


@njit(fastmath=REORDER, forceinline=True)
def short_sum(e: Any, y: Any) -> Any:
    """The sum of a few numbers without the y-th, in lanes."""
    total = e.dtype.type(0)
    for i in range(len(e)):
        total += e[i] if i != y else e.dtype.type(0)
    return total


@njit(forceinline=True)
def long_sum(e: Any, y: Any) -> float:
    """The sum of many without the y-th."""
    total = 0.0
    for start in range(0, len(e), SHORT):
        total += short_sum(e[start : start + SHORT], y - start)
    return total


@njit(error_model="numpy", forceinline=True)
def log1p(x: Any) -> Any:
    """log(1 + x), with all digits however small x is (Kahan's way: twice as fast as the C library's)."""
    one_more = 1.0 + x
    return x if one_more == 1.0 or one_more == np.inf else math.log(one_more) * (x / (one_more - 1.0))


@njit(forceinline=True)
def main_class(q: Any, weight: Any) -> int:
    """Where the soft label weight q is largest: the class whose term the sum of exponentials leaves out."""
    index = 0
    for i in range(1, len(q)):
        if q[i] * weight[i] > q[index] * weight[index]:
            index = i
    return index


@njit(fastmath=REORDER, forceinline=True)
def label_sums(x: Any, origin: Any, q: Any, weight: Any, spread: float, share: float) -> Any:
    """For a label Q = weight (spread + share q): the sum of Q, and that of Q (x - origin), in float64.

    A class that the label gives nothing adds nothing, even where x is -infinity: 0 log 0 = 0.
    """
    total = product = 0.0
    for i in range(len(x)):
        label = weight[i] * (spread + share * q[i])
        total += label
        product += label * (f64(widen(x[i])) - origin if label != 0 else 0.0)
    return total, product


@njit(fastmath=CONTRACT, forceinline=True)
def label_gradient(e: Any, factor: Any, q: Any, weight: Any, spread: Any, share: Any, gradient: Any) -> None:
    """The gradient of a label Q = weight (spread + share q): factor e - Q."""
    for i in range(len(e)):
        gradient[i] = narrow(e[i] * factor - weight[i] * (spread + share * q[i]), gradient)


# -- rows -------------------------------------------------------------------------------------------------------------

# What the walk is asked for, as bits of `options`.
WEIGHT, SMOOTH, SOFT, UPSTREAM, LOSSES, GRADIENT, SURVEY, MEAN = (1 << bit for bit in range(8))


class Step(NamedTuple):
    """The numbers that are the same for every row; see `walk`."""

    num_classes: Any
    ignore_index: Any
    options: Any
    spread: Any
    share: Any
    scale: Any


@njit(forceinline=True)
def is_finite(largest: Any, smallest: Any, like: Any) -> Any:
    """Whether a row with these extremes has no NaN and no +infinity, and not only -infinity."""
    lowest, highest = order(like(-np.inf)), order(like(np.inf))
    return lowest < largest and largest < highest and smallest >= lowest


@njit(error_model="numpy", forceinline=True)
def minus_log_softmax(rest: Any, e_y: Any, x_y: Any, offset: Any, lowest: Any, k: Any) -> Any:
    """-log S_y in float64, with all digits: from e where the ratio of its numbers is one, else from the logit."""
    ratio = rest / e_y
    if x_y - offset > lowest and ratio < np.inf:
        return log1p(ratio)
    return math.log(rest + e_y) + (k - headroom(x_y)) * LN_2 + (offset - f64(x_y))


@njit(error_model="numpy", forceinline=True)
def spread_loss(
    total: Any, label_y: Any, product: Any, loss_y: Any, x_y: Any, origin: Any, sum_of_e: Any, offset: Any, k: Any
) -> Any:
    """T (-log S_y) - sum_i Q_i (x_i - x_y), where Q sums to T, and `product` is the second sum with `origin` for x_y.

    The origin is x_y, unless that is -infinity: then a label that asks for the class loses infinitely, and to one that
    does not any origin is the same.
    """
    if x_y == origin:
        return total * loss_y - product
    from_origin = math.log(sum_of_e) + (k - headroom(x_y)) * LN_2 + (offset - origin)
    return total * from_origin - product if label_y == 0 else np.inf


@njit(error_model="numpy", forceinline=True)
def one_row(
    logits: Any,
    stride: Any,
    ids: Any,
    labels: Any,
    weight: Any,
    upstream: Any,
    losses: Any,
    gradient: Any,
    row: Any,
    step: Any,
    e: Any,
) -> float:
    """The loss and the gradient of a row with any label. `e` is room for a row."""
    as_number = weight.dtype.type
    num_classes, options = step.num_classes, step.options
    spread, share = step.spread, step.share
    here, there = row * num_classes, (row + 1) * num_classes
    x = logits[row * stride : row * stride + num_classes]
    g = gradient[here:there]
    q = labels[here:there] if options & SOFT else labels[:num_classes]
    y = main_class(q, weight) if options & SOFT else ids[row]
    if not options & SOFT and y == step.ignore_index:
        if options & LOSSES:
            losses[row] = 0
        if options & GRADIENT:
            g[:] = narrow(as_number(0), g)
        return 0.0
    largest, smallest = extremes(x)
    if not is_finite(largest, smallest, as_number):
        if options & LOSSES:
            losses[row] = np.nan
        if options & GRADIENT:
            g[:] = narrow(as_number(np.nan), g)
        return np.nan

    offset, lowest, k = scaling(unorder(largest))
    exponentials(x, offset, lowest, k, e)
    e_y, rest = e[y], long_sum(e, y)
    x_y = widen(x[y])
    loss_y = minus_log_softmax(rest, e_y, x_y, offset, lowest, k)

    # The label: its sum T, its main term Q_y, and sum_i Q_i (x_i - origin), where origin is x_y if that is a number.
    weight_y = weight[y] if options & WEIGHT else as_number(1)
    origin = x_y if x_y > -np.inf else unorder(largest)
    if options & (SMOOTH | SOFT):
        total, product = label_sums(x, f64(origin), q, weight, step.spread, step.share if options & SOFT else 0.0)
        label_y = weight_y * (spread + share * q[y])
        if not options & SOFT:
            total += weight_y * share
            product += weight_y * share * (x_y - origin) if weight_y * share != 0 else as_number(0)
            label_y += weight_y * share
    else:
        total, label_y = f64(weight_y), weight_y
        product = 0.0
    if options & (SMOOTH | SOFT):
        loss = spread_loss(total, label_y, product, loss_y, x_y, origin, rest + e_y, offset, k)
    else:
        loss = total * loss_y if total != 0 else 0.0
    if options & LOSSES:
        losses[row] = loss
    if options & GRADIENT:
        size = step.scale * upstream[row] if options & UPSTREAM else step.scale
        per_sum = total * size / (rest + e_y)
        if options & (SMOOTH | SOFT):
            q_share = as_number(size * share) if options & SOFT else as_number(0)
            label_gradient(e, as_number(per_sum), q, weight, as_number(size * spread), q_share, g)
        else:
            scaled(e, as_number(per_sum), g)
        slope = per_sum * e_y if label_y == 0 else (total - label_y) * size - per_sum * rest
        g[y] = narrow(as_number(slope), g)
    return f64(loss)


@njit(fastmath=CONTRACT, error_model="numpy")
def short_rows(
    logits: Any,
    stride: Any,
    ids: Any,
    weight: Any,
    upstream: Any,
    losses: Any,
    gradient: Any,
    first: Any,
    last: Any,
    step: Any,
) -> float:
    """The same for rows of a few classes with a one-hot or smoothed label: each loop takes one class of many rows."""
    as_number = weight.dtype.type
    num_classes, options = step.num_classes, step.options
    spread, share = step.spread, step.share
    kind = order(as_number(0))
    width = min(ABREAST, last - first)
    room = np.empty((num_classes + 5, width), dtype=weight.dtype)
    e, offsets, lowests, rests, factors, evens = room[5:], room[0], room[1], room[2], room[3], room[4]
    wide = np.empty((2, width if options & SMOOTH else 0))
    origins, products = wide[0], wide[1]
    even = 0.0  # the sum of a smoothed label without the true class's share
    if options & SMOOTH:
        for i in range(num_classes):
            even += weight[i] * spread
    keys = np.full((3, width), kind)
    largest, smallest, ks = keys[0], keys[1], keys[2]
    sum_of_losses = 0.0
    for start in range(first, last, ABREAST):
        rows = min(width, last - start)
        for j in range(rows):
            for i in range(num_classes):
                e[i, j] = widen(logits[(start + j) * stride + i])
        for i in range(num_classes):
            column = e[i]
            for j in range(rows):
                key = order(column[j])
                largest[j] = key if i == 0 else max(largest[j], key)
                smallest[j] = key if i == 0 else min(smallest[j], key)
        for j in range(rows):
            offsets[j], lowests[j], ks[j] = as_number(0), as_number(0), kind
            if is_finite(largest[j], smallest[j], as_number):
                offsets[j], lowests[j], ks[j] = scaling(unorder(largest[j]))
        if options & SMOOTH:
            for j in range(rows):
                y = ids[start + j]
                x_y = e[0 if y == step.ignore_index else y, j]
                origins[j], products[j] = x_y if x_y > -np.inf else unorder(largest[j]), 0
            for i in range(num_classes):
                column, label = e[i], weight[i] * spread
                if label != 0:
                    for j in range(rows):
                        products[j] += label * (f64(column[j]) - origins[j])
        for i in range(num_classes):
            column = e[i]
            for j in range(rows):
                z = column[j] - offsets[j]
                column[j] = exp(z if z > lowests[j] else lowests[j], ks[j])
        for j in range(rows):
            y = ids[start + j]
            if y == step.ignore_index:
                y = 0
            factors[j] = e[y, j]
            e[y, j] = 0
        for i in range(num_classes):
            column = e[i]
            for j in range(rows):
                rests[j] = column[j] if i == 0 else rests[j] + column[j]
        for j in range(rows):
            row = start + j
            y = ids[row]
            rest, e_y = f64(rests[j]), f64(factors[j])
            loss = total = label_y = size = 0.0
            if y == step.ignore_index:
                y = 0
            elif not is_finite(largest[j], smallest[j], as_number):
                loss = total = size = np.nan
            else:
                x_y = widen(logits[row * stride + y])
                total = label_y = f64(weight[y]) if options & WEIGHT else 1.0
                size = step.scale * upstream[row] if options & UPSTREAM else step.scale
                loss_y = minus_log_softmax(rest, e_y, x_y, offsets[j], lowests[j], ks[j])
                if options & SMOOTH:
                    total, label_y = even + total * share, label_y * (spread + share)
                    loss = spread_loss(
                        total, label_y, products[j], loss_y, x_y, origins[j], rest + e_y, offsets[j], ks[j]
                    )
                elif total != 0:
                    loss = total * loss_y
            sum_of_losses += loss
            if options & LOSSES:
                losses[row] = loss
            per_sum = total * size / (rest + e_y)
            factors[j], evens[j] = as_number(per_sum), as_number(size * spread)
            slope = per_sum * e_y if label_y == 0 else (total - label_y) * size - per_sum * rest
            rests[j] = as_number(slope)
        if options & GRADIENT:
            for j in range(rows):
                g = gradient[(start + j) * num_classes : (start + j + 1) * num_classes]
                y = ids[start + j]
                if y == step.ignore_index:
                    g[:] = narrow(as_number(0), g)
                    continue
                if options & SMOOTH:
                    for i in range(num_classes):
                        g[i] = narrow(e[i, j] * factors[j] - weight[i] * evens[j], g)
                else:
                    for i in range(num_classes):
                        g[i] = narrow(e[i, j] * factors[j], g)
                g[y] = narrow(rests[j], g)
    return sum_of_losses


# -- the walk ---------------------------------------------------------------------------------------------------------


class Job(ctypes.Structure):
    """What a walk is to do: compute the losses of N rows, or their gradients, or both. Names ending in _ are addresses.

    Attributes:
        next_part: the first part of the rows that no thread has taken yet.
        logits_: [N, K], rows `stride` numbers apart.
        ids_: [N] int64 class ids; where SOFT is not set the label is one-hot at them.
        labels_: [N, K] with SOFT: the probabilities. [K] zeros with SMOOTH.
        weight_: [K]; read only with WEIGHT, SMOOTH or SOFT.
        upstream_: [N], the gradient with respect to each row's loss; 1 without UPSTREAM.
        losses_: [N], written with LOSSES.
        gradient_: [N, K], written with GRADIENT: scale * upstream * d loss / d logits.
        sums_: [parts] float64, written: the sums of their losses.
        parts: the rows are shared out in so many parts; the result does not depend on how many threads take them.
        wrong_row: written with SURVEY: the first row whose id is no class (then nothing else is done), or -1.
        spread, share: the label is weight_i (spread + share q_i), with q one-hot or the probabilities.
        scale: a factor on the gradient; with MEAN it is divided by the divisor of the mean.
        divisor: written with SURVEY: what the mean divides by.
    """

    _fields_ = tuple(
        (name, ctypes.c_double if name in ("spread", "share", "scale", "divisor") else ctypes.c_int64)
        for name in (
            *("next_part", "logits_", "stride", "ids_", "labels_", "weight_", "upstream_", "losses_", "gradient_"),
            *("num_rows", "num_classes", "ignore_index", "options", "spread", "share", "scale"),
            *("sums_", "parts", "wrong_row", "divisor"),
        )
    )


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def survey(job: Any, ids: Any, weight: Any) -> bool:
    """Find what the mean divides by, and whether an id is no class."""
    job.divisor = 0.0
    for row in range(job.num_rows):
        y = ids[row]
        if y != job.ignore_index:
            if y < 0 or y >= job.num_classes:
                job.wrong_row = row
                return False
            job.divisor += weight[y] if job.options & WEIGHT else weight.dtype.type(1)
    return True


def walk_over(a_logit: Any, a_number: Any, short: bool) -> Callable[[Any], None]:
    """The walk over logits of one kind, that are computed with numbers of another: over short rows or long ones."""

    def walk(job_: Any) -> None:
        job = carray(job_, 1)[0]
        num_rows, num_classes = job.num_rows, job.num_classes
        size = num_rows * num_classes
        logits = carray(at(job.logits_, a_logit), (num_rows * job.stride,))
        ids = carray(at(job.ids_, i64(0)), (num_rows,))
        labels = carray(at(job.labels_, a_number), (size,))
        weight = carray(at(job.weight_, a_number), (num_classes,))
        upstream = carray(at(job.upstream_, a_number), (num_rows,))
        losses = carray(at(job.losses_, a_number), (num_rows,))
        gradient = carray(at(job.gradient_, a_logit), (size,))
        sums = carray(at(job.sums_, 0.0), (job.parts,))
        if job.options & SURVEY and not survey(job, ids, weight):
            return
        scale = job.scale / job.divisor if job.options & MEAN else job.scale
        step = Step(num_classes, job.ignore_index, job.options, job.spread, job.share, scale)
        e = np.empty(0 if short else num_classes, dtype=weight.dtype)
        while True:
            part = take_part(job_)
            if part >= job.parts:
                if job.parts == 1:  # nobody else is at it; it can be done again
                    job.next_part = 0
                return
            first, last = num_rows * part // job.parts, num_rows * (part + 1) // job.parts
            if short:  # known when this is compiled: the other branch is not
                sums[part] = short_rows(logits, job.stride, ids, weight, upstream, losses, gradient, first, last, step)
            else:
                total = 0.0
                for row in range(first, last):
                    total += one_row(logits, job.stride, ids, labels, weight, upstream, losses, gradient, row, step, e)
                sums[part] = total

    return walk


@cache
def _compiled(dtype: torch.dtype, short: bool) -> Callable[[int], None]:
    """`walk` for logits of this dtype, in rows of a few classes or not, as a C function of a job's address."""
    number = f64(0) if dtype == torch.float64 else f32(0)
    return compiled(walk_over(KINDS[dtype](0), number, short), Job, CONTRACT)


class Walk:
    """A walk that is ready to go: the logits and targets as the kernel reads them.

    Args:
        logits: [N, K].
        target: [N] int64 class ids or [N, K] probabilities.
        weight: [K] or None.
        ignore_index: rows with this class id do not count.
        label_smoothing: in [0, 1].
    Raises: ValueError if the targets or weights are not as many as the logits need.
    """

    __slots__ = (
        *("addresses", "function", "ignore_index", "kept", "logits", "number", "options"),
        *("share", "spread", "stride"),
    )

    def __init__(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
    ) -> None:
        num_rows, num_classes = logits.shape
        self.logits, self.stride = rows(logits)
        self.number = number = ACCUMULATE[logits.dtype]
        self.ignore_index = ignore_index
        self.spread, self.share = label_smoothing / num_classes, 1.0 - label_smoothing
        options, labels = 0, None
        if weight is not None:
            options = WEIGHT
            weight = dense(weight.to(number))
        if target.ndim == 2:
            options |= SOFT
            target = labels = dense(target.to(number))
        else:
            target = dense(target)
            if label_smoothing > 0:
                options |= SMOOTH
                labels = _constant(0, num_classes, number)
        if labels is not None and weight is None:
            weight = _constant(1, num_classes, number)
        self.options = options
        short = num_classes < FEW_CLASSES and not options & SOFT
        self.function = _compiled(logits.dtype, short)
        self.kept = target, labels, weight  # addresses are good as long as their tensors
        of_target = address(target, *((torch.int64, num_rows) if labels is not target else (number, logits.numel())))
        of_weight = 0 if weight is None else address(weight, number, num_classes)
        of_labels = 0 if labels is None else labels.data_ptr()
        self.addresses = of_target, of_labels, of_weight

    def go(
        self,
        options: int,
        scale: float = 1.0,
        upstream: Tensor | None = None,
        losses: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> tuple[float, float]:
        """Write the losses and the gradient that are asked for; see `Job`.

        Returns: the sum of the losses, with MEAN their mean; and with SURVEY what the mean divides by.
        Raises: IndexError if there is a SURVEY and a class id is outside [0, K).
        """
        num_rows, num_classes = self.logits.shape
        size = num_rows * num_classes
        parts = parts_of(size, num_rows, whatever_the_threads=True)
        sums = (ctypes.c_double * parts)()
        job = Job(
            0,
            self.logits.data_ptr(),
            self.stride,
            *self.addresses,
            0 if upstream is None else address(upstream, self.number, num_rows),
            0 if losses is None else address(losses, self.number, num_rows),
            0 if gradient is None else address(gradient, self.logits.dtype, size),
            num_rows,
            num_classes,
            self.ignore_index,
            options | self.options,
            self.spread,
            self.share,
            scale,
            ctypes.addressof(sums),
            parts,
            -1,
        )
        if options & SURVEY and parts > 1:  # first, and once
            job.next_part = parts
            self.function(ctypes.addressof(job))
            job.next_part, job.options = 0, job.options & ~SURVEY
        if job.wrong_row < 0:
            run(self.function, job, size)
        if job.wrong_row >= 0:
            raise IndexError("a class id is out of range")
        total = sum(sums)
        return total / (job.divisor or math.nan) if options & MEAN else total, job.divisor


CPU = torch.device("cpu")  # said wherever a tensor is made, as torch.set_default_device may say another


@lru_cache(16)
def _constant(value: int, size: int, dtype: torch.dtype) -> Tensor:
    """[size], each the value; only read."""
    return torch.full((size,), value, dtype=dtype, device="cpu")


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
    Returns: [N] for the reduction "none", else a scalar.
    Raises: IndexError if a class id is outside [0, K).
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _Fused.apply(logits, target, weight, ignore_index, reduction, label_smoothing, dtype)  # type: ignore[no-any-return]
    return _forward(logits, target, weight, ignore_index, reduction, label_smoothing, dtype, False)[0]


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    dtype: torch.dtype,
    make_gradient: bool,
) -> tuple[Tensor, float, Tensor | None]:
    """The loss, the factor its reduction puts on the gradient, and the gradient for an upstream gradient of 1."""
    walk = Walk(logits, target, weight, ignore_index, label_smoothing)
    options = SURVEY if target.ndim == 1 else 0
    if reduction == "none":
        losses = torch.empty(len(logits), dtype=walk.number, device=CPU)
        walk.go(options | LOSSES, losses=losses)
        return losses.to(dtype), 1.0, None
    scale = 1.0
    if reduction == "mean":
        if options:
            options |= MEAN
        else:
            scale = 1.0 / len(logits)
    gradient = None
    if make_gradient:
        options |= GRADIENT
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=CPU)
    total, divisor = walk.go(options, scale, gradient=gradient)
    if options & MEAN:
        return _scalar(total, dtype), 1.0 / (divisor or math.nan), gradient
    return _scalar(total * scale, dtype), scale, gradient


def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """[] of this dtype, rounded: infinite beyond its largest number, where scalar_tensor raises an error."""
    return scalar_tensor(value, dtype=torch.float64, device=CPU).to(dtype)


class _Fused(torch.autograd.Function):
    """The walk as one node of the graph. It makes the gradient in the forward pass, for an upstream gradient of 1.

    That is what nearly every training step asks for. Any other, and any further backward pass, walks again with the
    upstream gradient folded in, so that there is still one rounding. float16 always does: divided by N, its gradients
    would underflow before a gradient scaler's factor could reach them.
    """

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
        arguments = weight, ignore_index, reduction, label_smoothing
        loss, ctx.scale, ctx.gradient = _forward(logits, target, *arguments, dtype, logits.dtype != torch.float16)
        ctx.save_for_backward(logits, target, weight)
        ctx.arguments = arguments[1:]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, upstream), None, None, None, None, None, None


def _backward(ctx: Any, upstream: Tensor) -> Tensor:
    """The gradient with respect to the logits."""
    if ctx.gradient is not None and not torch.is_grad_enabled() and upstream.item() == 1.0:
        gradient = _handed_over(ctx)
        if gradient is not None:
            return gradient
    logits, target, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody will differentiate the gradient
        from .cross_entropy import definition

        loss = definition(logits, target, weight, *ctx.arguments)
        result: Tensor = torch.autograd.grad(loss, logits, upstream.to(loss.dtype), create_graph=True)[0]
        return result
    ignore_index, _, label_smoothing = ctx.arguments
    result = torch.empty(logits.shape, dtype=logits.dtype, device=CPU)
    walk = Walk(logits, target, weight, ignore_index, label_smoothing)
    # The ids are checked again: NumPy and `.data` change a tensor without autograd noticing.
    options = GRADIENT | (SURVEY if target.ndim == 1 else 0)
    if upstream.ndim:
        walk.go(options | UPSTREAM, upstream=dense(upstream.to(walk.number)), gradient=result)
    else:
        walk.go(options, ctx.scale * upstream.item(), gradient=result)
    return result


def _handed_over(ctx: Any) -> Tensor | None:
    """The gradient that the forward pass has made, for one caller only, who may then change it; None for any other."""
    gradient: Tensor | None = ctx.__dict__.pop("gradient", None)  # in one step, so that no two threads get it
    ctx.gradient = None
    return gradient


class UsualStep(torch.autograd.Function):
    """The same for a training step's usual call: class ids, a plain mean, and so few logits that one thread takes them.

    With 128 images of 10 classes the loss takes as long as twenty lines of Python do, so there are few here.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
        """(contiguous logits [N, K], class ids [N]) -> scalar. Raises: IndexError if an id is outside [0, K)."""
        ctx.gradient = gradient = empty_like(logits)
        logits_, ids_ = logits.data_ptr(), target.data_ptr()
        if not (logits_ and ids_):  # PyTorch's zero tensors have no memory
            logits, target = dense(logits), dense(target)
            logits_, ids_ = address(logits, logits.dtype, gradient.numel()), address(target, torch.int64, len(logits))
        dtype = logits.dtype
        key = logits.shape, dtype, ignore_index, label_smoothing
        ready = _READY.pop(key, None) or _ReadyStep(logits, target, ignore_index, label_smoothing)
        job = ready.job
        job.logits_ = logits_
        job.ids_ = ids_
        job.gradient_ = gradient.data_ptr()
        ready.function(ready.address)
        wrong, divisor, total = job.wrong_row, job.divisor or math.nan, ready.total.value
        if wrong >= 0:
            raise IndexError("a class id is out of range")
        _READY[key] = ready
        ctx.kept = ignore_index, label_smoothing, divisor
        ctx.save_for_backward(logits, target, None)
        if dtype is bfloat16 and torch.is_autocast_enabled("cpu"):
            dtype = torch.float32
        try:
            return scalar_tensor(total / divisor, dtype=dtype, device=CPU)
        except RuntimeError:  # it is beyond the dtype's largest number
            return _scalar(total / divisor, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, for the logits alone."""
        if ctx.gradient is not None and upstream.item() == 1.0 and not is_grad_enabled():
            gradient = _handed_over(ctx)
            if gradient is not None:
                return gradient, None, None, None
        ignore_index, label_smoothing, divisor = ctx.kept
        ctx.arguments, ctx.scale = (ignore_index, "mean", label_smoothing), 1.0 / divisor
        return _backward(ctx, upstream), None, None, None


class _ReadyStep:
    """A job for the usual step of one shape: to fill in what changes takes a third of making one.

    It is complete when it is made and does not change but for the addresses of a call.
    """

    __slots__ = ("address", "function", "job", "kept", "total")

    def __init__(self, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float) -> None:
        if not INT64.min <= ignore_index <= INT64.max:
            raise OverflowError(f"ignore_index {ignore_index} does not fit in int64")  # ctypes would cut it off
        walk = Walk(logits, target, None, ignore_index, label_smoothing)
        _, *self.kept = walk.kept  # addresses are good as long as their tensors
        _, labels_, weight_ = walk.addresses
        self.function, self.total = walk.function, ctypes.c_double()
        num_rows, num_classes = logits.shape
        self.job = Job(
            stride=num_classes,
            labels_=labels_,
            weight_=weight_,
            num_rows=num_rows,
            num_classes=num_classes,
            ignore_index=ignore_index,
            options=SURVEY | MEAN | GRADIENT | walk.options,
            spread=walk.spread,
            share=walk.share,
            scale=1.0,
            sums_=ctypes.addressof(self.total),
            parts=1,
            wrong_row=-1,
        )
        self.address = ctypes.addressof(self.job)
        if len(_READY) >= MOST_READY:
            _READY.clear()


# Jobs that nobody is using, by what they are for. A call takes one out and puts it back when it is done, so another
# thread, a signal handler or a finalizer that calls the loss meanwhile makes its own, and one that a refused id or an
# interruption has left half-way is not met again.
_READY: dict[Any, _ReadyStep] = {}
MOST_READY = 64  # shapes
INT64 = torch.iinfo(torch.int64)


usual_step = UsualStep.apply  # found once, not at every step
