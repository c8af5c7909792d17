"""An explanation as text: for each step of the article a sentence, and a small table or picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ..explain.explanation import Explanation
from ..explain.numerics import Computed
from ..explain.steps import Steps
from . import terminal_art

WIDEST = 80  # columns
INDENT = 3
WIDEST_NAME = 24  # columns of a class's name
FEW_CLASSES, SHOWN = 12, 8  # more classes than the first are cut down to the second, the label aside
BAR = 28  # columns

LABEL, LIT, FADED, WRONG = "bold green", "bold yellow", "dim", "bold red"

Cell = str | Text


def print_explanation(explanation: Explanation, console: Console, decimals: int = 4) -> None:
    """Print every step, in order.

    Args:
        explanation: what to print.
        console: where to; 80 columns are enough.
        decimals: of the numbers; one near 0 is written with an exponent.
    """
    teller = _Teller(explanation, console, decimals)
    label = (
        "" if explanation.steps.label.count(0) == len(explanation.classes) else f"; the label is {explanation.label}"
    )
    console.print(Text(f"The loss, step by step: {explanation.title}{label}", "bold"), soft_wrap=True)
    for note in explanation.notes:
        teller.say(note)
    for tell in CHAPTERS:
        tell(teller)


@dataclass
class _Teller:
    """Prints headings, sentences and tables about one explanation."""

    explanation: Explanation
    console: Console
    decimals: int
    number: int = 0
    shown: list[int] = field(init=False)  # the classes that the tables have a row for

    def __post_init__(self) -> None:
        steps = self.explanation.steps
        self.steps = steps
        self.classes = self.explanation.classes
        self.shown = rows_for(steps)
        self.rest = [index for index in range(len(self.classes)) if index not in self.shown]
        self.width = min(WIDEST, console_width(self.console))
        self.colour = self.console.color_system is not None and not self.console.no_color

    # -- sentences ----------------------------------------------------------------------------------------------------

    def heading(self, text: str) -> None:
        """The next step begins."""
        self.number += 1
        self.console.print()
        self.console.print(Text(f"{self.number:>2} {text}", "bold"))

    def say(self, text: str) -> None:
        """A few sentences, wrapped."""
        for line in Text(text).wrap(self.console, self.width - INDENT):
            line.rstrip()
            self.console.print(Text(" " * INDENT) + line, soft_wrap=True)

    def draw(self, lines: Sequence[Text]) -> None:
        """A picture."""
        self.console.print()
        for line in lines:
            indented = Text(" " * INDENT) + line
            indented.rstrip()
            self.console.print(indented, soft_wrap=True)

    # -- tables -------------------------------------------------------------------------------------------------------

    def num(self, value: float, *, sign: bool = False) -> str:
        """A number with the wanted decimals; with an exponent where these would not tell it."""
        plus = "+" if sign and value > 0 else ""
        if not math.isfinite(value):
            return str(value)
        if value == 0 or 1e-3 <= abs(value) < 1e6:
            return f"{plus}{value:.{self.decimals}f}"
        if sign and abs(value) < 1e-15:
            return f"{0:.{self.decimals}f}"
        return f"{plus}{value:.{self.decimals - 1}e}"

    def percent(self, value: float) -> str:
        """A probability as a percentage."""
        return f"{100 * value:.2f} %"

    def share(self, value: float) -> str:
        """An entry of a label: 0 and 1 as they are."""
        return f"{value:g}" if value in (0, 1) else self.num(value)

    def name(self, index: int) -> Text:
        """A class's name; the label's stands out."""
        text = self.classes[index]
        if cell_len(text) > WIDEST_NAME:
            text = set_cell_size(text, WIDEST_NAME - 1) + "…"
        return Text(text, LABEL if self.steps.label[index] == max(self.steps.label) else "")

    def table(self, header: Sequence[str], row: Callable[[int], Sequence[Cell]], *after: Sequence[Cell]) -> None:
        """A row a class, then the rows `after`. The first column and one without a heading stand left.

        Args:
            header: the columns' headings, the first of them the class's; empty strings for none at all.
            row: a class id -> its cells after the name.
            after: whole rows, first cells included.
        """
        rows: list[list[Cell]] = [[self.name(index), *row(index)] for index in self.shown]
        rows += [list(cells) for cells in after if cells]
        self.rows(header, rows)

    def rows(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Rows of cells under a heading."""
        cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
        heads = [Text(text, FADED) for text in header]
        count = max(len(row) for row in [*cells, heads])
        widths = [max(row[i].cell_len for row in [heads, *cells] if i < len(row)) for i in range(count)]
        self.console.print()
        for row in [heads, *cells] if any(header) else cells:
            line = Text(" " * INDENT)
            for i, cell in enumerate(row):
                space = " " * (widths[i] - cell.cell_len)
                left = i == 0 or not header[i]
                line += (cell + Text(space) if left else Text(space) + cell) + Text("  ")
            line.rstrip()
            self.console.print(line, soft_wrap=True)

    def others(self, *cells: str) -> list[Cell]:
        """The row for the classes without one."""
        return [Text(f"{len(self.rest)} others", FADED), *cells] if self.rest else []

    def rest_of(self, values: Sequence[float]) -> float:
        """The sum over the classes without a row."""
        return math.fsum(values[index] for index in self.rest)


