"""An explanation as text: for each step of the computation a few sentences, and a small table or drawing."""

import math
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ..explain.explanation import Explanation
from ..explain.numerics import FormatResult
from . import terminal_art
from .attribution import print_attributions
from .explanation_tables import FADED, HIGHLIGHT, WRONG, Cell, ExplanationPrinter

BAR = 28  # columns


def print_explanation(explanation: Explanation, console: Console, decimals: int = 4) -> None:
    """Print every step, in order.

    Args:
        explanation: what to print.
        console: at least 80 columns wide.
        decimals: decimal places; a number near 0 is printed with an exponent.
    """
    printer = ExplanationPrinter(explanation, console, decimals)
    has_label = explanation.steps.label.count(0) < len(explanation.classes)
    label = f"; the label is {printer.names[explanation.steps.main]}" if has_label else ""
    console.print(Text(f"The loss, step by step: {explanation.title}{label}", "bold"), soft_wrap=True)
    for note in explanation.notes:
        printer.text(note)
    own = explanation.own_loss
    if own is not None:
        printer.text(
            f"This run was trained with another loss, {own.name}; its value for this image is {printer.num(own.loss)}. "
            "The steps below are those of cross-entropy."
        )
    for print_step in STEPS:
        print_step(printer)


def _image(to: ExplanationPrinter) -> None:
    image = to.explanation.image
    if image is None:
        return
    channels, height, width = image.shape
    to.heading("The image")
    kind = {1: "gray", 3: "color"}.get(channels, f"{channels}-channel")
    to.text(f"{height * width:,} {kind} pixels, {height} high and {width} wide: the input of the network.")
    to.draw(terminal_art.picture(image, to.has_color))


def _weighted_sums(to: ExplanationPrinter) -> None:
    steps = to.steps
    to.heading("The weighted sums z, called logits")
    to.text(
        "For each class the network computes a weighted sum: evidence for the class counts positive, evidence against "
        "it negative. The sums can be any numbers; they are not probabilities yet. The class with the largest sum is "
        f"the prediction: {to.names[to.explanation.predicted]}."
    )
    raw = steps.raw_logits
    low, high = min(0.0, *raw), max(0.0, *raw)
    to.table(
        ["", "z", ""],
        lambda i: [to.num(raw[i]), terminal_art.bar(raw[i], low, high, BAR)],
        to.others(f"at most {to.num(max(raw[i] for i in to.rest))}" if to.rest else ""),
    )
    _contributions(to)
    print_attributions(to)
    if steps.temperature != 1:
        to.heading("The temperature")
        to.text(
            f"The sums are divided by the temperature, {to.num(steps.temperature)}. A higher temperature makes the "
            "probabilities more equal, a lower one less. softmaxce calibrate fits the temperature at which the labels "
            "of the validation split are most likely. The order of the classes does not change. From here on, z means "
            "the divided logits."
        )
        to.table(["", "z"], lambda i: [to.num(steps.logits[i])])


def _contributions(to: ExplanationPrinter) -> None:
    contributions = to.explanation.contributions
    if contributions is None:
        return
    to.heading("The contributions of the pixels")
    order = sorted(range(len(to.classes)), key=lambda index: -to.steps.raw_logits[index])
    pair = [to.steps.main, next(index for index in order if index != to.steps.main)]
    signs = "red is positive, blue is negative" if to.has_color else "+ and # are positive, - and = are negative"
    to.text(
        "This model is linear, so the contribution of each pixel to each sum is known: its weight times its "
        f"brightness, relative to the mean of the training images. Below, {signs}: for the label, and for the other "
        "class with the largest logit. The contributions to a class and its bias, which does not depend on the image, "
        "add up to its logit."
    )
    pixels = contributions.pixels.double()
    largest = pixels[pair].abs().max().item()
    maps = [
        terminal_art.signed_map(
            pixels[index].numpy(),
            largest,
            to.has_color,
            to.half_width,
            true_color=to.console.color_system == "truecolor",
        )
        for index in pair
    ]
    to.draw_pair([to.name(index) for index in pair], maps)
    up, down = pixels.clamp_min(0).sum((1, 2)).tolist(), pixels.clamp_max(0).sum((1, 2)).tolist()
    bias = contributions.bias.tolist()
    to.table(
        ["", "positive", "negative", "bias", "sum z"],
        lambda i: [
            to.num(up[i], sign=True), to.num(down[i]), to.num(bias[i], sign=True), to.num(to.steps.raw_logits[i])
        ],
    )  # fmt: skip


