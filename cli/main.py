"""The `softmaxce` command: its sub-commands, and how every error becomes a line and an exit status."""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from softmaxce.errors import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    ConfigError,
    SoftmaxceError,
    in_one_line,
    in_users_code,
    ran_out_of_memory,
)
from softmaxce.interrupts import Terminated

from . import bench as bench_command
from . import config as config_command
from .calibrate import calibrate
from .check_loss import check_loss
from .compare import compare
from .eval import evaluate
from .explain import explain
from .list import list_menus
from .predict import predict
from .report import report
from .runs import runs
from .sweep import sweep
from .train import train

SHOWN = 20  # mistakes told at once


# Between two operations PyTorch's threads spin for milliseconds: on cores that others use too, every wait is then as
# long as the others' turn. Here they sleep after some hundredths of a millisecond. (GNU's OpenMP, as PyTorch ships it.)
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class Group(TyperGroup):
    """Turns what a command raises into one line on stderr and an exit status; never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except SoftmaxceError as error:
            lines = error.problems if isinstance(error, ConfigError) else [error]
            if error.__cause__ is not None and {"--verbose", "-v"} & set(sys.argv):
                traceback.print_exception(error.__cause__)
            for line in lines[:SHOWN]:
                _tell(str(line))
            if len(lines) > SHOWN:
                _tell(f"... and {len(lines) - SHOWN} more mistakes")
            raise typer.Exit(error.status) from None
        except BrokenPipeError:
            raise  # whoever read stdout has gone; typer ends quietly
        except OSError as error:  # a full disk, a folder that went away
            place = f"{error.filename}: " if error.filename else ""
            _tell(f"{place}{error.strerror or error}")
            raise typer.Exit(FAILED) from None
        except Exception as error:
            told = f"memory ran out: {in_one_line(error)}" if ran_out_of_memory(error) else in_users_code(error)
            if told is None:
                raise
            if {"--verbose", "-v"} & set(sys.argv):
                traceback.print_exception(error)
            _tell(told)
            raise typer.Exit(FAILED) from None
        except Terminated:
            raise typer.Exit(TERMINATED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _tell(message: str) -> None:
    from rich.text import Text

    from softmaxce.report import console

    console.stderr().print(Text.assemble(("error: ", "bold red"), message))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


app = typer.Typer(
    cls=Group,
    name="softmaxce",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout is not None and sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read.",
    epilog="Exit status: 0 done; 1 a requirement was not met or training failed; 2 the command line, the config or "
    "the data is wrong; 130 interrupted; 143 terminated.",
)
app.command("train")(train)
app.command("sweep")(sweep)
app.command("eval")(evaluate)
app.command("check-loss")(check_loss)
app.command("predict")(predict)
app.command("explain")(explain)
app.command("calibrate")(calibrate)
app.command("report")(report)
app.command("runs")(runs)
app.command("compare")(compare)
app.command("list")(list_menus)
app.add_typer(bench_command.app, name="bench")
app.add_typer(config_command.app, name="config")


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"softmaxce {version('softmaxce')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # so that module:Name finds the user's code where the user stands, as python -m does
