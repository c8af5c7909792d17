"""`eval --save-predictions`: one row per image as CSV, written row by row. Needs no torch to check the file's name."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from .. import streams
from ..errors import ConfigError, Problem
from ..files import check_output, replaced, writable

if TYPE_CHECKING:
    from ..inference.evaluate import EvaluationResult

BEGINNING = b"index,"  # of every file that is written here
ROWS = 1024  # converted to Python's numbers at a time


def check_table(file: Path, option: str) -> None:
    """Refuse a file that is no CSV, cannot be written, or is no earlier table. Raises: RunError, ConfigError."""
    if file.suffix.lower() != ".csv" and not file.is_dir():
        raise ConfigError([Problem(f"{option} {file}", "is written as CSV; give it a name that ends in .csv")])

    def is_ours() -> bool:
        with writable(file), file.open("rb") as stream:
            return stream.read(len(BEGINNING)) == BEGINNING

    check_output(file, option, "table of predictions", "predictions.csv", is_ours)


def write_table(result: "EvaluationResult", file: Path) -> None:
    """Write index, path (if the images are files), label, prediction, correct, loss, probability.CLASS, ...

    `loss` is the negative log-likelihood in nats, at the temperature of the probabilities in the row. No text is a
    formula to a spreadsheet. Raises: RunError if the file cannot be written; OSError if the disk is full.
    """
    images = result.images
    names = streams.cells([row.name for row in result.metrics.classes])
    path = ["path"] if images.files is not None else []
    with writable(file), replaced(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
        rows = csv.writer(text, lineterminator="\n")
        header = ["index", *path, "label", "prediction", "correct", "loss"]
        rows.writerow(streams.cells([*header, *(f"probability.{row.name}" for row in result.metrics.classes)]))
        for start in range(0, len(images.labels), ROWS):
            chunk = images.probabilities[start : start + ROWS]  # [<= ROWS, K]
            labels, losses = (values[start : start + ROWS].tolist() for values in (images.labels, images.losses))
            columns = (labels, chunk.argmax(1).tolist(), losses, chunk.tolist())
            for index, (label, prediction, loss, row) in enumerate(zip(*columns, strict=True), start):
                name = streams.cells([images.files[index]]) if images.files is not None else []
                correct = int(label == prediction)
                rows.writerow([index, *name, names[label], names[prediction], correct, loss + 0.0, *row])  # not -0
        text.detach()  # flushes it; the stream is flushed to the disk and closed by `replaced`
