"""The `softmaxce` command: its sub-commands, and how every error becomes a line and an exit status."""

import importlib
import signal
import sys
from types import FrameType
from typing import Annotated, Any

from .startup import fast_imports, import_without_settings, limit_openmp_spinning, silent_interrupts

with silent_interrupts():
    import typer
    from typer.core import TyperCommand, TyperGroup

    from softmaxce import streams
    from softmaxce.errors import FAILED, OutputError
    from softmaxce.runtime.signals import Terminated

    from . import ending, usage

# name -> file, function or sub-app, and its line in --help, which is the first line of its docstring.
# The file is imported when the command is called.
COMMANDS = {
    "train": ("train", "train", "Train a classifier from a config."),
    "sweep": (
        "sweep",
        "sweep",
        "Train every combination of the values, and rank the runs by their metric on the validation split.",
    ),
    "lr-find": (
        "lr_find",
        "lr_find",
        "Find a learning rate: train while it grows from step to step, and show where the loss falls and diverges.",
    ),
    "eval": (
        "eval",
        "evaluate",
        "Evaluate a trained classifier: accuracy, per-class metrics, confusion matrix, calibration.",
    ),
    "check-loss": (
        "check_loss",
        "check_loss",
        "Check a loss against the laws of a sound loss; show the smallest input that violates each, and its cost.",
    ),
    "predict": (
        "predict",
        "predict",
        "Predict the classes of image files, with probabilities, by the run's own preprocessing.",
    ),
    "export": (
        "export",
        "export",
        "Export a trained model as one file that turns image bytes into probabilities, and prove it right.",
    ),
    "serve": (
        "serve",
        "serve",
        "Answer HTTP requests with a trained model, and show a page to draw or drop an image.",
    ),
    "explain": (
        "explain",
        "explain",
        "Show how the loss of one image is computed, step by step, from its logits to its gradient.",
    ),
    "average": (
        "average",
        "average",
        "Average the weights of several runs of one model into a run folder for eval, predict, report and export.",
    ),
    "calibrate": (
        "calibrate",
        "calibrate",
        "Fit a run's softmax temperature on its validation split; eval, predict and report then use it.",
    ),
    "report": (
        "report",
        "report",
        "Write a run's report: one self-contained HTML page, and its figures as SVG and PNG.",
    ),
    "runs": ("runs", "runs", "List runs, newest first: model, loss, epochs, accuracy, time and status."),
    "compare": (
        "compare",
        "compare",
        "Compare runs: the config keys that differ, the metrics, and whether the difference is significant.",
    ),
    "list": (
        "list",
        "list_components",
        "List the losses, models, datasets, optimizers, schedules and augmentations that a config can name.",
    ),
    "data": ("data", "app", "Inspect a data set, or pack a folder of images into WebDataset shards."),
    "bench": ("bench", "app", "Measure softmaxce's speed on this machine, compared with PyTorch's."),
    "config": ("config", "app", "List, show, copy and check configs without training."),
}
MARKUP = None  # --help is the same on a terminal and in a pipe: rich's panels leave little width for the text


limit_openmp_spinning()


class Group(TyperGroup):
    """Imports a command when it is called, and turns its errors into one line and an exit status, not a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order in which --help shows them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, if it is loaded; else a stand-in with its help, which is all that --help needs."""
        if cmd_name in self.commands or cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][2], short_help=COMMANDS[cmd_name][2])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name, loaded."""
        if args:
            self.load(args[0])
            if args[0] not in COMMANDS:  # typer suggests the nearest name among these
                self.commands.update({name: self.get_command(ctx, name) for name in COMMANDS})
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> None:
        """Import a command, if there is one of this name."""
        if name not in COMMANDS or name in self.commands:
            return
        file, attribute, _ = COMMANDS[name]
        import_without_settings()
        with fast_imports():
            command = getattr(importlib.import_module(f".{file}", __package__), attribute)
        wrapper = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        wrapper.callback()(lambda: None)  # a Typer with one command and no callback would not be a group
        if isinstance(command, typer.Typer):
            wrapper.add_typer(command, name=name)
        else:
            wrapper.command(name)(command)
        group = typer.main.get_command(wrapper)
        assert isinstance(group, TyperGroup)
        self.commands[name] = group.commands[name]
        usage.complete(name, self.commands[name])

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line and exit with its status, also where stdout or stderr cannot be written."""
        try:
            streams.prepare()
            try:
                status = super().main(*arguments, **{**options, "standalone_mode": False})
            except usage.ClickException as error:
                usage.show(error)
                status = error.exit_code
            except typer.Abort:  # the status says it
                status = FAILED
            finally:
                sys.stdout.flush()
        except OutputError as error:
            if str(error):
                ending.print_error(str(error))
            status = error.status
        sys.exit(status)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        signal.signal(signal.SIGTERM, _terminate)
        with ending.as_exit_status():
            return super().invoke(ctx)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


app = typer.Typer(
    cls=Group,
    name="softmaxce",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read.",
    epilog="Exit status: 0 done; 1 a requirement was not met or training failed; 2 the command line, the config or "
    "the data is wrong; 130 interrupted; 143 terminated.",
)


def _version(show: bool) -> None:
    if show:
        from softmaxce.runtime.version import softmaxce_version

        streams.line(f"softmaxce {softmaxce_version()}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read."""
