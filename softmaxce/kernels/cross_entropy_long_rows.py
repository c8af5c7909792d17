"""Cross-entropy and its gradient on the CPU for rows of many classes, or with probabilities as labels: row by row."""

from typing import Any

import numpy as np
from numba import njit

from .cross_entropy_terms import (
    CONTRACT,
    GRADIENT,
    LOSSES,
    REORDER,
    SMOOTH,
    SOFT,
    UPSTREAM,
    WEIGHT,
    Step,
    distribution_loss,
    is_finite,
    minus_log_softmax,
)
from .numbers import exp, f64, narrow, order, scaling, unorder, widen

SHORT_SUM = 2048  # numbers summed in their own dtype before the sum goes on in float64


@njit(fastmath=CONTRACT, forceinline=True)
def extremes(x: Any) -> Any:
    """The largest and the smallest of a row, as `order` has them."""
    largest = smallest = order(widen(x[0]))
    for i in range(len(x)):
        key = order(widen(x[i]))
        largest = max(largest, key)
        smallest = min(smallest, key)
    return largest, smallest


@njit(forceinline=True)
def largest_class(x: Any) -> int:
    """The class with the largest logit of a row without NaN."""
    index = 0
    for i in range(1, len(x)):
        if widen(x[i]) > widen(x[index]):
            index = i
    return index


@njit(fastmath=CONTRACT, forceinline=True)
def exponentials(x: Any, offset: Any, lowest: Any, k: Any, e: Any) -> None:
    """e = exp(x - offset) 2^(HEADROOM - k)."""
    for i in range(len(x)):
        z = widen(x[i]) - offset
        e[i] = exp(z if z > lowest else lowest, k)


@njit(fastmath=CONTRACT, forceinline=True)
def one_hot_gradient(e: Any, factor: Any, gradient: Any) -> None:
    """The gradient of a one-hot label, but for its class: factor e."""
    for i in range(len(e)):
        gradient[i] = narrow(e[i] * factor, gradient)


@njit(fastmath=REORDER, forceinline=True)
def short_sum(e: Any, y: Any) -> Any:
    """The sum of a few numbers without the y-th; vectorized."""
    total = e.dtype.type(0)
    for i in range(len(e)):
        total += e[i] if i != y else e.dtype.type(0)
    return total


@njit(forceinline=True)
def long_sum(e: Any, y: Any) -> float:
    """The sum of many without the y-th: a long sum is made of short ones, which are added in float64."""
    total = 0.0
    for start in range(0, len(e), SHORT_SUM):
        total += short_sum(e[start : start + SHORT_SUM], y - start)
    return total


@njit(forceinline=True)
def main_class(q: Any, weight: Any) -> int:
    """The class with the largest weight q, whose term the sum of exponentials leaves out."""
    index = 0
    for i in range(1, len(q)):
        if q[i] * weight[i] > q[index] * weight[index]:
            index = i
    return index


@njit(fastmath=REORDER, forceinline=True)
def label_sums(x: Any, origin: Any, q: Any, weight: Any, uniform_mass: float, target_mass: float) -> Any:
    """For a label Q = weight (uniform_mass + target_mass q): the sum of Q, and that of Q (x - origin), in float64.

    A class with Q = 0 adds nothing, even where x is -infinity: 0 log 0 = 0.
    """
    total = product = 0.0
    for i in range(len(x)):
        label = weight[i] * (uniform_mass + target_mass * q[i])
        total += label
        product += label * (f64(widen(x[i])) - origin if label != 0 else 0.0)
    return total, product


@njit(fastmath=CONTRACT, forceinline=True)
def label_gradient(
    e: Any, factor: Any, q: Any, weight: Any, uniform_mass: Any, target_mass: Any, gradient: Any
) -> None:
    """The gradient of a label Q = weight (uniform_mass + target_mass q): factor e - Q."""
    for i in range(len(e)):
        gradient[i] = narrow(e[i] * factor - weight[i] * (uniform_mass + target_mass * q[i]), gradient)


@njit(error_model="numpy", forceinline=True)
def label_terms(x: Any, y: Any, x_y: Any, origin: Any, q: Any, weight: Any, step: Any) -> Any:
    """Of a label Q: its sum T, its main term Q_y, and sum_i Q_i (x_i - origin)."""
    number = weight.dtype.type
    options, uniform_mass, target_mass = step.options, step.uniform_mass, step.target_mass
    weight_y = weight[y] if options & WEIGHT else number(1)
    if not options & (SMOOTH | SOFT):
        return f64(weight_y), f64(weight_y), 0.0
    total, product = label_sums(x, f64(origin), q, weight, uniform_mass, target_mass if options & SOFT else 0.0)
    label_y = weight_y * (uniform_mass + target_mass * q[y])
    if not options & SOFT:
        total += weight_y * target_mass
        product += weight_y * target_mass * (x_y - origin) if weight_y * target_mass != 0 else number(0)
        label_y += weight_y * target_mass
    return total, label_y, product


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
    """The loss and the gradient of a row with any label. `e` is scratch space for a row."""
    number = weight.dtype.type
    num_classes, options = step.num_classes, step.options
    uniform_mass, target_mass = step.uniform_mass, step.target_mass
    here, there = row * num_classes, (row + 1) * num_classes
    x = logits[row * stride : row * stride + num_classes]
    g = gradient[here:there]
    q = labels[here:there] if options & SOFT else labels[:num_classes]
    y = main_class(q, weight) if options & SOFT else ids[row]
    if not options & SOFT and y == step.ignore_index:
        if options & LOSSES:
            losses[row] = 0
        if options & GRADIENT:
            g[:] = narrow(number(0), g)
        return 0.0
    largest, smallest = extremes(x)
    if not is_finite(largest, smallest, number):
        if options & LOSSES:
            losses[row] = np.nan
        if options & GRADIENT:
            g[:] = narrow(number(np.nan), g)
        return np.nan

    offset, lowest, k = scaling(unorder(largest))
    exponentials(x, offset, lowest, k, e)
    if options & SMOOTH and not options & SOFT and weight[y] == 0:  # its terms are 0; the others would cancel with it
        y = largest_class(x)
        step = Step(num_classes, step.ignore_index, options, uniform_mass, 0.0, step.scale)
    e_y, rest = e[y], long_sum(e, y)
    x_y = widen(x[y])
    loss_y = minus_log_softmax(rest, e_y, x_y, offset, lowest, k)
    origin = x_y if x_y > -np.inf else unorder(largest)
    total, label_y, product = label_terms(x, y, x_y, origin, q, weight, step)
    if options & (SMOOTH | SOFT):
        loss = distribution_loss(total, label_y, product, loss_y, x_y, origin, rest + e_y, offset, k)
    else:
        loss = total * loss_y if total != 0 else 0.0
    if options & LOSSES:
        losses[row] = loss
    if options & GRADIENT:
        size = step.scale * upstream[row] if options & UPSTREAM else step.scale
        per_sum = total * size / (rest + e_y)
        if options & (SMOOTH | SOFT):
            q_mass = number(size * target_mass) if options & SOFT else number(0)
            label_gradient(e, number(per_sum), q, weight, number(size * uniform_mass), q_mass, g)
        else:
            one_hot_gradient(e, number(per_sum), g)
        slope = per_sum * e_y if label_y == 0 else (total - label_y) * size - per_sum * rest
        g[y] = narrow(number(slope), g)
    return f64(loss)
