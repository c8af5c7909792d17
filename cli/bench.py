"""`softmaxce bench`: speed, memory and accuracy on this machine."""

import itertools
import json as jsonlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.text import Text

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.config.components import Component
from softmaxce.config.registry import REGISTRIES
from softmaxce.config.values import show
from softmaxce.errors import FAILED, ConfigError, DataError, Problem, suggestion
from softmaxce.report import console

from .options import Device, TrustCode, between_commas, check_device, run_or_newest
from .startup import fast_imports

if TYPE_CHECKING:
    import torch
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Measure softmaxce's speed on this machine, compared with PyTorch's.")

ROWS, CLASSES = (64, 128, 512, 1024, 4096, 16384), (2, 3, 10, 17, 32, 64, 100, 200, 1000)  # of --grid
SHAPES = "32x10,128x10,1024x10,4096x100,256x1000,1024x1000,64x21841,32x128256"
DTYPES = {
    **{name: name for name in ("float32", "bfloat16", "float16", "float64")},
    "bf16": "bfloat16",
    "fp16": "float16",
}


@app.callback()
def bench() -> None:
    """Measure softmaxce's speed on this machine, compared with PyTorch's."""


@app.command("loss")
def bench_loss(
    losses: Annotated[
        list[str] | None,
        typer.Argument(help="Further losses to compare: names (softmaxce list losses), or module:Name."),
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option(metavar="NxC,...", help="Rows and classes of the logits; default: eight.")
    ] = None,
    whole_grid: Annotated[
        bool,
        typer.Option("--grid", help="54 shapes, 64x2 to 16384x1000, as one table per dtype; without torch.compile."),
    ] = False,
    dtypes: Annotated[
        list[str] | None,
        typer.Option(metavar="DTYPE,...", help="float32, bfloat16, float16, float64; default: float32,bfloat16."),
    ] = None,
    threads: Annotated[
        list[str] | None, typer.Option(metavar="N,...", help="CPU threads for PyTorch; default: 1.")
    ] = None,
    device: Annotated[str, typer.Option(callback=check_device, help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of timing.")] = 30,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL,...", help="Time training steps of these models instead, e.g. linear,lenet."),
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option(metavar="N,...", help="With --train: batch sizes; default: 64,128.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare softmaxce's cross-entropy with PyTorch's: time, memory and error, interleaved in one process."""
    if whole_grid and (shapes or train is not None):
        other = "--shapes" if shapes else "--train"
        raise ConfigError([Problem("--grid", f"has its own shapes and measures losses alone; leave out {other}")])
    grid = [_shape(text) for text in _split(shapes or [SHAPES], "--shapes")]
    if whole_grid:
        grid = list(itertools.product(ROWS, CLASSES))
    dtype_names = [_dtype(text) for text in _split(dtypes or ["float32,bfloat16"], "--dtypes")]
    thread_counts = [_number(text, "--threads") for text in _split(threads or ["1"], "--threads")]
    batch_sizes = [_number(text, "--batch") for text in _split(batch or ["64,128"], "--batch")]
    models = _split(train, "--train") if train is not None else []
    for model in models:
        _component(model, "model", "--train")
    others = [_component(name, "loss", "LOSSES") for name in losses or []]

    with fast_imports():
        from softmaxce.bench.allocator import never_trim
        from softmaxce.report import bench_loss as output
        from softmaxce.runtime.device import choose_device

    selected_device = choose_device(device)
    notes = [never_trim()]
    if models:
        from softmaxce.bench import loss_in_training

        steps = list(itertools.product(thread_counts, models, batch_sizes))
        trainings = [
            loss_in_training.compare(model, size, count, selected_device, rounds)
            for count, model, size in _tracked(steps, lambda step: f"{step[1]}, batch {step[2]}")
        ]
        measured = output.training_to_dict(trainings) if json else partial(output.print_training, trainings)
    else:
        from softmaxce.bench import candidates, loss

        failure = None if whole_grid else candidates.why_not_compiled(selected_device)
        if failure is not None:
            notes.append(f"torch.compile does not work on this machine and is left out: {failure}")
        cells = list(loss.grid(grid, dtype_names, thread_counts, selected_device))
        results = [
            (cell, loss.compare(cell, rounds, failure is None and not whole_grid, others))
            for cell in _tracked(cells, str)
        ]
        measured = (
            output.loss_to_dict(results)
            if json
            else partial(output.print_grid if whole_grid else output.print_loss, results)
        )
    _print(selected_device, notes, measured)


@app.command("train")
def bench_train(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A YAML file, or a recipe's name (softmaxce config list).")
    ] = "digits",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. model=resnet18.")
    ] = None,
    device: Annotated[str | None, typer.Option(callback=check_device, help="auto, cpu, cuda, cuda:N or mps.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of timing.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare a config's training speed with its arithmetic alone, and with a plain PyTorch program, interleaved."""
    overrides = [configs.parse_override(text) for text in set_ or []]
    overrides += [configs.Override(("device",), device, "--device")] if device is not None else []
    loaded = configs.load(config, overrides)

    import io

    from rich.console import Console

    with fast_imports():
        from softmaxce.bench import throughput
        from softmaxce.report import bench_throughput
        from softmaxce.report.training import GrowingTable

    table = GrowingTable(Console(file=io.StringIO(), force_terminal=True, width=80))  # drawn in full, but discarded
    with console.stderr().status(Text(f"{loaded.recipe}: training")):
        result = throughput.measure(loaded, table.track, table.expect, table.epoch, rounds)
    measured = bench_throughput.loop_to_dict(loaded, result) if json else partial(bench_throughput.print_loop, result)
    _print(result.device, bench_throughput.notes_on_loop(result), measured)


@app.command("startup")
def bench_startup(
    config: Annotated[
        str, typer.Option("--config", "-c", help="The config of the run of one step: a YAML file, or a recipe's name.")
    ] = "digits",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. model=linear.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of timing.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time --help, a config error and the time to the first step, as whole processes, interleaved."""
    loaded = configs.load(config, [configs.parse_override(text) for text in set_ or []])
    batch_size = 32 if loaded.data.batch_size == "auto" else loaded.data.batch_size
    size = batch_size * loaded.grad_accum_steps
    one_step = (
        "epochs=1",
        f"data.batch_size={batch_size}",
        f"data.train_limit={size}",
        "data.validation=null",
        "early_stopping=null",
    )

    with fast_imports():
        from softmaxce.bench import startup
        from softmaxce.report import bench_throughput
        from softmaxce.runtime.device import choose_device

    with console.stderr().status("starting processes"):
        result = startup.measure(config, (*(set_ or []), *one_step), rounds)
    measured = bench_throughput.startup_to_dict(result) if json else partial(bench_throughput.print_startup, result)
    _print(choose_device("cpu"), bench_throughput.notes_on_startup(), measured)


@app.command("predict")
def bench_predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a checkpoint.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Image files, folders, quoted globs.")],
    device: Device = None,
    trust_code: TrustCode = False,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of timing.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare a run's predictions from image files with decoding the same files alone, interleaved."""
    from softmaxce.data.paths import Unreadable, image_files

    run_or_newest(run, "bench predict")
    files = list(image_files(paths, sys.stdin))
    if unreadable := next((file for file in files if isinstance(file, Unreadable)), None):
        raise DataError(str(unreadable))
    if not files:
        raise DataError("none of these paths is an image")

    with fast_imports():
        from softmaxce.bench import prediction
        from softmaxce.inference.trained_model import TrainedModel
        from softmaxce.report import bench_throughput

    opened = TrainedModel.open(run, device=device or "auto", temperature=1.0, trust_code=trust_code)
    with console.stderr().status("decoding and predicting"):
        result = prediction.measure(opened, [str(file) for file in files], rounds)
    measured = bench_throughput.predict_to_dict(result) if json else partial(bench_throughput.print_predict, result)
    _print(opened.device, bench_throughput.notes_on_predict(result), measured)


@app.command("gpu")
def bench_gpu(
    airbench: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, which is run on CIFAR-10 too.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check and measure one NVIDIA GPU in under five minutes: tests, loss, training, several processes. Experimental.

    Nothing is downloaded. What fails or takes too long is a line of the results, and the exit status is then 1; without
    a GPU it is 2. Ctrl-C prints what there is. CUDA_VISIBLE_DEVICES chooses the GPU.
    """
    if airbench is not None and not airbench.is_file():
        raise ConfigError([Problem("--airbench", f"{airbench}: there is no such file")])

    with fast_imports():
        import torch

        from softmaxce.bench import gpu
        from softmaxce.report import bench_gpu as output

    card, parts, interruption = gpu.card(), [], None
    try:
        with console.stderr().status("") as status:
            for part in gpu.measure(gpu.arguments(airbench), lambda name: status.update(Text(output.TITLES[name]))):
                parts.append(part)
    except KeyboardInterrupt as error:
        interruption = error
    measured = output.to_dict(card, parts) if json else partial(output.print_parts, card, parts)
    _print(torch.device("cuda", 0), output.notes(card, interrupted=interruption is not None), measured)
    if interruption is not None:
        raise interruption
    if any(part.status == gpu.FAILED for part in parts):
        raise typer.Exit(FAILED)


def _print(
    device: "torch.device", notes: Sequence[str], measured: dict[str, Any] | Callable[["Console"], None]
) -> None:
    """Print results, as JSON if `measured` is a dict, with notes on how and where they were measured."""
    from softmaxce.report import bench_loss as output
    from softmaxce.runtime.environment import environment

    notes = [*notes, *output.busy()]
    if isinstance(measured, dict):
        streams.json_text(
            jsonlib.dumps({"environment": environment(device), "notes": notes, **measured}, allow_nan=False)
        )
    else:
        out = console.stdout()
        measured(out)
        output.print_notes([*notes, output.machine(device)], out)


T = TypeVar("T")


def _tracked(items: Sequence[T], name: Callable[[T], str]) -> Iterator[T]:
    """Iterate, with a line on stderr, on a terminal, that names the item being measured."""
    with console.stderr().status("") as status:
        for index, item in enumerate(items):
            status.update(Text(f"{index + 1} of {len(items)}: {name(item)}"))
            yield item


# -- parsing of options -----------------------------------------------------------------------------------------------


def _split(texts: list[str], option: str) -> list[str]:
    words = between_commas(texts)
    if not all(words):
        raise ConfigError([Problem(option, f"write values separated by commas, got {show(','.join(texts))}")])
    return words


def _number(text: str, option: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ConfigError([Problem(option, f"must be whole numbers, at least 1, got {show(text)}")])
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


def _component(name: str, registry: str, option: str) -> Component:
    try:
        target, implied = REGISTRIES[registry].resolve(name)
    except ValueError as error:
        raise ConfigError([Problem(option, str(error))]) from None
    return Component(name, target, {}, implied, option)
