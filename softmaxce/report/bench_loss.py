"""`bench loss` as tables, one per metric with a row per cell and PyTorch in the first column, and as JSON."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bench.candidates import NAIVE, OURS, TORCH
from ..bench.clock import Spread, Timed
from ..bench.loss import Case, Result
from ..bench.loss_in_training import Training
from ..runtime.environment import environment
from .console import print_table
from .json_values import finite

Results = Sequence[tuple[Case, Mapping[str, Result]]]

MANY_LOGITS, GOAL, GOAL_OF_FEW = 4096, 1.0, 1.15  # ratios to torch's time that ours should not exceed

NOTES = (
    "±: half the interquartile range of the ratio, which is computed within each round",
    "inputs: standard normal logits; in every third row the target leads by 5 to 25, as in a trained model",
)


def print_loss(results: Results, console: Console) -> None:
    """Print four tables: two of time with geometric means of the ratios, one of memory, one of errors."""
    times = "torch's time, and the others' as multiples of it"
    _print_table(results, f"forward and backward: {times}", _both, console, geometric_means(results, "both"))
    _print_table(results, f"forward alone: {times}", _forward, console, geometric_means(results, "forward"))
    _print_table(
        results, "peak memory beyond the logits, gradient included, in multiples of their size", _memory, console
    )
    _print_table(results, "largest relative error of the loss and its gradient, against float64", _errors, console)
    for note in (*NOTES, threads(case.threads for case, _ in results)):
        console.print(Text(note, "dim"), soft_wrap=True)


def print_grid(results: Results, console: Console) -> None:
    """Print one table per dtype, thread count and loss: rows N, columns K, and the ratio to torch's time.

    Below come the cells in which ours is slower than the goal: torch's time from 4,096 logits on, 1.15 times it below.
    """
    groups = dict.fromkeys((case.dtype, case.threads) for case, _ in results)
    for dtype, count in groups:
        cells = {(c.rows, c.classes): losses for c, losses in results if (c.dtype, c.threads) == (dtype, count)}
        rows, classes = (list(dict.fromkeys(shape[axis] for shape in cells)) for axis in (0, 1))
        for name in [name for name in next(iter(cells.values())) if name not in (TORCH, NAIVE)]:
            title = f"forward and backward, {dtype}, {count} CPU thread{'s' * (count > 1)}: time of {name} / torch's"
            console.print(Text(title, "bold"), soft_wrap=True)
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            for heading in ("N \\ K", *map(str, classes)):
                table.add_column(heading, justify="right", no_wrap=True)
            for n in rows:
                ratios = [cells[n, k][name].both.ratio.median for k in classes]
                table.add_row(
                    str(n),
                    *[
                        Text(f"{r:.2f}", "bold" if _is_slow(n * k, r) else "")
                        for k, r in zip(classes, ratios, strict=True)
                    ],
                )
            print_table(table, console)
            console.print()
    slow = [
        f"{case} {r:.2f}"
        for case, losses in results
        if _is_slow(case.rows * case.classes, r := losses[OURS].both.ratio.median)
    ]
    limits = f"{GOAL:.2f} of torch's time from {MANY_LOGITS:,} logits on, {GOAL_OF_FEW:.2f} below"
    console.print(Text(f"cells above the goal, {limits}: {'; '.join(slow) or 'none'}"), soft_wrap=True)
    for note in (*NOTES[1:], threads(case.threads for case, _ in results)):
        console.print(Text(note, "dim"), soft_wrap=True)


def _is_slow(logits: int, ratio: float) -> bool:
    return round(ratio, 2) > (GOAL if logits >= MANY_LOGITS else GOAL_OF_FEW)


def _print_table(
    results: Results,
    title: str,
    cell: Callable[[str, Result], str],
    console: Console,
    means: Mapping[str, float] | None = None,
) -> None:
    names = list(results[0][1])
    console.print(title, style="bold", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    several = [""] if len({case.threads for case, _ in results}) > 1 else []
    for heading in ("NxC", "dtype", *(["threads"] if several else []), *names):
        table.add_column(heading, justify="left" if heading == "dtype" else "right", no_wrap=True)
    for case, losses in results:
        cells = [cell(name, result) for name, result in losses.items()]
        count = [str(case.threads)] if several else []
        table.add_row(f"{case.rows}x{case.classes}", case.dtype, *count, *cells)
    if means and len(results) > 1:
        cells = ["" if name == TORCH else f"{means[name]:.2f}      " for name in names]
        table.add_row("geometric mean", "", *several, *cells, style="bold")
    print_table(table, console)
    console.print()


def _both(name: str, result: Result) -> str:
    return _time(name, result.both)


def _forward(name: str, result: Result) -> str:
    return _time(name, result.forward)


def _memory(name: str, result: Result) -> str:
    return f"{result.memory:.2f}"


def _errors(name: str, result: Result) -> str:
    return f"{result.errors.largest:.0e}"


def _time(name: str, timed: Timed, digits: int = 2) -> str:
    return show_seconds(timed.seconds.median) if name == TORCH else show_ratio(timed.ratio, digits)


def show_ratio(ratio: Spread, digits: int) -> str:
    """`0.59 ±0.01`: the median, and half the interquartile range."""
    digits = max(0, digits - len(str(int(ratio.median))) + 1)
    return f"{ratio.median:.{digits}f} ±{(ratio.high - ratio.low) / 2:.{digits}f}"


def show_seconds(seconds: float) -> str:
    """Three significant digits in us, ms or s."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def geometric_means(results: Results, field: str) -> dict[str, float]:
    """Geometric mean over the cells of each candidate's median ratio to torch; field: `both` or `forward`."""
    means = {}
    for name in results[0][1]:
        logs = [math.log(getattr(losses[name], field).ratio.median) for _, losses in results]
        means[name] = math.exp(sum(logs) / len(logs))
    return means