def _subtract(to: ExplanationPrinter) -> None:
    steps = to.steps
    to.heading("Subtract the largest logit")
    to.text(
        "The next step is exp, and exp of a large number overflows: float32 ends at exp(88.7). So the largest logit, "
        f"{to.num(steps.largest)}, is subtracted from all of them. The probabilities are the same, because they depend "
        "on the differences alone."
    )
    to.table(["", f"z - {to.num(steps.largest)}"], lambda i: [to.num(steps.shifted[i])])


def _exponentials(to: ExplanationPrinter) -> None:
    e = to.steps.exponentials
    to.heading("exp of each, and the sum")
    to.text(
        "exp(x) is the number e = 2.718... to the power of x. It makes all numbers positive and keeps their order. "
        "Adding 1 to a logit multiplies its exp by 2.718."
    )
    to.table(
        ["", "exp", ""],
        lambda i: [to.num(e[i]), terminal_art.bar(e[i], 0, 1, BAR)],
        to.others(to.num(to.rest_of(e))),
        [Text("sum", FADED), to.num(to.steps.exponential_sum)],
    )


def _softmax(to: ExplanationPrinter) -> None:
    s = to.steps.probabilities
    to.heading("Softmax: S = exp / sum")
    to.text("Each is divided by the sum. These are the probabilities: none is negative, and their sum is 1.")
    to.table(
        ["", "S", "", ""],
        lambda i: [to.num(s[i]), Text(to.percent(s[i]).rjust(8)), terminal_art.bar(s[i], 0, 1, BAR)],
        to.others(to.num(to.rest_of(s)), Text(to.percent(to.rest_of(s)).rjust(8)).plain),
        [Text("sum", FADED), to.num(math.fsum(s)), to.percent(math.fsum(s)).rjust(8)],
    )


def _label(to: ExplanationPrinter) -> None:
    steps = to.steps
    to.heading("The label L")
    hard = sorted(steps.label)[-1] == 1
    if hard:
        to.text(
            f"The label is {to.names[steps.main]}. As a vector, it is 1 for the true class and 0 for all others, "
            "which is called one-hot."
        )
    else:
        to.text("It is a soft label: several classes have a probability, as for images mixed by mixup or CutMix.")
    if steps.label_smoothing:
        to.text(
            f"Label smoothing distributes {to.num(steps.label_smoothing)} of it evenly over all {len(to.classes)} "
            "classes, so that the loss does not reward unlimited confidence."
            + ("" if steps.weight is not None else " From here on, L is the smoothed label.")
        )
    if steps.weight is not None:
        to.text(
            "Class weights make some classes count more than others: label times weight is Q, and Q replaces L from "
            "here on."
        )
    header = ["", "L"]
    columns: list[Callable[[int], str]] = [lambda i: to.label_entry(steps.label[i])]
    if steps.label_smoothing:
        header.append("smoothed")
        columns.append(lambda i: to.label_entry(steps.smoothed[i]))
    if steps.weight is not None:
        weight = steps.weight
        header += ["weight", "Q"]
        columns += [lambda i: to.num(weight[i]), lambda i: to.label_entry(steps.targets[i])]
    to.table(header, lambda i: [column(i) for column in columns])


