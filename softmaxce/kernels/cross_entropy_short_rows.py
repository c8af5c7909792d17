"""Cross-entropy and its gradient on the CPU for rows of a few classes with class ids as labels.

Such a row is too short for the processor's vectors, so many rows are computed side by side: each inner loop takes one
class of a block of rows, as a column of `e` [classes, rows].
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .cross_entropy_terms import (
    CONTRACT,
    GRADIENT,
    LOSSES,
    SMOOTH,
    UPSTREAM,
    WEIGHT,
    add_exactly,
    compensated,
    distribution_loss,
    is_finite,
    minus_log_softmax,
)
from .numbers import exp, f64, log1p, narrow, order, scaling, unorder, widen

FEW_CLASSES = 32  # below, this is the faster way
ROWS_PER_BLOCK = 128


class Block(NamedTuple):
    """Scratch space for a block of rows, [rows] each but for `e`.

    Attributes:
        e: [classes, rows], the logits, then their exponentials.
        offsets, lowests, exponents: what `scaling` gives for each row.
        rests: the sum of e without the target's term; then the gradient at the target.
        factors: e of the target; then the factor of e in the gradient.
        uniforms: the part of the gradient that label smoothing takes from every class, before its weight.
        origins, products: float64, with label smoothing: an origin, and the sum of Q_i (x_i - origin).
        largest, smallest: each row's extremes as `order` has them.
    """

    e: Any
    offsets: Any
    lowests: Any
    rests: Any
    factors: Any
    uniforms: Any
    origins: Any
    products: Any
    largest: Any
    smallest: Any
    exponents: Any


@njit(error_model="numpy", forceinline=True)
def new_block(e: Any, options: Any) -> Any:
    """Scratch space for `e`, [classes, rows]."""
    rows = e.shape[1]
    numbers = np.empty((5, rows), dtype=e.dtype)
    wide = np.empty((2, rows if options & SMOOTH else 0))
    keys = np.full((3, rows), order(e.dtype.type(0)))
    return Block(
        e, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], wide[0], wide[1], keys[0], keys[1], keys[2]
    )


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def sum_uniform(weight: Any, step: Any) -> float:
    """The sum of the weighted uniform part of a smoothed label."""
    total = 0.0
    if step.options & SMOOTH:
        for i in range(step.num_classes):
            total += weight[i] * step.uniform_mass
    return total


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def find_extremes(block: Any, rows: Any) -> None:
    """Each row's largest and smallest logit."""
    largest, smallest = block.largest, block.smallest
    for i in range(len(block.e)):
        column = block.e[i]
        for j in range(rows):
            key = order(column[j])
            largest[j] = key if i == 0 else max(largest[j], key)
            smallest[j] = key if i == 0 else min(smallest[j], key)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def find_scaling(block: Any, rows: Any) -> None:
    """Each row's scaling; zeros for a row that is not finite."""
    number = block.e.dtype.type
    for j in range(rows):
        block.offsets[j], block.lowests[j], block.exponents[j] = number(0), number(0), order(number(0))
        if is_finite(block.largest[j], block.smallest[j], number):
            block.offsets[j], block.lowests[j], block.exponents[j] = scaling(unorder(block.largest[j]))


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def sum_smoothing(block: Any, rows: Any, ids: Any, start: Any, weight: Any, step: Any) -> None:
    """Each row's origin, and what label smoothing adds to the sum of Q_i (x_i - origin)."""
    e, origins, products = block.e, block.origins, block.products
    for j in range(rows):
        y = ids[start + j]
        x_y = e[0 if y == step.ignore_index else y, j]
        origins[j], products[j] = x_y if x_y > -np.inf else unorder(block.largest[j]), 0
    for i in range(len(e)):
        column, label = e[i], weight[i] * step.uniform_mass
        if label != 0:
            for j in range(rows):
                products[j] += label * (f64(column[j]) - origins[j])


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def exponentiate(block: Any, rows: Any) -> None:
    """e = exp(e - offset) 2^(HEADROOM - k), in place."""
    offsets, lowests, exponents = block.offsets, block.lowests, block.exponents
    for i in range(len(block.e)):
        column = block.e[i]
        for j in range(rows):
            z = column[j] - offsets[j]
            column[j] = exp(z if z > lowests[j] else lowests[j], exponents[j])


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def sum_rests(block: Any, rows: Any, ids: Any, start: Any, ignore_index: Any) -> None:
    """Each row's e_y, which becomes 0 in e, and the sum of the others."""
    e, rests, factors = block.e, block.rests, block.factors
    for j in range(rows):
        y = ids[start + j]
        if y == ignore_index:
            y = 0
        factors[j] = e[y, j]
        e[y, j] = 0
    for i in range(len(e)):
        column = e[i]
        for j in range(rows):
            rests[j] = column[j] if i == 0 else rests[j] + column[j]


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def finish_losses(
    block: Any,
    rows: Any,
    logits: Any,
    stride: Any,
    ids: Any,
    start: Any,
    weight: Any,
    upstream: Any,
    losses: Any,
    uniform_sum: Any,
    step: Any,
    sum_of_losses: Any,
    lost: Any,
) -> Any:
    """Each row's loss, and what its gradient is made of. Returns the sum with the losses added, and what it lost."""
    number, options = weight.dtype.type, step.options
    for j in range(rows):
        row = start + j
        y = ids[row]
        rest, e_y = f64(block.rests[j]), f64(block.factors[j])
        loss = total = label_y = size = 0.0
        if y == step.ignore_index:
            pass
        elif not is_finite(block.largest[j], block.smallest[j], number):
            loss = total = size = np.nan
        else:
            x_y = widen(logits[row * stride + y])
            total = label_y = f64(weight[y]) if options & WEIGHT else 1.0
            size = step.scale * upstream[row] if options & UPSTREAM else step.scale
            offset, k = block.offsets[j], block.exponents[j]
            loss_y = minus_log_softmax(rest, e_y, x_y, offset, block.lowests[j], k)
            if options & SMOOTH:
                total = uniform_sum + total * step.target_mass
                label_y = label_y * (step.uniform_mass + step.target_mass)
                origin, product = block.origins[j], block.products[j]
                if label_y == 0:
                    loss = loss_without_target(block, j, y, e_y, logits, row * stride, weight, uniform_sum, step)
                else:
                    loss = distribution_loss(total, label_y, product, loss_y, x_y, origin, rest + e_y, offset, k)
            elif total != 0:
                loss = total * loss_y
        sum_of_losses, lost = add_exactly(sum_of_losses, lost, loss, weight)
        if options & LOSSES:
            losses[row] = loss
        per_sum = total * size / (rest + e_y)
        block.factors[j], block.uniforms[j] = number(per_sum), number(size * step.uniform_mass)
        slope = per_sum * e_y if label_y == 0 else (total - label_y) * size - per_sum * rest
        block.rests[j] = number(slope)
    return sum_of_losses, lost


