"""How fast training and prediction go, for a person and as JSON: each beside what it cannot do without."""

from typing import Any

from rich.console import Console

from ..bench.clock import Spread
from ..bench.prediction import DECODING, PREDICTING, Rates
from ..bench.startup import BASE, MISTAKE, STEP, Start
from ..bench.throughput import CEILING, MEANINGS, OURS, PLAIN, Loop, Ways
from ..config.keys import Config
from .bench_loss import show_ratio, show_seconds, threads
from .console import plain_table

MEBIBYTE = 2**20


def print_loop(loop: Loop, console: Console) -> None:
    """Three tables: training, evaluation, and where an epoch's time goes."""
    _print_ways(f"training, batches of {loop.batch_size}", loop.training, console)
    _print_ways(f"evaluation, batches of {loop.evaluation_batch_size}", loop.evaluation, console)
    console.print("an epoch of softmaxce", style="bold")
    table = plain_table()
    for heading in ("", "seconds", "share"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    whole = sum(loop.epoch.values())
    for name, seconds in loop.epoch.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / whole:.1%}")
    table.add_row("all", f"{whole:.3f}", "", style="bold")
    console.print(table)
    console.print()


def _print_ways(title: str, ways: Ways, console: Console) -> None:
    console.print(title, style="bold")
    table = plain_table()
    for heading in ("", "images/s", "to the ceiling", "to the plain way"):
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
    console.print(table)
    console.print()


def notes_on_loop(loop: Loop) -> list[str]:
    """How the figures came about, a line a sentence."""
    notes = [f"{name}: {meaning}" for name, meaning in MEANINGS.items()]
    notes.append("±: half the distance between the quartiles of the ratio, which is taken anew in every round")
    if loop.device.type == "cpu":
        notes.append(threads([loop.threads]))
    if loop.left_out:
        notes.append(f"the plain way leaves out {', '.join(loop.left_out)}, for which it has no transform")
    if loop.memory:
        ours, plain = loop.memory[OURS], loop.memory[PLAIN]
        sizes = f"{ours / MEBIBYTE:.0f} MiB, the plain way's {plain / MEBIBYTE:.0f} MiB"
        notes.append(f"peak memory: softmaxce's process {sizes}: {ours / plain:.2f} of it")
    return notes


def plain_loop(config: Config, loop: Loop) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "config": config.recipe,
        "model": config.model.to_dict(),
        "precision": loop.precision,
        "threads": loop.threads,
        "batch_size": loop.batch_size,
        "evaluation_batch_size": loop.evaluation_batch_size,
        "batches": loop.batches,
        "training": _plain_ways(loop.training),
        "evaluation": _plain_ways(loop.evaluation),
        "epoch_seconds": loop.epoch,
        "peak_memory": loop.memory,
        "left_out": list(loop.left_out),
    }


def _plain_ways(ways: Ways) -> dict[str, Any]:
    columns = {"images_per_second": ways.rates, "to_ceiling": ways.to_ceiling, "to_plain": ways.to_plain}
    return {name: {key: plain_spread(found[name]) for key, found in columns.items()} for name in ways.rates}


def plain_spread(spread: Spread) -> dict[str, Any]:
    """A median and its quartiles."""
    return {"median": spread.median, "quartiles": [spread.low, spread.high]}


def print_startup(start: Start, console: Console) -> None:
    """One table: a row a process."""
    table = plain_table()
    for heading in ("", "seconds", "to the first row"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, seconds in start.seconds.items():
        ratio = show_ratio(start.to_base[name], 2) if name != BASE else ""
        table.add_row(name, show_seconds(seconds.median), ratio)
    console.print(table)
    console.print()


def notes_on_startup() -> list[str]:
    """How the figures came about, a line a sentence."""
    return [
        "±: half the distance between the quartiles of the ratio, which is taken anew in every round",
        f"{BASE}: python -c 'import typer, rich'",
        f"{MISTAKE}: softmaxce train with an unknown key",
        f"{STEP}: until the row of an epoch of one step is printed, its evaluation on the test images included",
    ]


def plain_startup(start: Start) -> dict[str, Any]:
    """Everything that was measured."""
    columns = {"seconds": start.seconds, "to_base": start.to_base}
    rows = {name: {key: plain_spread(found[name]) for key, found in columns.items()} for name in start.seconds}
    return {"startup": rows}


def print_predict(found: Rates, console: Console) -> None:
    """One table: a row a way."""
    table = plain_table()
    for heading in ("", "files/s", "to decoding alone"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, rate in found.rates.items():
        table.add_row(name, f"{rate.median:,.0f}", show_ratio(found.to_decoding, 2) if name == PREDICTING else "")
    console.print(table)
    console.print()


def notes_on_predict(found: Rates) -> list[str]:
    """How the figures came about, a line a sentence."""
    return [
        "±: half the distance between the quartiles of the ratio, which is taken anew in every round",
        f"{DECODING}: in the same threads and to the same size as for {PREDICTING}, and thrown away",
        f"{found.files:,} files, {found.model}; start-up is not counted",
    ]


def plain_predict(found: Rates) -> dict[str, Any]:
    """Everything that was measured."""
    rates = {name: plain_spread(rate) for name, rate in found.rates.items()}
    return {"predict": {"files": found.files, "rates": rates, "to_decoding": plain_spread(found.to_decoding)}}
