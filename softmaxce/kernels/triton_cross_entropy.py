"""Cross-entropy and its gradient on a GPU: the Triton kernels, which losses/cuda.py launches.

Experimental: tested in Triton's interpreter and compiled for NVIDIA GPUs, but not measured on one; see losses/cuda.py.

The arithmetic is that of losses/reference.py, arranged for the least memory traffic: the forward pass reads the logits
once; the backward pass reads them once and writes the gradient once. The forward pass saves six numbers per row for it.

Reading once means that a row's largest logit is not known before its last block is read. So the sum of exponentials is
relative to the largest logit so far, m, and is multiplied by exp(m - new m) when a larger one appears (Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3). The target's own term is left out of that
sum, `rest`, so that nothing cancels however confident the model is:

    log sum = log1p(rest) where the target is the largest logit, else log(rest + exp(x_y - m))
    loss    = T log sum - sum_i Q_i (x_i - m)              neither term is negative: no digit is lost here either
    d x_i   = T exp(x_i - m) / sum - Q_i
    d x_y   = (T - Q_y) - T rest / sum                     for a one-hot label, or where S_y is large

with the label Q_i = weight_i (uniform_mass + target_mass q_i), q one-hot or probabilities, T its sum. With
probabilities, y is the class of the largest Q_i: when a block has a larger one, that becomes y and the former joins
`rest`.

Exponentials are scaled up by 2^HEADROOM, as a GPU's exp2 rounds results below 2^-126 to 0. A float32 difference x - m
of 40 is off by up to 2e-6, and so would be its exponential: for float32 logits the rounding error of the subtraction is
computed too (Knuth's two-sum), and the multiple of ln 2 is subtracted in two parts (Cody and Waite 1980).

`forward` is long, as the dozen running values of its loop would have to be passed into and out of every part.
"""

import triton
import triton.language as tl

IDS = tl.constexpr(0)  # what the labels are: class ids,
SMOOTH = tl.constexpr(1)  # class ids with label smoothing,
SOFT = tl.constexpr(2)  # probabilities

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(355 / 512)  # nine bits: its product with a whole number below 2^15 is exact
LN2_LOW = tl.constexpr(-2.1219444005469057e-4)
HEADROOM = tl.constexpr(48)
DOWN = tl.constexpr(2.0**-48)
DEPTH = tl.constexpr(-119.0)  # below, exp times any sensible factor is 0
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def exponential(x, m, EXACT: tl.constexpr):
    """2^HEADROOM exp(x - m) for x <= m; NaN stays NaN."""
    d = x - m
    deep = d < DEPTH
    z = tl.where(deep, DEPTH, d)
    if EXACT:
        from_m = z - x
        rounded_away = (x - (z - from_m)) - (m + from_m)
        n = tl.floor(z * LOG2_E + 0.5)
        r = (z - n * LN2_HIGH) - n * LN2_LOW + tl.where(deep, 0.0, rounded_away)
        power = ((n.to(tl.int32) + (127 + HEADROOM)) << 23).to(tl.float32, bitcast=True)
        e = tl.exp2(r * LOG2_E) * power
    else:
        e = tl.exp2(z * LOG2_E + HEADROOM)
    return tl.where(deep, 0.0, e)


@triton.jit
def log1p(r):
    """log(1 + r) with all digits, by Kahan's quotient."""
    u = 1.0 + r
    small = u == 1.0
    return tl.where(small, r, tl.log(u) * (r / tl.where(small, 1.0, u - 1.0)))


