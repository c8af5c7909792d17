"""`bench train`, `bench startup` and `bench predict` as tables and as JSON."""

from typing import Any

from rich.console import Console

from ..bench.clock import Spread
from ..bench.prediction import DECODING, PREDICTING, Rates
from ..bench.startup import BASE, MISTAKE, STEP, Start
from ..bench.throughput import CEILING, MEANINGS, OURS, PLAIN, Loop, Ways
from ..config.keys import Config
from .bench_loss import show_ratio, show_seconds, threads
from .console import plain_table, print_table

MEBIBYTE = 2**20


def print_loop(loop: Loop, console: Console) -> None:
    """Print three tables: training, evaluation, and how an epoch's time is spent."""
    _print_ways(f"training, batches of {loop.batch_size}", loop.training, console)
    _print_ways(f"evaluation, batches of {loop.evaluation_batch_size}", loop.evaluation, console)
    console.print("time of one epoch of softmaxce", style="bold")
    table = plain_table()
    for heading in ("", "seconds", "share"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    whole = sum(loop.epoch.values())
    for name, seconds in loop.epoch.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / whole:.1%}")
    table.add_row("all", f"{whole:.3f}", "", style="bold")
    print_table(table, console)
    console.print()


def _print_ways(title: str, ways: Ways, console: Console) -> None:
    console.print(title, style="bold")
    table = plain_table()
    for heading in ("", "images/s", "vs ceiling", "vs plain"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name in ways.rates:
        to_ceiling, to_plain = (show_ratio(ratio[name], 3) for ratio in (ways.to_ceiling, ways.to_plain))
        table.add_row(
            name,
            f"{ways.rates[name].median:,.0f}",
            to_ceiling if name != CEILING else "",
            to_plain if name != PLAIN else "",
            style="bold" if name == OURS else "",
        )
    print_table(table, console)
    console.print()


def notes_on_loop(loop: Loop) -> list[str]:
    """Notes for the output, one per line."""
    notes = [f"{name}: {meaning}" for name, meaning in MEANINGS.items()]
    notes.append("±: half the interquartile range of the ratio, which is computed within each round")
    if loop.device.type == "cpu":
        notes.append(threads([loop.threads]))
    if loop.left_out:
        notes.append(f"plain PyTorch leaves out {', '.join(loop.left_out)}, for which torchvision has no transform")
    if loop.memory:
        ours, plain = loop.memory[OURS], loop.memory[PLAIN]
        sizes = f"{ours / MEBIBYTE:.0f} MiB, plain PyTorch's {plain / MEBIBYTE:.0f} MiB"
        notes.append(f"peak memory: softmaxce's process {sizes}: {ours / plain:.2f} of it")
    return notes


def loop_to_dict(config: Config, loop: Loop) -> dict[str, Any]:
    """All results of `bench train`."""
    return {
        "config": config.recipe,
        "model": config.model.to_dict(),
        "precision": loop.precision,
        "threads": loop.threads,
        "batch_size": loop.batch_size,
        "evaluation_batch_size": loop.evaluation_batch_size,
        "batches": loop.batches,
        "training": _ways_to_dict(loop.training),
        "evaluation": _ways_to_dict(loop.evaluation),
        "epoch_seconds": loop.epoch,
        "peak_memory": loop.memory,
        "left_out": list(loop.left_out),
    }


def _ways_to_dict(ways: Ways) -> dict[str, Any]:
    columns = {"images_per_second": ways.rates, "to_ceiling": ways.to_ceiling, "to_plain": ways.to_plain}
    return {name: {key: spread_to_dict(column[name]) for key, column in columns.items()} for name in ways.rates}


def spread_to_dict(spread: Spread) -> dict[str, Any]:
    """Median and quartiles."""
    return {"median": spread.median, "quartiles": [spread.low, spread.high]}


def print_startup(start: Start, console: Console) -> None:
    """Print one table, a row per process."""
    table = plain_table()
    for heading in ("", "seconds", "vs first row"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, seconds in start.seconds.items():
        ratio = show_ratio(start.to_base[name], 2) if name != BASE else ""
        table.add_row(name, show_seconds(seconds.median), ratio)
    print_table(table, console)
    console.print()


def notes_on_startup() -> list[str]:
    """Notes for the output, one per line."""
    return [
        "±: half the interquartile range of the ratio, which is computed within each round",
        f"{BASE}: python -c 'import typer, rich'",
        f"{MISTAKE}: softmaxce train with an unknown key",
        f"{STEP}: until an epoch of one step is printed, including its evaluation on the test images",
    ]


def startup_to_dict(start: Start) -> dict[str, Any]:
    """All results of `bench startup`."""
    columns = {"seconds": start.seconds, "to_base": start.to_base}
    rows = {name: {key: spread_to_dict(column[name]) for key, column in columns.items()} for name in start.seconds}
    return {"startup": rows}


def print_predict(result: Rates, console: Console) -> None:
    """Print one table, a row each for decoding and prediction."""
    table = plain_table()
    for heading in ("", "files/s", "vs decoding alone"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, rate in result.rates.items():
        table.add_row(name, f"{rate.median:,.0f}", show_ratio(result.to_decoding, 2) if name == PREDICTING else "")
    print_table(table, console)
    console.print()


def notes_on_predict(result: Rates) -> list[str]:
    """Notes for the output, one per line."""
    return [
        "±: half the interquartile range of the ratio, which is computed within each round",
        f"{DECODING}: in the same threads and to the same size as for {PREDICTING}, then discarded",
        f"{result.files:,} files, {result.model}; start-up is not counted",
    ]


def predict_to_dict(result: Rates) -> dict[str, Any]:
    """All results of `bench predict`."""
    rates = {name: spread_to_dict(rate) for name, rate in result.rates.items()}
    return {"predict": {"files": result.files, "rates": rates, "to_decoding": spread_to_dict(result.to_decoding)}}
