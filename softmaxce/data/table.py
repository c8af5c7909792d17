"""A table of images and labels: CSV, TSV, JSON Lines or Parquet; every mistake is one line with the file and row."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import streams
from ..errors import DataError, suggestion
from ..files import parse_json, read_file
from .parquet_table import ParquetTable

MAX_BYTES = 1 << 28  # of a table: some million rows
SHOWN = 20  # columns named in one message
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
# What the columns may be called where the config does not name them; case, spaces, - and _ do not matter.
USUAL = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile"),
    "label": ("label", "class", "classname"),
}
OPTIONAL = ("split", "group")  # used only where the config names them


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, as a config has them; None for the usual ones, or for none."""

    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Row:
    """A row's cells, without blanks around them; `split` and `group` are empty if there is no such column.

    `location` is file:row; the row with the columns' names is 1, and where there is none, the first one.
    """

    location: str
    path: str
    label: str
    split: str = ""
    group: str = ""


def read_table(file: Path, columns: Columns) -> list[Row]:
    """The rows of a table, at least one. Raises: DataError."""
    content = _content(file)
    suffix = file.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods", ".json"):
        raise DataError(f"{file}: {suffix} tables are not read; save it as CSV, TSV, JSON Lines (.jsonl) or Parquet")
    if suffix in PARQUET:
        return _parquet(file, content, columns)
    text = _text(file, content)
    lines = _json_lines(file, text) if suffix in JSON_LINES else _csv(file, text, suffix)
    rows: list[Row] = []
    names: dict[str, str] = {}
    for location, cells in lines:
        names = names or _resolve(file, list(cells), columns)
        rows.append(_row(location, cells, names))
    if not rows:
        raise DataError(f"{file}: holds no rows")
    return rows


def _content(file: Path) -> bytes:
    try:
        return read_file(file, MAX_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


def _parquet(file: Path, content: bytes, columns: Columns) -> list[Row]:
    table = ParquetTable(file, content)
    names = _resolve(file, table.header, columns)
    rows = [_row(location, cells, names) for location, cells in table.rows(list(dict.fromkeys(names.values())))]
    if not rows:
        raise DataError(f"{file}: holds no rows")
    return rows


def _text(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{row}: is not UTF-8 text; save the table as CSV in UTF-8") from None


def _csv(file: Path, text: str, suffix: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row with its location. Fields are separated by a tab, comma or semicolon, as the first row shows."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    found = [mark for mark in (",", ";", "\t") if mark in first]
    delimiter = "\t" if suffix in (".tsv", ".tab") else (found or [","])[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            location = f"{file}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                count = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
                raise DataError(f"{location}: has {count} and the first row {len(header)}; quote what holds a comma")
            elif len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"{file}: has two columns '{twice}'; rename one")
            else:
                yield location, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}; check the quotation marks") from None


def _json_lines(file: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            data = parse_json(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise DataError(f'{file}:{number}: must be an object, {{"path": ..., "label": ...}}')
        yield f"{file}:{number}", {name: _as_text(value) for name, value in data.items()}


def _as_text(value: object) -> str:
    """A string or whole number as text; of anything else nothing, which is refused where it is needed."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if isinstance(value, str) else str(value) if is_number else ""


def _resolve(file: Path, header: list[str], columns: Columns) -> dict[str, str]:
    """The column of each of `path`, `label` and the others that the config names. Raises: DataError."""
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{file}: has two columns '{twice}'; rename one")
    listed = ", ".join(header[:SHOWN]) + (f" and {len(header) - SHOWN} more" if len(header) > SHOWN else "")
    names: dict[str, str] = {}
    for key, name in vars(columns).items():
        if name is not None:
            if name not in header:
                hint = suggestion(name, header) or f"; its columns are {listed}"
                raise DataError(f"{file}: has no column '{name}' for data.{key}{hint}")
            names[key] = name
        elif key in USUAL:
            usual = [each for each in header if re.sub(r"[ _-]", "", each.lower()) in USUAL[key]]
            if len(usual) != 1:
                what = f"the columns {' and '.join(usual)} may both be" if usual else "no column is known as"
                raise DataError(f"{file}: {what} the {key}; set data.{key} to one of its columns: {listed}")
            names[key] = usual[0]
    for key in OPTIONAL:
        if key not in names and key in header:
            streams.warning(f"{file}: its column '{key}' is not used; for that set data.{key}: {key}")
    return names


def _row(location: str, cells: dict[str, str], names: dict[str, str]) -> Row:
    values = {key: cells.get(name, "").strip() for key, name in names.items()}
    for key, value in values.items():
        if not value:
            hint = "; give an image without others a group of its own" if key == "group" else ""
            raise DataError(f"{location}: the {key} (column '{names[key]}') is empty{hint}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in values["label"]):
        raise DataError(f"{location}: the label {values['label']!r} holds a control character")
    return Row(location, **values)