@triton.jit
def label_of(
    labels,
    weight,
    row,
    col,
    inside,
    y,
    num_classes,
    stride,
    uniform_mass,
    target_mass,
    KIND: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """The label Q of a tile [ROWS, BLOCK]; 0 outside."""
    if KIND == SOFT:
        q = tl.load(labels + row[:, None] * stride + col[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        q = tl.where(col[None, :] == y[:, None], 1.0, 0.0)
    label = uniform_mass + target_mass * q
    if WEIGHTED:
        label *= tl.load(weight + col, mask=col < num_classes, other=0.0).to(tl.float32)[None, :]
    return tl.where(inside, label, 0.0)


@triton.jit(do_not_specialize=["num_rows", "ignore_index"])
def forward(
    logits,  # [num_rows, num_classes], with this stride between rows
    labels,  # ids [num_rows], or probabilities [num_rows, num_classes] with label_stride between rows
    weight,  # [num_classes]
    losses,  # [num_rows], for the reduction "none"
    sums,  # [2, programs]: the losses of a program's rows, and what the mean divides by
    saved,  # [6, num_rows]: m, sum, rest, T, T - Q_y, y (-1 for a row that does not count)
    invalid,  # [2], written: a class id out of range, and num_classes
    num_rows,
    num_classes,
    stride,
    label_stride,
    ignore_index,
    uniform_mass,
    target_mass,
    KIND: tl.constexpr,
    WEIGHTED: tl.constexpr,
    EXACT: tl.constexpr,
    REDUCED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The losses of ROWS rows, BLOCK classes at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < num_rows
    if KIND == SOFT:
        counts = live
        is_invalid = row < 0
        y = tl.zeros([ROWS], tl.int32)
        x_y = tl.full([ROWS], -INFINITY, tl.float32)
        label_y = tl.full([ROWS], -INFINITY, tl.float32)
        w_y = tl.where(live, 1.0, 0.0)
    else:
        ids = tl.load(labels + row, mask=live, other=0)
        counts = live & (ids != ignore_index)
        is_invalid = counts & ((ids < 0) | (ids >= num_classes))
        tl.store(invalid + tl.zeros([ROWS], tl.int32), ids, mask=is_invalid)
        tl.store(invalid + tl.full([ROWS], 1, tl.int32), tl.zeros([ROWS], tl.int64) + num_classes, mask=is_invalid)
        y = tl.where(counts & (is_invalid == 0), ids, 0).to(tl.int32)
        x_y = tl.load(logits + row * stride + y, mask=live, other=0.0).to(tl.float32)
        w_y = tl.where(counts, 1.0, 0.0)
        if WEIGHTED:
            w_y = tl.load(weight + y, mask=counts, other=0.0).to(tl.float32)
        label_y = w_y * (uniform_mass + target_mass)

    m = tl.full([ROWS], -INFINITY, tl.float32)
    origin = tl.zeros([ROWS], tl.float32)  # m; or 0, as long as there are only classes at -infinity
    rest = tl.zeros([ROWS], tl.float32)
    others = tl.zeros([ROWS], tl.float32)  # T - Q_y
    seen = tl.zeros([ROWS], tl.float32)  # the sum of Q_i so far, and that of Q_i (x_i - origin)
    product = tl.zeros([ROWS], tl.float32)
    for start in range(0, num_classes, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = live[:, None] & (col < num_classes)[None, :]
        x = tl.load(logits + row[:, None] * stride + col[None, :], mask=inside, other=-INFINITY).to(tl.float32)
        new_m = tl.maximum(m, tl.max(x, 1))
        new_origin = tl.where(new_m == -INFINITY, 0.0, new_m)
        rest = rest * DOWN * exponential(m, new_origin, EXACT)
        if KIND != IDS:
            label = label_of(
                labels,
                weight,
                row,
                col,
                inside,
                y,
                num_classes,
                label_stride,
                uniform_mass,
                target_mass,
                KIND,
                WEIGHTED,
            )
            product += seen * (origin - new_origin)
            product += tl.sum(tl.where(label != 0.0, label * (x - new_origin[:, None]), 0.0), 1)
            seen += tl.sum(label, 1)
        if KIND == SOFT:  # a class of this block may become y, and the former y then joins the others
            candidates = tl.where(inside, label, -INFINITY)
            largest = tl.max(candidates, 1)
            larger = largest > label_y
            others += tl.where(larger & (label_y > -INFINITY), label_y, 0.0)
            rest += tl.where(larger, exponential(x_y, new_origin, EXACT), 0.0)
            y = tl.where(larger, start + tl.argmax(candidates, 1), y)
            label_y = tl.where(larger, largest, label_y)
            x_y = tl.where(larger, tl.sum(tl.where(col[None, :] == y[:, None], x, 0.0), 1), x_y)
        is_y = col[None, :] == y[:, None]
        rest += tl.sum(tl.where(is_y, 0.0, exponential(x, new_origin[:, None], EXACT)), 1)
        if KIND != IDS:
            others += tl.sum(tl.where(is_y, 0.0, label), 1)
        m = new_m
        origin = new_origin

    z_y = x_y - origin
    total = rest + exponential(x_y, origin, EXACT)
    total = tl.where(m == -INFINITY, float("nan"), total)
    label_sum = tl.where(is_invalid, float("nan"), tl.where(counts, others + label_y, 0.0))
    if KIND == IDS:
        product = tl.where(w_y != 0.0, label_y * z_y, 0.0)
    log_sum = tl.where(z_y == 0.0, log1p(rest * DOWN), tl.log(total * DOWN))
    loss = tl.where(total == total, label_sum * log_sum - product, float("nan"))
    loss = tl.where(is_invalid, float("nan"), tl.where(counts, loss, 0.0))
    tl.store(saved + row, origin, mask=live)
    tl.store(saved + num_rows.to(tl.int64) + row, total, mask=live)
    tl.store(saved + num_rows.to(tl.int64) * 2 + row, rest, mask=live)
    tl.store(saved + num_rows.to(tl.int64) * 3 + row, label_sum, mask=live)
    tl.store(saved + num_rows.to(tl.int64) * 4 + row, others, mask=live)
    tl.store(saved + num_rows.to(tl.int64) * 5 + row, tl.where(counts, y, -1).to(tl.float32), mask=live)
    if REDUCED:
        tl.store(sums + tl.program_id(0), tl.sum(loss, 0))
        tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(w_y, 0))
    else:
        tl.store(losses + row, loss.to(losses.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["num_sums"])
def reduce(
    sums,  # [2, num_sums], as `forward` writes them
    result,  # []: the sum or the mean of the losses
    divisor,  # []: what the mean divides by, else 1
    num_sums,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the sums of the programs of `forward`, always in the same order."""
    losses = tl.zeros([BLOCK], tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_sums, BLOCK):
        index = start + tl.arange(0, BLOCK)
        losses += tl.load(sums + index, mask=index < num_sums, other=0.0)
        weights += tl.load(sums + num_sums + index, mask=index < num_sums, other=0.0)
    total = tl.sum(losses, 0)
    count = tl.sum(weights, 0)
    if MEAN:
        total = total / count
    else:
        count = count * 0.0 + 1.0
    tl.store(result, total.to(result.dtype.element_ty))
    tl.store(divisor, count)


@triton.jit(do_not_specialize=["num_rows", "upstream_stride"])
def backward(
    logits,
    labels,
    weight,
    saved,
    upstream,  # [num_rows] with upstream_stride between them; [] where REDUCED
    divisor,
    gradient,  # [num_rows, num_classes], contiguous
    num_rows,
    num_classes,
    stride,
    label_stride,
    upstream_stride,
    uniform_mass,
    target_mass,
    KIND: tl.constexpr,
    WEIGHTED: tl.constexpr,
    EXACT: tl.constexpr,
    REDUCED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of ROWS rows and BLOCK classes: all factors are multiplied in float32, then rounded once."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = row < num_rows
    inside = live[:, None] & (col < num_classes)[None, :]
    origin = tl.load(saved + row, mask=live, other=0.0)
    total = tl.load(saved + num_rows.to(tl.int64) + row, mask=live, other=1.0)
    rest = tl.load(saved + num_rows.to(tl.int64) * 2 + row, mask=live, other=0.0)
    label_sum = tl.load(saved + num_rows.to(tl.int64) * 3 + row, mask=live, other=0.0)
    others = tl.load(saved + num_rows.to(tl.int64) * 4 + row, mask=live, other=0.0)
    y = tl.load(saved + num_rows.to(tl.int64) * 5 + row, mask=live, other=-1.0).to(tl.int32)
    if REDUCED:
        size = tl.load(upstream).to(tl.float32) / tl.load(divisor) + tl.zeros([ROWS], tl.float32)
    else:
        size = tl.load(upstream + row * upstream_stride, mask=live, other=0.0).to(tl.float32)
    x = tl.load(logits + row[:, None] * stride + col[None, :], mask=inside, other=-INFINITY).to(tl.float32)
    g = exponential(x, origin[:, None], EXACT) * (label_sum * size / total)[:, None]
    if KIND != IDS:
        label = label_of(
            labels, weight, row, col, inside, y, num_classes, label_stride, uniform_mass, target_mass, KIND, WEIGHTED
        )
        g -= label * size[:, None]
    g_y = (others - label_sum * (rest / total)) * size
    is_y = col[None, :] == y[:, None]
    if KIND != IDS:
        is_y = is_y & (rest + rest < total)[:, None]  # where S_y is small, T S - Q is the more accurate
    g = tl.where(is_y, g_y[:, None], g)
    g = tl.where((y < 0)[:, None], 0.0, g)
    index = row[:, None] * num_classes + col[None, :]
    tl.store(gradient + index, g.to(gradient.dtype.element_ty), mask=inside)
