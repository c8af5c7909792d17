"""The columns of a Parquet file as texts, row by row. Needs pyarrow, the extra `parquet`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, in_one_line

MAX_ROWS = 20_000_000  # equal rows take no room in the file


class ParquetTable:
    """A Parquet file that was opened; its columns' names are `header`.

    Args:
        file: for messages.
        content: what it holds.
    Raises: DataError if it is no Parquet file, or pyarrow is missing.
    """

    def __init__(self, file: Path, content: bytes) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise DataError(
                f"{file}: needs pyarrow; install with: pip install 'softmaxce[parquet]', or save it as CSV"
            ) from None
        self._file, self._pyarrow = file, pyarrow
        try:
            self._opened = parquet.ParquetFile(pyarrow.BufferReader(content))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: is no Parquet table: {in_one_line(error)}") from None
        self.header: list[str] = list(self._opened.schema_arrow.names)
        if (rows := self._opened.metadata.num_rows) > MAX_ROWS:
            raise DataError(f"{file}: has {rows:,} rows; at most {MAX_ROWS:,} are read")

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Each row's location, file:row counted from 1, and its cells in some columns; an absent value is empty.

        Raises: DataError if a column holds neither text nor whole numbers, or the file is damaged.
        """
        for name in names:
            self._check_type(name)
        number = 0
        try:
            for batch in self._opened.iter_batches(columns=list(names)):
                columns = [batch.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    cells = ("" if value is None else str(value) for value in values)
                    yield f"{self._file}:{number}", dict(zip(names, cells, strict=True))
        except (self._pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self._file}: cannot be read after row {number}: {in_one_line(error)}") from None

    def _check_type(self, name: str) -> None:
        types: Any = self._pyarrow.types
        stored = self._opened.schema_arrow.field(name).type
        plain = stored.value_type if types.is_dictionary(stored) else stored
        if not any(fits(plain) for fits in (types.is_string, types.is_large_string, types.is_integer, types.is_null)):
            raise DataError(
                f"{self._file}: the column '{name}' is of type {stored}; save it as text or as whole numbers"
            )
