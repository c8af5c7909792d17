"""Resolves the paths of a command line (files, folders, globs, a list on stdin) to image files, lazily."""

import glob
import os
import re
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
MAX_CHUNK = 1 << 12  # characters that are waited for


def image_files(
    paths: Iterable[str], listed: TextIO | None = None, *, null: bool = False, npy: bool = False
) -> Iterator[str | Unreadable]:
    """The image files that paths name, in their order, lazily.

    Args:
        paths: a file is itself, whatever its name; a folder is every image in it and below, by name; a pattern with
            * ? [ or ** that names no file is every file that matches it, where leading folders with [ in their names
            that exist are themselves; `-` is every line of `listed`.
        listed: lines, each a file or a folder.
        null: they end with NUL characters instead, as those of find -print0.
        npy: .npy files in a folder are images.
    Raises: DataError if one of `listed` is longer than any path, or has a NUL character in it.
    """
    for path in paths:
        if path == "-":
            for name in _names(listed) if null else _lines(listed):
                yield from _files(name, npy=npy)
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(_with_literal_folders(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matches:
                hint = "; in a pattern, write [[] for the character [" if "[" in path else ""
                yield Unreadable(path, f"matches no file{hint}")
            for match in matches:
                yield from _files(match, npy=npy)
        else:
            yield from _files(path, npy=npy)


SEPARATORS = re.compile(f"([{re.escape(os.sep + (os.altsep or ''))}]+)")


def _with_literal_folders(pattern: str) -> str:
    """The pattern with its first folders escaped as far as they exist, so that `a [b]/*.jpg` is that folder's files."""
    parts = SEPARATORS.split(pattern)
    literal = 0
    while literal < len(parts) and (
        not glob.has_magic(parts[literal]) or ("[" in parts[literal] and os.path.lexists("".join(parts[: literal + 1])))
    ):
        literal += 1
    return glob.escape("".join(parts[:literal])) + "".join(parts[literal:])


def _lines(listed: TextIO | None) -> Iterator[str]:
    while listed is not None and (line := listed.readline(MAX_PATH)):
        if "\0" in line and line.strip("\0"):
            raise DataError("the list of paths: has NUL characters; with --null (-0), paths end with them")
        _check_length(line)
        if name := line.rstrip("\r\n"):
            yield name


def _names(listed: TextIO | None) -> Iterator[str]:
    rest = ""
    while listed is not None and (text := listed.read(MAX_CHUNK)):
        *names, rest = (rest + text).split("\0")
        for name in names:
            if not name:
                raise DataError("the list of paths: has an empty name between two NUL characters")
            yield name
        _check_length(rest)
    if rest:
        yield rest


def _check_length(name: str) -> None:
    if len(name) >= MAX_PATH:
        raise DataError(f"the list of paths: a line of {MAX_PATH:,} characters or more is not a path")


def _files(path: str, *, npy: bool) -> Iterator[str | Unreadable]:
    if not os.path.exists(path):  # noqa: PTH110 - a name with a NUL in it is an answer here, not an error
        yield Unreadable(path, "there is no such file or folder")
        return
    if not Path(path).is_dir():
        yield path
        return
    images = sorted(str(file) for file in Path(path).rglob("*") if is_image(file, npy=npy))
    yield from images
    if not images:
        yield Unreadable(path, "this folder holds no images")
