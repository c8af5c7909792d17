"""`--save-predictions` of eval and train --folds: one row per image as CSV or Parquet, written part by part.

Needs no torch to check the file's name, and pyarrow, the extra `parquet`, only for Parquet.
"""

import csv
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import streams
from ..errors import ConfigError, Problem
from ..files import check_output, replaced, writable

if TYPE_CHECKING:
    from torch import Tensor

    from ..inference.evaluate import ImagePredictions

BEGINNING = b"index,"  # of every CSV file that is written here
MARK = b"softmaxce"  # a key of the metadata of every Parquet file that is written here
ROWS = 1024  # of CSV, converted to Python's numbers at a time
VALUES = 1 << 20  # probabilities of a row group of Parquet


def check_table(file: Path, option: str) -> None:
    """Refuse a file that is no table, cannot be written, or is no earlier table. Raises: RunError, ConfigError."""
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".parquet") and not file.is_dir():
        message = "is written as CSV or Parquet; give it a name that ends in .csv or .parquet"
        raise ConfigError([Problem(f"{option} {file}", message)])
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        message = "needs pyarrow; install with: pip install 'softmaxce[parquet]'"
        raise ConfigError([Problem(f"{option} {file}", message)])

    def is_ours() -> bool:
        if suffix == ".parquet":
            return _is_our_parquet(file)
        with writable(file), file.open("rb") as stream:
            return stream.read(len(BEGINNING)) == BEGINNING

    check_output(file, option, "table of predictions", f"predictions{suffix or '.csv'}", is_ours)


def _is_our_parquet(file: Path) -> bool:
    import pyarrow
    from pyarrow import parquet

    try:
        return MARK in (parquet.read_schema(file).metadata or {})
    except (pyarrow.ArrowException, OSError):  # it is no Parquet file
        return False


def write_table(images: "ImagePredictions", classes: Sequence[str], file: Path) -> None:
    """Write index, path (if the images are files), label, prediction, correct, loss, probability.CLASS, ...

    `loss` is the negative log-likelihood in nats, at the temperature of the probabilities in the row. Those of a
    cross-validation have the column `fold` after `index`, which counts the images before they are divided. In CSV no
    text is a formula to a spreadsheet. Raises: RunError if the file cannot be written; OSError if the disk is full.
    """
    write = _write_parquet if file.suffix.lower() == ".parquet" else _write_csv
    with writable(file), replaced(file) as stream:
        write(images, classes, stream)


@dataclass(frozen=True)
class _Part:
    """Some of the images, in order.

    Attributes:
        start: the index of the first.
        files: their paths; None if they come from no files of their own.
        labels: class ids.
        predictions: likewise.
        losses: nats.
        probabilities: [n, K].
        folds: of a cross-validation.
    """

    start: int
    files: Sequence[str] | None
    labels: list[int]
    predictions: list[int]
    losses: list[float]
    probabilities: "Tensor"
    folds: list[int] | None


def _parts(images: "ImagePredictions", rows: int) -> Iterator[_Part]:
    for start in range(0, len(images.labels), rows):
        part = slice(start, start + rows)
        probabilities = images.probabilities[part]
        yield _Part(
            start=start,
            files=None if images.files is None else images.files[part],
            labels=images.labels[part].tolist(),
            predictions=probabilities.argmax(1).tolist(),
            losses=(images.losses[part] + 0.0).tolist(),  # not -0
            probabilities=probabilities,
            folds=None if images.folds is None else images.folds[part].tolist(),
        )


def _write_csv(images: "ImagePredictions", classes: Sequence[str], stream: Any) -> None:
    names = streams.cells(classes)
    first = ["index", *(["fold"] if images.folds is not None else []), *(["path"] if images.files is not None else [])]
    text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
    rows = csv.writer(text, lineterminator="\n")
    header = [*first, "label", "prediction", "correct", "loss"]
    rows.writerow(streams.cells([*header, *(f"probability.{name}" for name in classes)]))
    for part in _parts(images, ROWS):
        columns = (part.labels, part.predictions, part.losses, part.probabilities.tolist())
        for i, (label, prediction, loss, row) in enumerate(zip(*columns, strict=True)):
            head = [part.start + i, *([part.folds[i]] if part.folds is not None else [])]
            file = streams.cells([part.files[i]]) if part.files is not None else []
            correct = int(label == prediction)
            rows.writerow([*head, *file, names[label], names[prediction], correct, loss, *row])
    text.detach()  # flushes it; the stream is flushed to the disk and closed by `replaced`


def _write_parquet(images: "ImagePredictions", class_names: Sequence[str], stream: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    classes = [streams.escaped(name) for name in class_names]
    fields = {"index": pyarrow.int64()}
    fields |= {"fold": pyarrow.int64()} if images.folds is not None else {}
    fields |= {"path": pyarrow.string()} if images.files is not None else {}
    fields |= {"label": pyarrow.string(), "prediction": pyarrow.string(), "correct": pyarrow.bool_()}
    fields |= {"loss": pyarrow.float64()}
    probabilities = [(f"probability.{name}", pyarrow.float64()) for name in classes]
    schema = pyarrow.schema([*fields.items(), *probabilities], metadata={MARK: b"predictions"})
    with parquet.ParquetWriter(stream, schema) as writer:
        for part in _parts(images, max(1, VALUES // len(classes))):
            columns: list[Any] = [
                range(part.start, part.start + len(part.labels)),
                *([] if part.folds is None else [part.folds]),
                *([] if part.files is None else [map(streams.escaped, part.files)]),
                [classes[label] for label in part.labels],
                [classes[prediction] for prediction in part.predictions],
                [label == prediction for label, prediction in zip(part.labels, part.predictions, strict=True)],
                part.losses,
                *part.probabilities.T.contiguous().numpy(),
            ]
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
