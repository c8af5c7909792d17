"""How a command ends: every error becomes one line on stderr and an exit status."""

import contextlib
import os
import sys
from collections.abc import Iterator

import typer

from softmaxce import streams
from softmaxce.errors import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    ConfigError,
    OutputError,
    SoftmaxceError,
    in_one_line,
    in_users_code,
    ran_out_of_memory,
)
from softmaxce.runtime.signals import Terminated

from . import usage

MAX_SHOWN = 20  # mistakes printed at once


@contextlib.contextmanager
def as_exit_status() -> Iterator[None]:
    """Prints what the block raises. Raises: typer.Exit with the status; an error of softmaxce's own as it is."""
    try:
        yield
        return
    except SoftmaxceError as error:
        _print_traceback(error.__cause__)
        _print_lines(error)
        status = error.status
    except OSError as error:  # a full disk, a removed folder
        file = f"{error.filename}: " if error.filename else ""
        print_error(f"{file}{error.strerror or error}")
        status = FAILED
    except (OutputError, typer.Exit, typer.Abort, usage.ClickException):
        raise
    except Exception as error:  # raised by the user's code, which any command may run; others are raised again
        message = f"memory ran out: {in_one_line(error)}" if ran_out_of_memory(error) else in_users_code(error)
        if message is None:
            raise
        _print_traceback(error)
        print_error(message)
        status = FAILED
    except Terminated:  # the run has reported it; the status says it too
        status = TERMINATED
    except KeyboardInterrupt:  # likewise
        status = INTERRUPTED
    raise typer.Exit(status)


def _print_traceback(error: BaseException | None) -> None:
    """Print the traceback of an error with --verbose."""
    if error is not None and {"--verbose", "-v"} & set(sys.argv):
        import traceback

        for part in traceback.format_exception(error):
            streams.lines(part, err=True)


def _print_lines(error: SoftmaxceError) -> None:
    if not isinstance(error, ConfigError):
        first, *more = error.lines
        print_error(first)
        for line in more:
            streams.line(line, err=True)
        return
    for line in error.lines[:MAX_SHOWN]:
        print_error(line)
    if len(error.lines) > MAX_SHOWN:
        print_error(f"... and {len(error.lines) - MAX_SHOWN} more mistakes")


def print_error(message: str) -> None:
    """Print `error: MESSAGE` on stderr."""
    if not sys.stderr.isatty() and "FORCE_COLOR" not in os.environ:
        streams.line(f"error: {message}", err=True)  # rich would print the same, but takes time to import
        return
    from rich.text import Text

    from softmaxce.report import console

    console.stderr().print(Text.assemble(("error: ", "bold red"), streams.escaped(message)))