def _product(to: ExplanationPrinter) -> None:
    steps = to.steps
    q = "Q" if steps.weight is not None else "L"
    to.heading(f"Cross-entropy: -{q} log S")
    left = [index for index, target in enumerate(steps.targets) if target > 0]
    rule = (
        "The natural log of a probability is 0 at probability 1 and goes to minus infinity at probability 0; the minus "
        f"turns it into a penalty. The log of each class's S is multiplied by {q}."
    )
    if len(left) == 1:
        to.text(f"{rule} Where {q} is 0 the term is 0, whatever S is; only the term of {to.names[left[0]]} remains.")
    elif len(left) == len(to.classes):
        to.text(f"{rule} No {q} is 0, so every class contributes a term.")
    else:
        to.text(f"{rule} Where {q} is 0 the term is 0; {len(left)} terms remain.")

    def row(i: int) -> list[Cell]:
        counts = steps.targets[i] > 0
        style = (HIGHLIGHT if i == steps.main else "") if counts else FADED
        cells = [to.label_entry(steps.targets[i]), to.num(steps.log_probabilities[i]), to.num(steps.terms[i])]
        remark = ("<-" if len(left) == 1 else "") if counts else "is 0"
        return [Text(cell, style) for cell in [*cells, remark]]

    to.table(
        ["", q, "log S", f"-{q} log S", ""],
        row,
        to.others("", "", to.num(to.rest_of(steps.terms))),
        [Text("sum", FADED), "", "", Text(to.num(steps.loss), "bold")],
    )


def _loss(to: ExplanationPrinter) -> None:
    steps = to.steps
    to.heading("The loss")
    label = to.names[steps.main]
    name, one_term = f"S({label})", steps.has_one_term
    what = f"-log {name} =" if one_term else "the sum of these terms:"
    uniform = math.log(len(to.classes))
    to.text(
        f"It is {what} {to.num(steps.loss)} nats, or {to.num(steps.bits)} bits (a bit is log 2 = 0.6931 nats). "
        + (
            f"It is 0 at {name} = 1, and grows without bound as {name} nears 0. Equal probabilities for all "
            f"{len(to.classes)} classes give log {len(to.classes)} = {to.num(uniform)}."
            if one_term
            else _minimum(to)
        )
    )
    if steps.weight is not None:
        to.text("In training, the mean over a batch divides by the sum of the labels' weights.")
    if not one_term:
        to.text(f"The curve of -log, with {label}, the label's largest entry, marked on it:")
    main = steps.main
    to.draw(
        terminal_art.curve(
            steps.probabilities[main], -steps.log_probabilities[main], name, HIGHLIGHT if to.has_color else "bold"
        )
    )


def _minimum(to: ExplanationPrinter) -> str:
    """The least loss for these targets, and the probabilities that have it, in a sentence."""
    steps = to.steps
    if not any(steps.targets):
        return "All Q are 0, so it is 0 whatever S is."
    if steps.weight is None:
        where = "the smoothed label" if steps.label_smoothing else "the label"
    else:
        entries = [f"{to.names[i]}: {to.label_entry(steps.least_at[i])}" for i in to.shown]
        where = f"the weighted label Q / sum(Q) ({', '.join(entries)}{', ...' if to.rest else ''})"
    return f"Its minimum is {to.num(steps.least)}, reached when S equals {where}."


def _gradient(to: ExplanationPrinter) -> None:
    steps = to.steps
    q = "Q" if steps.weight is not None else "L"
    total = math.fsum(steps.targets)
    factor = "" if steps.weight is None else f"{to.num(total)} "
    to.heading(f"The gradient: {factor}S - {q}")
    to.text(
        "The derivative of the loss with respect to each logit has this simple form"
        + (f" ({to.num(total)} is the sum of Q)" if factor else "")
        + ". Gradient descent goes the other way: logits whose probability is too small are raised, those whose "
        "probability is too large are lowered, each in proportion to its error. The entries sum to 0."
    )
    g = steps.gradient

    def row(i: int) -> list[Cell]:
        direction = "raise z ▲" if g[i] < 0 else "lower z ▼" if g[i] > 0 else "keep z"
        style = "green" if g[i] < 0 else "red" if g[i] > 0 else FADED
        numbers = [to.num(steps.probabilities[i]), to.label_entry(steps.targets[i]), to.num(g[i], sign=True)]
        return [*numbers, Text(direction, style)]

    to.table(
        ["", "S", q, "gradient", ""],
        row,
        to.others("", "", to.num(to.rest_of(g), sign=True)),
        [Text("sum", FADED), "", "", f"{abs(math.fsum(g)):.{to.decimals}f}"],
    )
    own = to.explanation.own_loss
    if own is not None:
        to.text(f"{own.name} has another gradient:")
        to.table(["", "gradient"], lambda i: [to.num(own.gradient[i], sign=True)])


