"""What typer prints of the command line: its mistakes on one line, as softmaxce's own; metavars; examples in --help."""

import re
import sys
from typing import Any

import typer

from softmaxce import streams
from softmaxce.errors import suggestion

# typer has a copy of click since 0.26, so the class is taken from its public subclass: BadParameter, UsageError, this.
ClickException: Any = typer.BadParameter.__mro__[2]


EXAMPLES = {
    "train": (
        "softmaxce train digits",
        "softmaxce train mnist.yaml --lr 0.003 --epochs 10 --set loss.label_smoothing=0.1",
        "softmaxce train mine.yaml --folds 5 --save-predictions out-of-fold.csv",
        "softmaxce train mine.yaml --nproc gpu --max-restarts 3",
    ),
    "sweep": ("softmaxce sweep digits --lr 0.01,0.03 --set model=linear,lenet",),
    "lr-find": (
        "softmaxce lr-find digits",
        "softmaxce lr-find mine.yaml --set optimizer=adamw --min-lr 1e-5 --max-lr 1 --output rates.svg",
    ),
    "eval": (
        "softmaxce eval",
        "softmaxce eval runs/digits/1 --split val --require 'accuracy>=0.95'",
        "softmaxce eval runs/digits/1 --save-predictions test.csv",
    ),
    "check-loss": ("softmaxce check-loss mylab.py:MyLoss --reference softmax_cross_entropy",),
    "predict": (
        "softmaxce predict photo.jpg",
        "softmaxce predict runs/digits/1 'photos/**/*.png' --csv",
        "softmaxce predict runs/digits/1 photos --embeddings photos.npz",
    ),
    "export": (
        "softmaxce export runs/digits/1",
        "softmaxce export runs/digits/1 --format torch_export --output digits.pt2",
        "softmaxce export runs/digits/1 --quantize int8",
    ),
    "serve": (
        "softmaxce serve",
        "softmaxce serve runs/digits/1/model.onnx --port 9000",
    ),
    "explain": (
        "softmaxce explain photo.jpg",
        "softmaxce explain runs/digits/1 --index 123 --html explained.html",
        "softmaxce explain --logits 2.0,1.0,0.1 --label 0 --classes cat,dog,bird",
    ),
    "average": (
        "softmaxce average runs/flowers/1 runs/flowers/2 runs/flowers/3",
        "softmaxce average runs/flowers/* --greedy --output soup",
    ),
    "calibrate": ("softmaxce calibrate runs/digits/1",),
    "report": ("softmaxce report runs/digits/1 --output report.html",),
    "data inspect": ("softmaxce data inspect image_folder --set data.root=photos --html data.html",),
    "data pack": ("softmaxce data pack photos shards",),
    "runs": ("softmaxce runs",),
    "compare": ("softmaxce compare runs/digits/1 runs/digits/2",),
    "list": ("softmaxce list losses",),
    "bench loss": ("softmaxce bench loss --shapes 128x10,4096x100 --dtypes float32",),
    "bench train": ("softmaxce bench train --config digits",),
    "bench startup": ("softmaxce bench startup",),
    "bench predict": ("softmaxce bench predict runs/digits/1 photos",),
    "bench gpu": ("softmaxce bench gpu --json > gpu.json",),
    "config list": ("softmaxce config list",),
    "config show": ("softmaxce config show digits",),
    "config new": ("softmaxce config new image_folder flowers.yaml",),
    "config check": ("softmaxce config check flowers.yaml",),
    "config schema": ("softmaxce config schema > schema.json",),
}
METAVARS = {
    "device": "DEVICE",
    "config": "CONFIG",
    "output": "PATH",
    "data": "FOLDER",
    "tta": "none|flip|crops|flip_crops",
    "quantize": "none|int8",
}
METAVARS |= dict.fromkeys(("seed", "epochs", "batch_size", "rounds", "classes", "digits", "index"), "N")
METAVARS |= dict.fromkeys(("label_smoothing",), "X")


def complete(name: str, command: Any) -> None:
    """Give a command's help its examples, and each value the name that people write, N for example."""
    for word, part in getattr(command, "commands", {}).items():
        complete(f"{name} {word}", part)
        part.short_help = part.help.partition("\n")[0]  # whole; otherwise it is cut at 45 characters in a list
    if name in EXAMPLES:
        command.epilog = "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[name])])
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None  # typer's `[RUN] <path>`
            parameter.metavar = parameter.metavar or parameter.name.upper()
            words = parameter.metavar if parameter.required else f"[{parameter.metavar}]"
            pieces = [words + ("..." if parameter.nargs == -1 else "")]  # typer's {RUN}...
            parameter.get_usage_pieces = lambda ctx, pieces=pieces: pieces
        elif parameter.metavar is None and not getattr(parameter, "is_flag", False):
            parameter.metavar = METAVARS.get(parameter.name)


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
        return f"{option}: there is no such option{_instead(option, error.ctx)}"
    parameter = getattr(error, "param", None)
    if parameter is not None:
        name = (
            max(parameter.opts, key=len)
            if parameter.opts[0].startswith("-")
            else parameter.metavar or parameter.name.upper()
        )
        if type(error).__name__ == "MissingParameter":
            return f"{name}: is required"
        return f"{name}: {_plain(message.partition(': ')[2] or message)}"
    command = re.fullmatch(r"No such command '(.*?)'\.?(?: Did you mean (.*)\?)?", message)
    if command is not None:
        return f"there is no command '{command[1]}'" + (f"; did you mean {command[2]}?" if command[2] else "")
    return message[:1].lower() + message[1:] if not message.startswith("-") else message


def _instead(option: str, context: Any) -> str:
    """What to write in place of an option that a command does not have: an argument, or a similar option."""
    parameters = context.command.params if context is not None else []
    arguments = {
        parameter.name: parameter.metavar for parameter in parameters if parameter.param_type_name == "argument"
    }
    if (argument := arguments.get(option.lstrip("-").replace("-", "_"))) is not None:
        usage = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
        return f"; {argument} is written without a name: {usage}"
    names = [name for parameter in parameters if parameter.name not in arguments for name in parameter.opts]
    return suggestion(option, names)


def _plain(message: str) -> str:
    """A message about a value without the words of the library that checked it."""
    message = re.sub(r"Input should be a valid integer.*", "must be a whole number", message)
    message = re.sub(r"Input should be a valid number.*", "must be a number", message)
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
