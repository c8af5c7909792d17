"""Where text becomes output. Only rich's consoles (report/console.py) write to stdout and stderr too.

- `escaped`: text from outside (names of files and classes, configs, records, messages of exceptions) cannot move the
  cursor, begin a line of its own or reverse the direction of writing.
- `prepare`: what a stream's encoding lacks is drawn with ASCII or escaped; a stdout that cannot be written ends the
  command by OutputError; a stderr that cannot be written is given up.
"""

import codecs
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from .errors import OutputError

# C0, DEL, C1; line and paragraph separators; marks, overrides and isolates of the direction; lone surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# How a stream whose encoding lacks these characters shows them, each in one column.
_ASCII = str.maketrans(
    {
        **dict.fromkeys("─━–—‐‑−╴╶╸╺", "-"),
        **dict.fromkeys("│┃┤├▏▎", "|"),
        **dict.fromkeys("┌┐└┘┬┴┼╭╮╰╯╷╵", "+"),
        **dict.fromkeys("▍▌▋▊▉█▐▀▄", "#"),
        **dict.fromkeys("▁▂", "."),
        **dict.fromkeys("▃▄▅", ":"),
        **dict.fromkeys("▆▇", "#"),
        "·": ".",
        "×": "x",
        "±": "~",
        "…": "~",
        "▲": "^",
        "Σ": "S",
        "≤": "<",
        "≥": ">",
        "∞": "8",
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "*"),  # rich's spinner
    }
)


def escaped(text: object, *, keep_bytes: bool = False) -> str:
    """Text on one line in which control characters are written as `\\n`, `\\x1b` or `\\u202e`.

    Args:
        text: anything; its str().
        keep_bytes: leave the bytes of a file name that are not UTF-8, so that another program can open the file.
    """

    def escape(match: re.Match[str]) -> str:
        character, code = match[0], ord(match[0])
        if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, as os.fsdecode gives it
            return character if keep_bytes else f"\\x{code - 0xDC00:02x}"
        return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    return _CONTROLS.sub(escape, str(text))


def escaped_lines(text: str) -> str:
    """A text of several lines, each escaped but for its tabs."""
    return "\n".join("\t".join(map(escaped, part.removesuffix("\r").split("\t"))) for part in text.split("\n"))


def line(text: object = "", *, err: bool = False, flush: bool = True, keep_bytes: bool = False) -> None:
    """Print one line, escaped."""
    print(escaped(text, keep_bytes=keep_bytes), file=sys.stderr if err else sys.stdout, flush=flush)


def lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, each escaped but for its tabs."""
    print(escaped_lines(text.removesuffix("\n")), file=sys.stderr if err else sys.stdout)


def json_text(text: str, *, flush: bool = True) -> None:
    """Print JSON, in which only DEL is not escaped yet."""
    print(text.replace("\x7f", "\\u007f"), flush=flush)


def warning(text: object) -> None:
    """Print one line on stderr that says `warning: ...`."""
    line(f"warning: {text}", err=True)


def cells(row: Iterable[Any]) -> list[Any]:
    """A row of CSV in which no text is a formula to a spreadsheet: = + - @ at its beginning gets a ' before it.

    Control characters are escaped; bytes of file names stay.
    """
    texts = (escaped(value, keep_bytes=True) if isinstance(value, str) else value for value in row)
    return [f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text for text in texts]


# -- streams ----------------------------------------------------------------------------------------------------------


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """An encoder's error handler: bytes of file names as they are, drawings in ASCII, the rest escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    drawn = character.translate(_ASCII)
    return drawn if drawn.isascii() else character.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error("softmaxce", _replace)


class _Stdout(io.TextIOWrapper):
    """Stdout, whose failures are OutputErrors; after the first it writes to nowhere."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            _discard(self)
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            _discard(self)
            raise OutputError(error) from None


class _Stderr(io.TextIOWrapper):
    """Stderr; what cannot be written to it is lost."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:  # a full disk or a closed pipe: the exit status still says how the command ended
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:  # as in write
            _discard(self)


def _discard(stream: io.TextIOWrapper) -> None:
    """Have a stream write to the null device, so that what it still holds is not tried again when Python ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def prepare() -> None:
    """Have stdout and stderr write whatever they are given. Call it before anything is printed.

    Raises: OutputError if stdout is closed.
    """
    closed = _open_standard_descriptors()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it lives as long as the process
    if 1 in closed or sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        raise OutputError(OSError(errno.EBADF, "is closed; to discard the output, write it to /dev/null"))
    sys.stdout = _prepared(sys.stdout, sys.__stdout__, _Stdout)
    sys.stderr = _prepared(sys.stderr, sys.__stderr__, _Stderr)


def _open_standard_descriptors() -> set[int]:
    """Open the null device for those of stdin, stdout and stderr that are closed, and return their numbers.

    Otherwise the next file that is opened, a checkpoint for example, would get what is printed.
    """
    closed = set()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # not open
            closed.add(number)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    return closed


def _prepared(stream: Any, original: Any, kind: type[io.TextIOWrapper]) -> Any:
    if isinstance(stream, kind) or not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream is not original:  # a test's, or another program's that calls this one
        stream.reconfigure(errors="softmaxce")
        return stream
    encoding, buffered = stream.encoding, stream.line_buffering
    with contextlib.suppress(OSError):  # the next write will report it
        stream.flush()
    return kind(stream.detach(), encoding=encoding, errors="softmaxce", line_buffering=buffered)