def print_training(trainings: Sequence[Training], console: Console) -> None:
    """Print one table, a row per model and batch size."""
    console.print("a training step: time with torch's loss, and with ours as a multiple of it", style="bold")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("model", "batch", "threads", *trainings[0].step):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for row in trainings:
        times = [_time(name, timed, 3) for name, timed in row.step.items()]
        table.add_row(row.model, str(row.batch_size), str(row.threads), *times)
    print_table(table, console)


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print the notes, one per line."""
    for note in notes:
        console.print(Text(note, "dim"), soft_wrap=True)


def threads(counts: Iterable[int]) -> str:
    """A note on the CPU threads PyTorch used."""
    listed = ", ".join(map(str, sorted(set(counts))))
    return f"CPU threads: {listed} (with 1, times are CPU time, else wall-clock time)"


def busy() -> list[str]:
    """A warning, if the load is higher than the number of processors."""
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load <= processors:
        return []
    return [
        f"the machine is busy (load {load:.1f} on {processors} processors): a wide ± means that the ratio is uncertain"
    ]


def machine(device: torch.device) -> str:
    """Device, versions and platform, in one line."""
    record = environment(device)
    name = str(device) if device.type == "cpu" else record["device"]
    return f"{name}; torch {record['torch']}, softmaxce {record['softmaxce']}, {record['platform']}"


# -- JSON -------------------------------------------------------------------------------------------------------------


def loss_to_dict(results: Results) -> dict[str, Any]:
    """All results. A non-finite error is null."""
    cells = [
        {
            "shape": [case.rows, case.classes],
            "dtype": case.dtype,
            "device": str(case.device),
            "threads": case.threads,
            "losses": {name: _result_to_dict(result) for name, result in losses.items()},
        }
        for case, losses in results
    ]
    means = {key: geometric_means(results, field) for key, field in TIMES.items()}
    return {"cells": cells, "geometric_mean_ratios": means}


TIMES = {"forward_and_backward": "both", "forward": "forward"}


def _result_to_dict(result: Result) -> dict[str, Any]:
    return {
        **{key: timed_to_dict(getattr(result, field)) for key, field in TIMES.items()},
        "peak_memory_per_logits": result.memory,
        "relative_error": finite(asdict(result.errors)),
    }


def timed_to_dict(timed: Timed) -> dict[str, Any]:
    """Seconds per call and the ratio to torch's, each with quartiles."""
    return {
        name: {"median": spread.median, "quartiles": [spread.low, spread.high]}
        for name, spread in (("seconds", timed.seconds), ("ratio", timed.ratio))
    }


def training_to_dict(trainings: Sequence[Training]) -> dict[str, Any]:
    """All results of `bench loss --train`."""
    rows = [
        {
            "model": row.model,
            "batch_size": row.batch_size,
            "threads": row.threads,
            "step": {name: timed_to_dict(timed) for name, timed in row.step.items()},
        }
        for row in trainings
    ]
    return {"training": rows}
