"""`softmaxce bench`: measurements that anyone can repeat."""

import itertools
import json as jsonlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from softmaxce.config import reader as configs
from softmaxce.config.components import Component
from softmaxce.config.registry import REGISTRIES
from softmaxce.config.values import show
from softmaxce.errors import ConfigError, DataError, Problem, suggestion
from softmaxce.report import console

from .options import Device
from .trust import TrustCode

if TYPE_CHECKING:
    import torch
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Measure how fast this machine runs softmaxce, beside PyTorch's own.")

SHAPES = "32x10,128x10,1024x10,4096x100,256x1000,1024x1000,64x21841,32x128256"
DTYPES = {
    **{name: name for name in ("float32", "bfloat16", "float16", "float64")},
    "bf16": "bfloat16",
    "fp16": "float16",
}


@app.callback()
def bench() -> None:
    """Measure how fast this machine runs softmaxce, beside PyTorch's own."""


@app.command("loss")
def bench_loss(
    losses: Annotated[
        list[str] | None, typer.Argument(help="More losses to put beside: names on the menu, or module:Name.")
    ] = None,
    shapes: Annotated[str, typer.Option(metavar="NxC,...", help="Rows and classes of the logits.")] = SHAPES,
    dtypes: Annotated[
        str, typer.Option(metavar="DTYPE,...", help="float32, bfloat16, float16, float64.")
    ] = "float32,bfloat16",
    threads: Annotated[str, typer.Option(metavar="N,...", help="CPU threads that PyTorch may use.")] = "1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="How often each loss has its turn.")] = 30,
    train: Annotated[
        str | None,
        typer.Option(metavar="MODEL,...", help="Time training steps of these models instead, e.g. linear,lenet."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="With --train: batch sizes.")] = "64,128",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time our cross-entropy against PyTorch's: speed, memory and error, in one process, taking turns."""
    grid = [_shape(text) for text in _split(shapes, "--shapes")]
    kinds = [_dtype(text) for text in _split(dtypes, "--dtypes")]
    counts = [_number(text, "--threads") for text in _split(threads, "--threads")]
    sizes = [_number(text, "--batch") for text in _split(batch, "--batch")]
    models = _split(train, "--train") if train is not None else []
    for model in models:
        _component(model, "model", "--train")
    others = [_component(name, "loss", "LOSSES") for name in losses or []]

    from softmaxce.bench.allocator import never_trim
    from softmaxce.report import bench_loss as benchmark
    from softmaxce.runtime.device import choose_device

    place = choose_device(device)
    notes = [never_trim()]
    if models:
        from softmaxce.bench import loss_in_training

        steps = list(itertools.product(counts, models, sizes))
        trainings = [
            loss_in_training.compare(model, size, count, place, rounds)
            for count, model, size in _tracked(steps, lambda step: f"{step[1]}, batch {step[2]}")
        ]
        told = benchmark.plain_training(trainings) if json else partial(benchmark.print_training, trainings)
    else:
        from softmaxce.bench import candidates, loss

        why_not = candidates.why_not_compiled(place)
        if why_not is not None:
            notes.append(f"torch.compile does not work here, so it is left out: {why_not}")
        cells = list(loss.grid(grid, kinds, counts, place))
        results = [(cell, loss.compare(cell, rounds, why_not is None, others)) for cell in _tracked(cells, str)]
        told = benchmark.plain_loss(results) if json else partial(benchmark.print_loss, results)
    _tell(place, notes, told)


@app.command("train")
def bench_train(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A YAML file, or a recipe's name (softmaxce config list).")
    ] = "digits",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. model=resnet18.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="How often each way has its turn.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time a config's training beside the arithmetic it has to do, and beside the plain PyTorch way, taking turns."""
    overrides = [configs.parse_override(text) for text in set_ or []]
    overrides += [configs.Override(("device",), device, "--device")] if device is not None else []
    asked = configs.load(config, overrides)

    import io

    from rich.console import Console

    from softmaxce.bench import throughput
    from softmaxce.report import bench_throughput
    from softmaxce.report.training import GrowingTable

    table = GrowingTable(Console(file=io.StringIO(), force_terminal=True, width=80))  # drawn in full, shown to nobody
    with console.stderr().status(f"{asked.recipe}: training in turns"):
        found = throughput.measure(asked, table.track, table.expect, table.epoch, rounds)
    told = bench_throughput.plain_loop(asked, found) if json else partial(bench_throughput.print_loop, found)
    _tell(found.device, bench_throughput.notes_on_loop(found), told)


@app.command("startup")
def bench_startup(
    config: Annotated[
        str, typer.Option("--config", "-c", help="What the run of one step trains: a YAML file, or a recipe's name.")
    ] = "digits",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. model=linear.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="How often each process has its turn.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time --help, a config error and the way to the first step, as whole processes, taking turns."""
    asked = configs.load(config, [configs.parse_override(text) for text in set_ or []])
    size = asked.data.batch_size * asked.grad_accum_steps
    one_step = ("epochs=1", f"data.train_limit={size}", "data.validation=null", "early_stopping=null")

    from softmaxce.bench import startup
    from softmaxce.report import bench_throughput
    from softmaxce.runtime.device import choose_device

    with console.stderr().status("starting processes in turns"):
        found = startup.measure(config, (*(set_ or []), *one_step), rounds)
    told = bench_throughput.plain_startup(found) if json else partial(bench_throughput.print_startup, found)
    _tell(choose_device("cpu"), bench_throughput.notes_on_startup(), told)


@app.command("predict")
def bench_predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a checkpoint.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Image files, folders, quoted globs.")],
    device: Device = None,
    trust_code: TrustCode = False,
    rounds: Annotated[int, typer.Option(min=2, help="How often each way has its turn.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time a run's predictions from image files beside decoding the same files alone, taking turns."""
    from softmaxce.data.paths import Unreadable, image_files

    files = list(image_files(paths, sys.stdin))
    if bad := next((file for file in files if isinstance(file, Unreadable)), None):
        raise DataError(str(bad))
    if not files:
        raise DataError("there is no image among these paths")

    from softmaxce.bench import prediction
    from softmaxce.inference.trained_model import TrainedModel
    from softmaxce.report import bench_throughput

    opened = TrainedModel.open(run, device=device or "auto", temperature=1.0, trust_code=trust_code)
    with console.stderr().status("decoding and predicting in turns"):
        found = prediction.measure(opened, [str(file) for file in files], rounds)
    told = bench_throughput.plain_predict(found) if json else partial(bench_throughput.print_predict, found)
    _tell(opened.device, bench_throughput.notes_on_predict(found), told)


def _tell(place: "torch.device", notes: Sequence[str], measured: dict[str, Any] | Callable[["Console"], None]) -> None:
    """Print what was measured, a JSON object or what prints itself, with notes on how and where."""
    from softmaxce.report import bench_loss as benchmark
    from softmaxce.runtime.environment import environment

    notes = [*notes, *benchmark.busy()]
    if isinstance(measured, dict):
        typer.echo(jsonlib.dumps({"environment": environment(place), "notes": notes, **measured}, allow_nan=False))
    else:
        out = console.stdout()
        measured(out)
        benchmark.print_notes([*notes, benchmark.machine(place)], out)


T = TypeVar("T")


def _tracked(things: Sequence[T], name: Callable[[T], str]) -> Iterator[T]:
    """The same things, with a line on stderr that says which one is being measured, on a terminal only."""
    with console.stderr().status("") as status:
        for index, thing in enumerate(things):
            status.update(f"{index + 1} of {len(things)}: {name(thing)}")
            yield thing


# -- what the options mean --------------------------------------------------------------------------------------------


def _split(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError([Problem(option, f"write values with commas between them, got {show(text)}")])
    return words


def _number(text: str, option: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ConfigError([Problem(option, f"must be whole numbers of at least 1, got {show(text)}")])
    return int(text)


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text)
    if match is None:
        raise ConfigError([Problem("--shapes", f"write rows x classes, such as 128x10, got {show(text)}")])
    return int(match[1]), int(match[2])


def _dtype(text: str) -> str:
    if text not in DTYPES:
        hint = suggestion(text, DTYPES) or f"; choose from {', '.join(DTYPES)}"
        raise ConfigError([Problem("--dtypes", f"there is no {show(text)}{hint}")])
    return DTYPES[text]


def _component(name: str, menu: str, place: str) -> Component:
    try:
        target, implied = REGISTRIES[menu].resolve(name)
    except ValueError as error:
        raise ConfigError([Problem(place, str(error))]) from None
    return Component(name, target, {}, implied, place)