@njit(error_model="numpy")
def loss_without_target(
    block: Any, j: Any, y: Any, e_y: Any, logits: Any, start: Any, weight: Any, uniform_sum: Any, step: Any
) -> Any:
    """A row's loss where the target's label is 0: sum_i Q_i (log sum - x_i), in terms that are all at least 0.

    The largest logit takes the target's place: with the target's own, which may be far below, the terms would cancel.
    """
    main = 0
    for i in range(1, step.num_classes):
        if widen(logits[start + i]) > widen(logits[start + main]):
            main = i
    others = product = 0.0
    x_main = f64(widen(logits[start + main]))
    for i in range(step.num_classes):
        label = f64(weight[i]) * step.uniform_mass
        if label != 0:
            product += label * (x_main - f64(widen(logits[start + i])))
        if i != main:
            others += e_y if i == y else f64(block.e[i, j])
    e_main = e_y if main == y else f64(block.e[main, j])
    return uniform_sum * log1p(others / e_main) + product


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def store_gradient(block: Any, rows: Any, ids: Any, start: Any, weight: Any, gradient: Any, step: Any) -> None:
    """The gradient of the block's rows, factor e - Q, and at the target its own."""
    number, num_classes, e = weight.dtype.type, step.num_classes, block.e
    for j in range(rows):
        g = gradient[(start + j) * num_classes : (start + j + 1) * num_classes]
        y = ids[start + j]
        if y == step.ignore_index:
            g[:] = narrow(number(0), g)
            continue
        factor, uniform = block.factors[j], block.uniforms[j]
        if step.options & SMOOTH:
            for i in range(num_classes):
                g[i] = narrow(e[i, j] * factor - weight[i] * uniform, g)
        else:
            for i in range(num_classes):
                g[i] = narrow(e[i, j] * factor, g)
        g[y] = narrow(block.rests[j], g)


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
) -> Any:
    """The losses and the gradients of the rows from `first` to before `last`, in blocks. Returns the losses' sum."""
    num_classes, options = step.num_classes, step.options
    width = min(ROWS_PER_BLOCK, last - first)
    block = new_block(np.empty((num_classes, width), dtype=weight.dtype), options)
    uniform_sum = sum_uniform(weight, step)
    sum_of_losses = lost = 0.0
    for start in range(first, last, ROWS_PER_BLOCK):
        rows = min(width, last - start)
        for j in range(rows):
            for i in range(num_classes):
                block.e[i, j] = widen(logits[(start + j) * stride + i])
        find_extremes(block, rows)
        find_scaling(block, rows)
        if options & SMOOTH:
            sum_smoothing(block, rows, ids, start, weight, step)
        exponentiate(block, rows)
        sum_rests(block, rows, ids, start, step.ignore_index)
        sum_of_losses, lost = finish_losses(
            block, rows, logits, stride, ids, start, weight, upstream, losses, uniform_sum, step, sum_of_losses, lost
        )
        if options & GRADIENT:
            store_gradient(block, rows, ids, start, weight, gradient, step)
    return compensated(sum_of_losses, lost)
