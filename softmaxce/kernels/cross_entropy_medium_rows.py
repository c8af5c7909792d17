"""Cross-entropy and its gradient on the CPU for rows of 32 to 1,023 classes, with class ids as labels.

A row fills the processor's vectors, but rows computed one after the other would each wait for their own maximum,
logarithm and divisions. Here each step is done for a block of rows before the next step, so that these waits overlap.
"""

from typing import Any

import numpy as np
from numba import njit

from .cross_entropy_long_rows import exponentials, extremes, short_sum
from .cross_entropy_short_rows import find_scaling, finish_losses, new_block, store_gradient, sum_uniform
from .cross_entropy_terms import CONTRACT, GRADIENT, REORDER, SMOOTH, compensated
from .numbers import f64, unorder, widen

MANY_CLASSES = 1024  # from there on, a row by itself is as fast
NUMBERS_PER_BLOCK = 4096  # which stay in the innermost cache


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def exponentiate_and_sum(block: Any, j: Any, x: Any, y: Any) -> None:
    """A row's e = exp(x - offset) 2^(HEADROOM - k); its e_y, which becomes 0 in e, and the sum of the others."""
    e = block.e[:, j]
    exponentials(x, block.offsets[j], block.lowests[j], block.exponents[j], e)
    block.rests[j] = short_sum(e, y)
    block.factors[j] = e[y]
    e[y] = 0


@njit(fastmath=REORDER, error_model="numpy", forceinline=True)
def sum_smoothing(x: Any, origin: Any, weight: Any, uniform_mass: Any) -> float:
    """What label smoothing adds to the sum of Q_i (x_i - origin). A class with Q = 0 adds nothing."""
    product = 0.0
    for i in range(len(x)):
        label = f64(weight[i]) * uniform_mass
        product += label * (f64(widen(x[i])) - origin) if label != 0 else 0.0
    return product


@njit(fastmath=CONTRACT, error_model="numpy")
def medium_rows(
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
    height = min(max(1, NUMBERS_PER_BLOCK // num_classes), last - first)
    block = new_block(np.empty((height, num_classes), dtype=weight.dtype).T, options)
    uniform_sum = sum_uniform(weight, step)
    sum_of_losses = lost = 0.0
    for start in range(first, last, height):
        rows = min(height, last - start)
        for j in range(rows):
            x = logits[(start + j) * stride : (start + j) * stride + num_classes]
            block.largest[j], block.smallest[j] = extremes(x)
        find_scaling(block, rows)
        for j in range(rows):
            x = logits[(start + j) * stride : (start + j) * stride + num_classes]
            y = ids[start + j]
            if y == step.ignore_index:
                y = 0
            if options & SMOOTH:
                x_y = widen(x[y])
                block.origins[j] = x_y if x_y > -np.inf else unorder(block.largest[j])
                block.products[j] = sum_smoothing(x, block.origins[j], weight, step.uniform_mass)
            exponentiate_and_sum(block, j, x, y)
        sum_of_losses, lost = finish_losses(
            block, rows, logits, stride, ids, start, weight, upstream, losses, uniform_sum, step, sum_of_losses, lost
        )
        if options & GRADIENT:
            store_gradient(block, rows, ids, start, weight, gradient, step)
    return compensated(sum_of_losses, lost)
