"""Predictions as they come: aligned lines for a person, JSON Lines or CSV for a program."""

import csv
import json
import sys
from typing import Any, Protocol

from rich.cells import cell_len

from ..inference.predict import Prediction
from . import console
from .training import finite


class Writer(Protocol):
    """Who writes predictions to stdout."""

    def write(self, prediction: Prediction) -> None:
        """One more."""


def writer(form: str, classes: tuple[str, ...], top: int) -> Writer:
    """The one for `table`, `json` or `csv`."""
    if form == "json":
        return JsonLines(top)
    return Csv(min(top, len(classes))) if form == "csv" else Lines(classes)


class Lines:
    """Probability, class and path in columns; further classes on lines of their own, under the first."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.width = max(len("class"), *(cell_len(name) for name in classes))
        if sys.stdout.isatty():
            console.stdout().print(f"{'prob.':<6}  {'class':<{self.width}}  path", style="bold")

    def write(self, prediction: Prediction) -> None:
        """A line a class."""
        path = f"  {prediction.path}"
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            space = " " * (self.width - cell_len(name)) if path else ""
            print(f"{probability:.4f}  {name}{space}{path}")
            path = ""


class JsonLines:
    """One JSON object a line: path, class, probability and, where more than one class is asked for, top."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.encode = json.JSONEncoder(allow_nan=False).encode  # made once, not at every line

    def write(self, prediction: Prediction) -> None:
        """A line."""
        ranked = list(zip(prediction.classes, prediction.probabilities, strict=True))
        line: dict[str, Any] = {"path": prediction.path, "class": ranked[0][0], "probability": ranked[0][1]}
        if self.top > 1:
            line["top"] = [{"class": name, "probability": probability} for name, probability in ranked]
        try:
            print(self.encode(line))
        except ValueError:  # a model that gives NaN
            print(self.encode(finite(line)))


class Csv:
    """A header and one row an image: path, class, probability, then class_2, probability_2 and so on."""

    def __init__(self, top: int) -> None:
        self.rows = csv.writer(sys.stdout, lineterminator="\n")
        names = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
        self.rows.writerow(["path", "class", "probability", *names])

    def write(self, prediction: Prediction) -> None:
        """A row."""
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        self.rows.writerow([prediction.path, *(value for pair in pairs for value in pair)])