def rows_for(steps: Steps) -> list[int]:
    """The classes that tables have a row for: all, or of many those with the largest logits, and the label's."""
    ids = range(len(steps.logits))
    if len(ids) <= FEW_CLASSES:
        return list(ids)
    wanted = sorted(ids, key=lambda index: -steps.logits[index])[:SHOWN]
    shares = sorted((index for index in ids if steps.label[index] > 0), key=lambda index: -steps.label[index])
    return wanted + [index for index in shares[:2] if index not in wanted]


def console_width(console: Console) -> int:
    """The columns there are; a pipe has as many as wanted."""
    return console.width if console.is_terminal else WIDEST


# -- the steps of the article -----------------------------------------------------------------------------------------


def _image(to: _Teller) -> None:
    image = to.explanation.image
    if image is None:
        return
    channels, height, width = image.shape
    to.heading("The image")
    kind = "grey" if channels == 1 else "coloured"
    to.say(f"{height * width:,} {kind} pixels, {height} high and {width} wide: this is all that the network is given.")
    to.draw(terminal_art.picture(image, to.colour))


def _weighted_sums(to: _Teller) -> None:
    steps = to.steps
    to.heading("The weighted sums z, called logits")
    to.say(
        "For each class the network adds up what speaks for it and takes away what speaks against it. The sums can be "
        f"any numbers; they are no probabilities yet. The largest is its answer: "
        f"{to.classes[to.explanation.predicted]}."
    )
    raw = steps.raw_logits
    low, high = min(0.0, *raw), max(0.0, *raw)
    to.table(
        ["", "z", ""],
        lambda i: [to.num(raw[i]), terminal_art.bar(raw[i], low, high, BAR)],
        to.others(f"at most {to.num(max(raw[i] for i in to.rest))}" if to.rest else ""),
    )
    _contributions(to)
    if steps.temperature != 1:
        to.heading("The temperature")
        to.say(
            f"The sums are divided by the temperature, {to.num(steps.temperature)}. A high one makes the probabilities "
            "more alike, a low one less; softmaxce calibrate finds the one with which they can be taken at their word. "
            "The order of the classes stays. From here on z is the quotient."
        )
        to.table(["", "z"], lambda i: [to.num(steps.logits[i])])