def _step(to: ExplanationPrinter) -> None:
    steps, step = to.steps, to.steps.step
    to.heading("One step of gradient descent")
    scaled = "" if step.size == 1 else f" times {to.num(step.size)} (1 over the sum of Q)"
    to.text(
        f"Subtract the gradient{scaled} from the logits, and compute softmax again. In training the step is smaller, "
        "and the gradient is propagated through the network to its weights."
    )
    s, after = steps.probabilities, step.probabilities
    to.table(
        ["", "z", "z after", "S", "S after"],
        lambda i: [to.num(steps.logits[i]), to.num(step.logits[i]), to.percent(s[i]), to.percent(after[i])],
        to.others("", "", to.percent(to.rest_of(s)), to.percent(to.rest_of(after))),
    )
    difference = step.loss - steps.loss
    if abs(difference) <= 1e-14 * steps.loss:  # the loss is rounded to about 16 digits
        change = "does not change"
    else:
        change = f"{'falls' if difference < 0 else 'rises'} by {to.num(abs(difference))}"
    to.console.print()
    to.text(f"The loss {change}: {to.num(steps.loss)} -> {to.num(step.loss)}.")


def _numerics(to: ExplanationPrinter) -> None:
    to.heading("The same in floating-point arithmetic")
    to.text(
        f"Naive: softmax, then its log, as above. Stable, as softmaxce computes it: {stable_formula(to.explanation)} "
        "Training usually computes in float32; bfloat16 and float16 have fewer digits."
    )
    formats = to.explanation.formats
    positive = any(to.steps.targets)  # then the exact loss is above 0

    def row(result: FormatResult) -> list[Cell]:
        difference = abs(result.naive - result.right)
        style = "" if math.isfinite(result.naive) else WRONG
        shown: list[Cell] = [Text(_full(result.naive), style), _full(result.right)]
        shown.append(f"{difference:.1e}" if difference else "0")
        lost = "both rounded to 0" if result.right == 0 else "naive: rounded to 0" if result.naive == 0 else ""
        return [result.format, *shown, lost if positive else ""]

    to.rows(["", "naive loss", "stable loss", "difference", ""], [row(result) for result in formats])
    to.console.print()
    gap = next(result.limit.gap for result in formats if result.format == "float32")
    to.text(
        "Mathematically softmax is never 0, so its log is finite. In float32 it underflows to 0 when two logits are "
        f"about {gap:.0f} or more apart, and the naive loss is infinite. Examples (the second class is the label):"
    )

    def limit_row(result: FormatResult) -> list[Cell]:
        limit = result.limit
        pair = ", ".join(f"{logit:g}" for logit in limit.logits)
        return [result.format, f"{limit.gap:.2f}", pair, Text(f"{limit.naive:g}", WRONG), f"{limit.right:g}"]

    header = ["", "S is 0 from", "logits", "naive loss", "stable loss"]
    to.rows(header, [limit_row(result) for result in formats])


def stable_formula(explanation: Explanation) -> str:
    """The formula of `softmaxce.cross_entropy`, as docs/losses.md has it, for this label."""
    y = explanation.name_in_text(explanation.heaviest)
    rest = (
        f"log(sum) computed as log1p(rest + expm1(z_y - largest)), where y is {y} and rest is the sum of the other "
        "classes' exp. log1p(x) is log(1 + x), and expm1(x) is exp(x) - 1, both accurate where x is near 0."
    )
    if explanation.steps.has_one_term:
        return f"log(sum) - (z_y - largest), with {rest}"
    q = "L" if explanation.steps.weight is None else "Q"
    return f"sum({q}) log(sum) - the sum of {q} (z - largest), with {rest}"


def _full(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.8f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.7e}"


STEPS = (
    *(_image, _weighted_sums, _subtract, _exponentials, _softmax, _label, _product, _loss, _gradient, _step),
    _numerics,
)
