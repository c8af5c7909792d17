"""Predictions, printed one by one: as aligned columns, JSON Lines or CSV."""

import csv
import json
import sys
from typing import Any, Protocol

from rich.cells import cell_len

from .. import streams
from ..inference.predict import Prediction
from . import console
from .json_values import finite


class Writer(Protocol):
    """Writes predictions to stdout."""

    def write(self, prediction: Prediction) -> None:
        """Write one prediction."""


def writer(form: str, classes: tuple[str, ...], top: int) -> Writer:
    """The writer for `table`, `json` or `csv`."""
    if form == "json":
        return JsonLines(top)
    return Csv(min(top, len(classes))) if form == "csv" else Lines(classes)


class Lines:
    """Probability, class and path in columns; further classes on lines of their own below."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        classes = tuple(map(streams.escaped, classes))
        self.keep_bytes = not sys.stdout.isatty()  # for another program, which opens the file
        self.width = max(len("class"), *(cell_len(name) for name in classes))
        if sys.stdout.isatty():
            console.stdout().print(f"{'prob.':<6}  {'class':<{self.width}}  path", style="bold")

    def write(self, prediction: Prediction) -> None:
        """Write a line per class."""
        path = f"  {prediction.path}"
        for name, probability in zip(map(streams.escaped, prediction.classes), prediction.probabilities, strict=True):
            space = " " * (self.width - cell_len(name)) if path else ""
            streams.line(f"{probability:.4f}  {name}{space}{path}", flush=False, keep_bytes=self.keep_bytes)
            path = ""


class JsonLines:
    """One JSON object per line: path, class, probability and, for more than one class, top."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.encode = json.JSONEncoder(allow_nan=False).encode  # made once: json.dumps makes one at every call

    def write(self, prediction: Prediction) -> None:
        """Write a line."""
        line = to_dict(prediction, self.top)
        try:
            streams.json_text(self.encode(line), flush=False)
        except ValueError:  # a model that gives NaN
            streams.json_text(self.encode(finite(line)), flush=False)


def to_dict(prediction: Prediction, top: int) -> dict[str, Any]:
    """A line of JSON as data: path, class, probability and, for more than one class, top."""
    ranked = list(zip(prediction.classes, prediction.probabilities, strict=True))
    line: dict[str, Any] = {"path": prediction.path, "class": ranked[0][0], "probability": ranked[0][1]}
    if top > 1:
        line["top"] = [{"class": name, "probability": probability} for name, probability in ranked]
    return line


class Csv:
    """A header and one row per image: path, class, probability, class_2, probability_2, ..."""

    def __init__(self, top: int) -> None:
        self.rows = csv.writer(sys.stdout, lineterminator="\n")
        names = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
        self.rows.writerow(["path", "class", "probability", *names])

    def write(self, prediction: Prediction) -> None:
        """Write a row."""
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        self.rows.writerow(streams.cells([prediction.path, *(value for pair in pairs for value in pair)]))