def _contributions(to: _Teller) -> None:
    found = to.explanation.contributions
    if found is None:
        return
    to.heading("Which pixels pushed")
    order = sorted(range(len(to.classes)), key=lambda index: -to.steps.raw_logits[index])
    pair = [to.steps.main, next(index for index in order if index != to.steps.main)]
    signs = "red pushed the sum up, blue pushed it down" if to.colour else "+ and # pushed up, - and = pushed down"
    to.say(
        "This model is nothing but weighted sums, so each pixel's part in them is known: its weight times its "
        f"brightness, measured from the training images' average. Below, {signs}: for the label, and for its strongest "
        "rival. A class's pixels and its bias, a number that does not depend on the image, add up to its logit."
    )
    pixels = found.pixels.double()
    largest = pixels[pair].abs().max().item()
    room = (to.width - INDENT - 4) // 2
    maps = [
        terminal_art.pushes(pixels[index].numpy(), largest, to.colour, min(room, terminal_art.WIDEST)) for index in pair
    ]
    wide = max(maps[0][0].cell_len, 12)
    title = _to_width(to.name(pair[0]), wide) + Text("    ") + to.name(pair[1])
    title.rstrip()
    to.draw([title, *(_to_width(left, wide) + Text("    ") + right for left, right in zip(*maps, strict=True))])
    up, down = pixels.clamp_min(0).sum((1, 2)).tolist(), pixels.clamp_max(0).sum((1, 2)).tolist()
    bias = found.bias.tolist()
    to.table(
        ["", "pushed up", "pushed down", "bias", "sum z"],
        lambda i: [
            to.num(up[i], sign=True), to.num(down[i]), to.num(bias[i], sign=True), to.num(to.steps.raw_logits[i])
        ],
    )  # fmt: skip


def _to_width(text: Text, width: int) -> Text:
    if text.cell_len > width:
        text.truncate(width, overflow="ellipsis")
    return text + Text(" " * (width - text.cell_len))


def _subtract(to: _Teller) -> None:
    steps = to.steps
    to.heading("Take the largest off all")
    to.say(
        "Next comes exp, and exp of a large number is too large for a computer: float32 ends at exp(88.7). So the "
        f"largest logit, {to.num(steps.largest)}, is taken off all of them. What comes out is the same, for it "
        "depends on the differences alone."
    )
    to.table(["", f"z - {to.num(steps.largest)}"], lambda i: [to.num(steps.shifted[i])])


def _exponentials(to: _Teller) -> None:
    e = to.steps.exponentials
    to.heading("exp of each, and the sum")
    to.say(
        "exp(x) is the number e = 2.718... to the power of x. It makes all numbers positive and keeps their order. "
        "A logit that is larger by 1 counts 2.718 times as much."
    )
    to.table(
        ["", "exp", ""],
        lambda i: [to.num(e[i]), terminal_art.bar(e[i], 0, 1, BAR)],
        to.others(to.num(to.rest_of(e))),
        [Text("sum", FADED), to.num(to.steps.exponential_sum)],
    )


def _softmax(to: _Teller) -> None:
    s = to.steps.probabilities
    to.heading("Softmax: S = exp / sum")
    to.say("Each is divided by the sum. These are the probabilities: none is below 0, and together they make 1.")
    to.table(
        ["", "S", "", ""],
        lambda i: [to.num(s[i]), Text(to.percent(s[i]).rjust(8)), terminal_art.bar(s[i], 0, 1, BAR)],
        to.others(to.num(to.rest_of(s)), Text(to.percent(to.rest_of(s)).rjust(8)).plain),
        [Text("sum", FADED), to.num(math.fsum(s)), to.percent(math.fsum(s)).rjust(8)],
    )


