"""`predict --embeddings`: features, paths and predictions as an .npz file, written as they come."""

import shutil
import tempfile
import zipfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..data.paths import Unreadable
from ..errors import ConfigError, Problem
from ..files import check_output, replaced, writable
from ..inference.predict import Prediction

ENTRIES = {f"{name}.npy" for name in ("features", "paths", "predictions", "probabilities", "classes")}
CHUNK = 1 << 18  # bytes of paths that are converted at a time


def check_embeddings(file: Path) -> None:
    """Refuse a file that is no .npz, cannot be written, or is no earlier one. Raises: RunError, ConfigError."""
    if file.suffix.lower() != ".npz" and not file.is_dir():
        raise ConfigError([Problem(f"--embeddings {file}", "is written for NumPy; give it a name that ends in .npz")])

    def is_ours() -> bool:
        with writable(file), file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                return False
            with zipfile.ZipFile(stream) as archive:
                return set(archive.namelist()) == ENTRIES

    check_output(file, "--embeddings", "file of embeddings", "embeddings.npz", is_ours)


class EmbeddingsFile:
    """A file of embeddings, complete at the end of the `with` block; what is not known before is kept on the disk.

    Args:
        file: its name ends in .npz.
        classes: the K names.
    """

    def __init__(self, file: Path, classes: tuple[str, ...]) -> None:
        self._file = file
        self._classes = {name: i for i, name in enumerate(classes)}
        self._width = self._longest = 0
        self._predictions = array("q")
        self._probabilities = array("d")
        with writable(file):
            self._features = tempfile.TemporaryFile(dir=file.parent)  # noqa: SIM115 - closed by __exit__
            self._paths = tempfile.TemporaryFile(dir=file.parent)  # noqa: SIM115 - likewise

    def __enter__(self) -> "EmbeddingsFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._features, self._paths:
            if kind is None and self._predictions:
                self._write()

    def add_features(self, features: NDArray[np.float32]) -> None:
        """Add the features [N, D] of the next N images."""
        self._width = features.shape[1]
        self._features.write(np.ascontiguousarray(features, "<f4").tobytes())

    def noted(self, results: Iterable[Prediction | Unreadable]) -> Iterator[Prediction | Unreadable]:
        """The same results; the path and the class of each prediction are added to the file."""
        for result in results:
            if isinstance(result, Prediction):
                self._paths.write(result.path.encode("utf-8", "surrogateescape") + b"\0")
                self._longest = max(self._longest, len(result.path))
                self._predictions.append(self._classes[result.class_name])
                self._probabilities.append(result.probability)
            yield result

    def _write(self) -> None:
        rows = len(self._predictions)
        with writable(self._file), replaced(self._file) as stream, zipfile.ZipFile(stream, "w") as archive:
            with _entry(archive, "features") as entry:
                _write_header(entry, "<f4", (rows, self._width))
                self._features.seek(0)
                shutil.copyfileobj(self._features, entry)
            with _entry(archive, "paths") as entry:
                type_ = f"<U{max(1, self._longest)}"
                _write_header(entry, type_, (rows,))
                for texts in _chunks(self._paths):
                    entry.write(np.array(texts, type_).tobytes())
            for name, values in (
                ("predictions", np.asarray(self._predictions)),
                ("probabilities", np.asarray(self._probabilities)),
                ("classes", np.array(list(self._classes))),
            ):
                with _entry(archive, name) as entry:
                    npy.write_array(entry, values, allow_pickle=False)


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def _write_header(entry: IO[bytes], type_: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_2_0(entry, {"descr": type_, "fortran_order": False, "shape": shape})


def _chunks(stream: IO[bytes]) -> Iterator[list[str]]:
    """The texts of a file, each of which ends with NUL, some at a time."""
    stream.seek(0)
    left = b""
    while part := stream.read(CHUNK):
        *texts, left = (left + part).split(b"\0")
        yield [text.decode("utf-8", "surrogateescape") for text in texts]
