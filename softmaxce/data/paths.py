"""Resolves the paths of a command line (files, folders, globs, a list on stdin) to image files, lazily."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..errors import DataError
from .decode import is_image


@dataclass(frozen=True)
class Unreadable:
    """A path that is no image, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


MAX_PATH = 1 << 15  # characters


def image_files(paths: Iterable[str], listed: TextIO | None = None) -> Iterator[str | Unreadable]:
    """The image files that paths name, in their order, lazily.

    Args:
        paths: a file is itself, whatever its name; a folder is every image in it and below, by name; a pattern with
            * ? [ or ** that names no file is every file that matches it; `-` is every line of `listed`.
        listed: lines, each a file or a folder.
    Raises: DataError if one of `listed` is longer than any path.
    """
    for path in paths:
        if path == "-":
            for line in _lines(listed):
                if name := line.rstrip("\r\n"):
                    yield from _files(name)
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matches:
                yield Unreadable(path, "matches no file")
            for match in matches:
                yield from _files(match)
        else:
            yield from _files(path)


def _lines(listed: TextIO | None) -> Iterator[str]:
    while listed is not None and (line := listed.readline(MAX_PATH)):
        if len(line) == MAX_PATH:
            raise DataError(f"the list of paths: a line of {MAX_PATH:,} characters or more is not a path")
        yield line


def _files(path: str) -> Iterator[str | Unreadable]:
    if not os.path.exists(path):  # noqa: PTH110 - a name with a NUL in it is an answer here, not an error
        yield Unreadable(path, "there is no such file or folder")
        return
    if not Path(path).is_dir():
        yield path
        return
    images = sorted(str(file) for file in Path(path).rglob("*") if is_image(file))
    yield from images
    if not images:
        yield Unreadable(path, "this folder holds no images")