def _label(to: _Teller) -> None:
    steps = to.steps
    to.heading("The label L")
    hard = sorted(steps.label)[-1] == 1
    if hard:
        to.say(
            f"It says what is true: {to.explanation.label}. As a vector it is 1 for the true class and 0 for all "
            "others, which is called one-hot."
        )
    else:
        to.say("It is a soft one: several classes have a share of it, as in images blended by mixup or CutMix.")
    if steps.label_smoothing:
        to.say(
            f"Label smoothing spreads {to.num(steps.label_smoothing)} of it evenly over all {len(to.classes)} classes, "
            "so that the network need not become endlessly sure."
            + ("" if steps.weight is not None else " From here on, L is the smoothed label.")
        )
    if steps.weight is not None:
        to.say(
            "The run's class weights then make some classes count more than others: share times weight is Q, and Q "
            "takes the place of L from here on."
        )
    header = ["", "L"]
    columns: list[Callable[[int], str]] = [lambda i: to.share(steps.label[i])]
    if steps.label_smoothing:
        header.append("smoothed")
        columns.append(lambda i: to.share(steps.smoothed[i]))
    if steps.weight is not None:
        weight = steps.weight
        header += ["weight", "Q"]
        columns += [lambda i: to.num(weight[i]), lambda i: to.share(steps.targets[i])]
    to.table(header, lambda i: [column(i) for column in columns])


def _product(to: _Teller) -> None:
    steps = to.steps
    q = "Q" if steps.weight is not None else "L"
    to.heading(f"Cross-entropy: -{q} log S")
    left = [index for index, share in enumerate(steps.targets) if share > 0]
    rule = (
        "The log (the natural one) of a probability is 0 for certainty and falls without end towards probability 0; "
        f"the minus makes a penalty of it. It is taken of each class's S, times {q}."
    )
    if len(left) == 1:
        to.say(f"{rule} Where {q} is 0 the term vanishes, whatever S may be. One is left: {to.classes[left[0]]}'s.")
    elif len(left) == len(to.classes):
        to.say(f"{rule} No {q} is 0, so every class's term counts.")
    else:
        to.say(f"{rule} Where {q} is 0 the term vanishes; {len(left)} are left.")

    def row(i: int) -> list[Cell]:
        lit = steps.targets[i] > 0
        style = (LIT if i == steps.main else "") if lit else FADED
        cells = [to.share(steps.targets[i]), to.num(steps.log_probabilities[i]), to.num(steps.terms[i])]
        word = ("<-" if len(left) == 1 else "") if lit else "vanishes"
        return [Text(cell, style) for cell in [*cells, word]]

    to.table(
        ["", q, "log S", f"-{q} log S", ""],
        row,
        to.others("", "", to.num(to.rest_of(steps.terms))),
        [Text("sum", FADED), "", "", Text(to.num(steps.loss), "bold")],
    )


def _loss(to: _Teller) -> None:
    steps = to.steps
    to.heading("The loss")
    name = f"S({to.explanation.label})"
    plain = steps.weight is None and sum(share > 0 for share in steps.targets) == 1
    what = f"-log {name}" if plain else "the sum of these terms"
    blind = math.log(len(to.classes))
    to.say(
        f"It is {what} = {to.num(steps.loss)} nats, or {to.num(steps.bits)} bits (a bit is log 2 = 0.6931 nats). "
        + (
            f"It is 0 if the network is certain of {to.explanation.label}, and grows without end as {name} nears 0. "
            f"A blind guess among {len(to.classes)} classes costs log {len(to.classes)} = {to.num(blind)}."
            if plain
            else f"It cannot come below {to.num(steps.least)}: that much is left when S has the label's own shares."
        )
    )
    if steps.weight is not None:
        to.say("In training, the mean over a batch divides by the sum of the labels' weights.")
    if not plain:
        to.say(f"Here is the place of {to.explanation.label}, the label's largest part, on the curve of -log:")
    main = steps.main
    to.draw(
        terminal_art.curve(
            steps.probabilities[main], -steps.log_probabilities[main], name, LIT if to.colour else "bold"
        )
    )
    own = to.explanation.own_loss
    if own is not None:
        to.say(
            f"This run was trained with another loss, {own.name}, which gives this image {to.num(own.loss)}. Here you "
            "see cross-entropy."
        )


