"""A classifier's figures as a person reads them: single figures, a row a class, the confusion matrix."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..inference.evaluate import EvaluationResult
from ..inference.metrics import Metrics

MEANINGS = {
    "loss": "nats an image: the loss the model was trained with",
    "accuracy": "top-1: the largest logit is the label's",
    "top5_accuracy": "the label is among the five largest",
    "nll": "negative log-likelihood, nats an image; 0 is best",
    "brier": "squared distance to the one-hot label; 0 is best, 2 worst",
    "ece": "expected calibration error (15 bins); 0 is best",
}
WIDEST_MATRIX = 80  # columns
CONFUSIONS = 10  # rows of the list that stands for a matrix too wide


def print_figures(evaluated: EvaluationResult, console: Console) -> None:
    """Print everything."""
    figures = evaluated.figures
    where = f"{evaluated.checkpoint} (epoch {evaluated.epoch}) on {evaluated.split}"
    console.print(f"{where}: {figures.images:,} images", soft_wrap=True)  # a path is not cut in two
    console.print()
    console.print(_single_figures(figures))
    if evaluated.config.tta != "none":
        console.print(f"test-time augmentation: {evaluated.config.tta}", style="dim")
    if evaluated.temperature != 1:
        console.print(f"probabilities at temperature {evaluated.temperature:.4f}", style="dim")
    console.print()
    console.print(_class_table(figures))
    console.print()
    _print_confusions(figures, console)


def plain(evaluated: EvaluationResult) -> dict[str, Any]:
    """The same as one JSON object."""
    figures = asdict(evaluated.figures)
    about = {"checkpoint": str(evaluated.checkpoint), "epoch": evaluated.epoch, "split": evaluated.split}
    return {**about, "temperature": evaluated.temperature, "tta": evaluated.config.tta, **figures}


def _single_figures(figures: Metrics) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, meaning in MEANINGS.items():
        if (value := getattr(figures, name)) is not None:
            table.add_row(name, Text(f"{value:.4f}", style="bold"), meaning)
    return table


def _class_table(figures: Metrics) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("class", overflow="ellipsis", max_width=30, no_wrap=True)
    for name in ("precision", "recall", "f1", "support"):
        table.add_column(name, justify="right")
    for row in figures.classes:
        table.add_row(row.name, f"{row.precision:.4f}", f"{row.recall:.4f}", f"{row.f1:.4f}", f"{row.support:,}")
    return table


def _print_confusions(figures: Metrics, console: Console) -> None:
    names = [row.name for row in figures.classes]
    most = max((count for row in figures.confusion for count in row), default=0)
    column = max(len(str(most)), min(7, max(map(len, names)))) + 1
    label = min(16, max(map(len, names)))
    if label + 1 + column * len(names) > min(console.width, WIDEST_MATRIX):
        column = max(len(str(most)), 3) + 1
    if label + 1 + column * len(names) > min(console.width, WIDEST_MATRIX):
        _print_most_confused(figures, names, console)
        return
    console.print("confusion matrix (a row: the label; a column: the prediction)")
    console.print(
        Text(" " * (label + 1)) + Text("".join(_cut(name, column - 1).rjust(column) for name in names), "dim")
    )
    for name, row in zip(names, figures.confusion, strict=True):
        line = Text(_cut(name, label).rjust(label) + " ", style="dim")
        total = max(1, sum(row))
        for index, count in enumerate(row):
            right = names[index] == name
            line.append((str(count) if count else ".").rjust(column), style=_shade(count / total, right))
        console.print(line)


def _print_most_confused(figures: Metrics, names: list[str], console: Console) -> None:
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(figures.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    pairs.sort(key=lambda pair: -pair[0])
    console.print(f"most confused, of {len(names)} classes (the whole matrix is in --json)")
    for count, label, predicted in pairs[:CONFUSIONS]:
        console.print(f"  {count:>5}  {label} taken for {predicted}")


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "~"


def _shade(share: float, right: bool) -> str:
    """A cell's style: green for hits, red for misses, the stronger the larger its share of the row."""
    if not share:
        return "dim"
    level = int(40 + 160 * min(1.0, share if right else 4 * share))
    return f"white on rgb({0 if right else level},{level // 2 if right else 0},{level // 4 if right else 0})"
