"""An evaluation as tables and as JSON: scalar metrics, per-class metrics, the confusion matrix."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..inference.evaluate import EvaluationResult, MisclassifiedImage
from ..inference.metrics import Metrics
from ..inference.requirements import RequirementResult
from ..streams import escaped
from . import json_values
from .console import plain_table, print_table

MEANINGS = {
    "loss": "nats per image: the loss that was minimized",
    "accuracy": "top-1: the largest logit is the label's",
    "top5_accuracy": "the label is among the five largest",
    "nll": "negative log-likelihood, nats; 0 is best",
    "brier": "squared distance to one-hot; 0 best, 2 worst",
    "ece": "expected calibration error (15 bins); 0 is best",
    "macro_f1": "mean F1 of the classes",
    "balanced_accuracy": "mean recall of the classes",
    "worst_class_recall": "smallest recall of a class",
    "macro_roc_auc": "mean area under ROC curves, class against rest",
    "macro_average_precision": "mean average precision, class against rest",
}
WIDEST_MATRIX = 80  # columns
MISCLASSIFIED = 10  # images printed; --json has all
CONFUSIONS = 10  # rows of the list that replaces a matrix too wide to print


def print_evaluation(result: EvaluationResult, console: Console) -> None:
    """Print everything."""
    metrics = result.metrics
    where = f"{result.checkpoint} (epoch {result.epoch}) on {result.split}"
    console.print(f"{where}: {metrics.images:,} images", soft_wrap=True)  # paths are not wrapped
    console.print()
    print_table(_scalar_table(metrics), console)
    if result.tta != "none":
        console.print(f"test-time augmentation: {result.tta}", style="dim")
    if result.temperature != 1:
        names = "nll, brier, ece, macro_roc_auc and macro_average_precision"
        note = f"{names} at temperature {result.temperature:.4f}; loss at temperature 1, as in training"
        console.print(note, style="dim")
    console.print()
    print_table(_class_table(metrics), console)
    console.print()
    _print_confusions(metrics, console)
    if result.misclassified:
        console.print()
        _print_misclassified(result.misclassified, result.split, console)


def to_json(result: EvaluationResult, requirements: Sequence[RequirementResult] = ()) -> str:
    """The same as one JSON object, with the requirements if there are any."""
    line: dict[str, Any] = {"checkpoint": str(result.checkpoint), "epoch": result.epoch, "split": result.split}
    line |= {"temperature": result.temperature, "tta": result.tta, **asdict(result.metrics)}
    line["misclassified"] = [asdict(image) for image in result.misclassified]
    if requirements:
        line["requirements"] = [requirement.to_dict() for requirement in requirements]
    return json_values.dumps(line)


def _scalar_table(metrics: Metrics) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, meaning in MEANINGS.items():
        if (value := getattr(metrics, name)) is not None:
            table.add_row(name, Text(f"{value:.4f}", style="bold"), meaning)
    return table


def _class_table(metrics: Metrics) -> Table:
    table = plain_table()
    table.add_column("class", overflow="ellipsis", max_width=30, no_wrap=True)
    for name in ("precision", "recall", "f1", "support"):
        table.add_column(name, justify="right")
    for row in metrics.classes:
        table.add_row(row.name, f"{row.precision:.4f}", f"{row.recall:.4f}", f"{row.f1:.4f}", f"{row.support:,}")
    return table


def _print_misclassified(images: Sequence[MisclassifiedImage], split: str, console: Console) -> None:
    """The most confident of the wrong predictions, one image a line, and the command that explains one by its index."""
    shown = images[:MISCLASSIFIED]
    rest = "; the most confident" if len(shown) < len(images) else ""
    console.print(f"misclassified: {len(images):,} image{'s' * (len(images) > 1)}{rest}")
    for image in shown:
        name = f"{split} image {image.index}" if image.file is None else image.file
        line = f"  {name}: {image.label}, predicted {image.predicted} ({image.probability:.3f})"
        console.print(Text(line), soft_wrap=True)
    if shown[0].file is None:
        option = "" if split == "test" else f" --split {split}"
        command = f"softmaxce explain RUN{option} --index {shown[0].index}"
        console.print(f"the loss of one, step by step: {command}", style="dim", soft_wrap=True)


def _print_confusions(metrics: Metrics, console: Console) -> None:
    names = [escaped(row.name) for row in metrics.classes]
    most = max((count for row in metrics.confusion for count in row), default=0)
    column = max(len(str(most)), min(7, max(map(len, names)))) + 1
    label = min(16, max(map(len, names)))
    if label + 1 + column * len(names) > min(console.width, WIDEST_MATRIX):
        column = max(len(str(most)), 3) + 1
    if label + 1 + column * len(names) > min(console.width, WIDEST_MATRIX):
        _print_most_confused(metrics, names, console)
        return
    console.print("confusion matrix (rows: labels; columns: predictions)")
    console.print(
        Text(" " * (label + 1)) + Text("".join(_cut(name, column - 1).rjust(column) for name in names), "dim")
    )
    for name, row in zip(names, metrics.confusion, strict=True):
        line = Text(_cut(name, label).rjust(label) + " ", style="dim")
        total = max(1, sum(row))
        for index, count in enumerate(row):
            correct = names[index] == name
            line.append((str(count) if count else ".").rjust(column), style=_shade(count / total, correct))
        console.print(line)


def _print_most_confused(metrics: Metrics, names: list[str], console: Console) -> None:
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(metrics.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    pairs.sort(key=lambda pair: -pair[0])
    console.print(f"most confused, of {len(names)} classes (the full matrix is in --json)")
    for count, label, predicted in pairs[:CONFUSIONS]:
        console.print(f"  {count:>5}  {label} predicted as {predicted}")


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "~"


def _shade(fraction: float, correct: bool) -> str:
    """A cell's style, readable on dark and light terminals of 16 colors: green if correct; red if not, bold if many."""
    if not fraction:
        return "dim"
    return "bold green" if correct else "bold red" if fraction >= 0.1 else "red"