def _gradient(to: _Teller) -> None:
    steps = to.steps
    q = "Q" if steps.weight is not None else "L"
    total = math.fsum(steps.targets)
    factor = "" if steps.weight is None else f"{to.num(total)} "
    to.heading(f"The gradient: {factor}S - {q}")
    to.say(
        "It says how fast the loss rises with each logit, and this is all there is to its formula"
        + (f" ({to.num(total)} is the sum of Q)" if factor else "")
        + ". Training goes the other way: what has too small a probability is raised, what has too large a one is "
        "lowered, each by as much as it is wrong. Together they make 0."
    )
    g = steps.gradient

    def row(i: int) -> list[Cell]:
        turn = "raise z ▲" if g[i] < 0 else "lower z ▼" if g[i] > 0 else "leave z"
        style = "green" if g[i] < 0 else "red" if g[i] > 0 else FADED
        return [
            to.num(steps.probabilities[i]), to.share(steps.targets[i]), to.num(g[i], sign=True), Text(turn, style)
        ]  # fmt: skip

    to.table(
        ["", "S", q, "gradient", ""],
        row,
        to.others("", "", to.num(to.rest_of(g), sign=True)),
        [Text("sum", FADED), "", "", f"{abs(math.fsum(g)):.{to.decimals}f}"],
    )
    own = to.explanation.own_loss
    if own is not None:
        to.say(f"{own.name} has another gradient:")
        to.table(["", "gradient"], lambda i: [to.num(own.gradient[i], sign=True)])


def _step(to: _Teller) -> None:
    steps, step = to.steps, to.steps.step
    to.heading("One step against the gradient")
    size = "once" if step.size == 1 else f"{to.num(step.size)} times (1 over the sum of Q)"
    to.say(
        f"Take the gradient off the logits {size}, and let softmax come out anew. In training the step is smaller, and "
        "goes on through the network to its weights."
    )
    s, after = steps.probabilities, step.probabilities
    to.table(
        ["", "z", "z after", "S", "S after"],
        lambda i: [to.num(steps.logits[i]), to.num(step.logits[i]), to.percent(s[i]), to.percent(after[i])],
        to.others("", "", to.percent(to.rest_of(s)), to.percent(to.rest_of(after))),
    )
    change = "falls" if step.loss < steps.loss else "stays" if step.loss == steps.loss else "rises"
    to.console.print()
    to.say(f"The loss {change}: {to.num(steps.loss)} -> {to.num(step.loss)}.")


def _numerics(to: _Teller) -> None:
    to.heading("The same in a computer's numbers")
    to.say(
        "Naive: softmax first, then its log, as above. Right: the log of softmax in one step, "
        "(z - largest) - log(sum), as softmaxce does it. float32 is what training computes in as a rule; bfloat16 and "
        "float16 have fewer digits."
    )
    formats = to.explanation.formats

    def row(computed: Computed) -> list[Cell]:
        off = abs(computed.naive - computed.right)
        style = "" if math.isfinite(computed.naive) else WRONG
        return [computed.format, Text(_full(computed.naive), style), _full(computed.right), f"{off:.1e}"]

    to.rows(["", "naive loss", "right loss", "apart by"], [row(computed) for computed in formats])
    to.console.print()
    gap = next(computed.limit.gap for computed in formats if computed.format == "float32")
    to.say(
        "On paper softmax never gives zero, so its log always exists. In float32 it does past a gap of about "
        f"{gap:.0f} between two logits, and then the naive way takes log 0. These pairs show it (the second class is "
        "the label):"
    )

    def limit_row(computed: Computed) -> list[Cell]:
        limit = computed.limit
        pair = ", ".join(f"{logit:g}" for logit in limit.logits)
        return [computed.format, f"{limit.gap:.2f}", pair, Text(f"{limit.naive:g}", WRONG), f"{limit.right:g}"]

    header = ["", "S is 0 past", "logits", "naive loss", "right loss"]
    to.rows(header, [limit_row(computed) for computed in formats])


def _full(value: float) -> str:
    return (
        f"{value:.8f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.7e}" if math.isfinite(value) and value else str(value)
    )


CHAPTERS = (
    *(_image, _weighted_sums, _subtract, _exponentials, _softmax, _label, _product, _loss, _gradient, _step),
    _numerics,
)
