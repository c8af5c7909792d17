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
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]

from .numba_runtime import at, compiled, take_part
from .numbers import KINDS, LN_2, exp, f32, f64, headroom, i64, log1p, narrow, order, scaling, unorder, widen

# Products may be fused with the sum they go into (one rounding less). Only sums may also be reordered, to run in lanes.
CONTRACT = {"contract"}
REORDER = {"contract", "reassoc", "nsz"}
SHORT = 2048  # numbers summed in their own dtype before the sum goes on in float64
FEW_CLASSES = 32  # below, rows are computed side by side
ABREAST = 128  # so many of them


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
