"""Mistakes of the command line that typer reports, in the style of softmaxce's own: `--epochs: ...`, on one line."""

import re
import sys
from typing import Any

import typer

from softmaxce import streams
from softmaxce.errors import suggestion

# typer has a copy of click since 0.26, so the class is taken from its public subclass: BadParameter, UsageError, this.
ClickException: Any = typer.BadParameter.__mro__[2]


def show(error: Any) -> None:
    """Print what is wrong with the command line, and where its help is."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.ctx.get_help() + "\n")
        return
    message = _message(error)
    if context is not None and not message.endswith("?"):
        message += f"; see {context.command_path} --help"
    streams.line(f"error: {message}", err=True)


def _message(error: Any) -> str:
    message = re.sub(r"\s+", " ", error.format_message()).strip().rstrip(".")
    if (option := getattr(error, "option_name", None)) is not None and getattr(error, "possibilities", ...) is not ...:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
        return f"{option}: there is no such option{suggestion(option, known)}"
    parameter = getattr(error, "param", None)
    if parameter is not None:
        name = (
            max(parameter.opts, key=len)
            if parameter.opts[0].startswith("-")
            else parameter.metavar or parameter.name.upper()
        )
        if type(error).__name__ == "MissingParameter":
            return f"{name}: is needed"
        return f"{name}: {_plain(message.partition(': ')[2] or message)}"
    command = re.fullmatch(r"No such command '(.*?)'\.?(?: Did you mean (.*)\?)?", message)
    if command is not None:
        return f"there is no command '{command[1]}'" + (f"; did you mean {command[2]}?" if command[2] else "")
    return message[:1].lower() + message[1:] if not message.startswith("-") else message


def _plain(message: str) -> str:
    """A message about a value without the words of the library that checked it."""
    message = re.sub(r"Input should be a valid integer.*", "must be a whole number", message)
    message = re.sub(r"Input should be a valid number.*", "must be a number", message)
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
