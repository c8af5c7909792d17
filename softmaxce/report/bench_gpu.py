"""`bench gpu` as tables, a section for each part, and as JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bench import gpu
from ..bench.candidates import TORCH
from ..bench.gpu import Part
from ..bench.throughput import CEILING, MEANINGS, OURS, PLAIN
from .bench_loss import show_seconds
from .console import plain_table, print_table
from .json_values import finite

GIBIBYTE = 2**30
TITLES = {
    gpu.TESTS: "tests that need a GPU",
    gpu.LOSS: "loss, forward and backward",
    gpu.TRAINING: "training, images/s",
    gpu.CIFAR10: "CIFAR-10, time to an accuracy of 0.94",
    gpu.PROCESSES: "several processes",
}


def print_parts(card: dict[str, Any], parts: Sequence[Part], console: Console) -> None:
    """Print the card, then each part: its title and status, its table, its notes and failures."""
    memory = f"{card['memory_bytes'] / GIBIBYTE:.0f} GiB"
    about = f"{card['name']}, {memory}, compute capability {card['compute_capability']}"
    console.print(Text(f"{about}; driver {card['driver'] or 'unknown'}; {card['date']}"), soft_wrap=True)
    for part in parts:
        console.print()
        console.print(Text(f"{TITLES[part.name]}: {part.status} ({part.seconds:.0f} s)", "bold"), soft_wrap=True)
        if part.rows:
            PRINTERS[part.name](part.rows, console)
        for failure in part.failures:
            console.print(Text(f"failed: {failure}", "red"), soft_wrap=True)
        for note in part.notes:
            console.print(Text(note, "dim"), soft_wrap=True)
    console.print()


def notes(card: dict[str, Any], *, interrupted: bool) -> list[str]:
    """Notes on the whole, one per line."""
    versions = ", ".join(f"{name} {card[name] or 'not installed'}" for name in ("triton", "liger_kernel"))
    return [*(["interrupted: the parts after this are missing"] if interrupted else []), versions, "experimental"]


def to_dict(card: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """All results; the rows of a part are described in bench/gpu_*.py."""
    return {
        "gpu": card,
        "parts": {
            part.name: {
                "status": part.status,
                "seconds": part.seconds,
                "notes": list(part.notes),
                "failures": list(part.failures),
                **(_tests(part.rows) if part.name == gpu.TESTS else {"rows": finite(part.rows)}),
            }
            for part in parts
        },
    }


Rows = Sequence[dict[str, Any]]


def _tests(rows: Rows) -> dict[str, Any]:
    """The number of tests by outcome, and the names of those that failed."""
    counts = {name: sum(row["outcome"] == name for row in rows) for name in ("passed", "failed", "skipped")}
    return {**counts, "failed_tests": [row["test"] for row in rows if row["outcome"] == "failed"]}


def _print_tests(rows: Rows, console: Console) -> None:
    counts = _tests(rows)
    console.print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    for name in counts["failed_tests"]:
        console.print(Text(f"  {name}"), soft_wrap=True)


def _table(*headings: str, left: int = 1) -> Table:
    table = plain_table()
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return table


def _print_loss(rows: Rows, console: Console) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["losses"]))
    for title, cell in (
        (f"{TORCH}'s time, and the others' as multiples of it", _time),
        ("the fewest bytes that can be moved / time, relative to the copying speed", _of_copy_speed),
    ):
        console.print(title)
        table = _table("NxC", "dtype", *names, left=2)
        for row in rows:
            cells = [cell(name, row["losses"][name]) if name in row["losses"] else "-" for name in names]
            table.add_row("x".join(map(str, row["shape"])), row["dtype"], *cells)
        print_table(table, console)


def _time(name: str, result: dict[str, Any]) -> str:
    if name == TORCH or "ratio" not in result:
        return show_seconds(result["seconds"])
    low, high = result["quartiles"]
    return f"{result['ratio']:.2f} ±{(high - low) / 2:.2f}"


def _of_copy_speed(name: str, result: dict[str, Any]) -> str:
    return f"{result['of_copy_speed']:.2f}"


def _print_training(rows: Rows, console: Console) -> None:
    table = _table("recipe", "images", "graph", CEILING, OURS, PLAIN, "vs ceiling", "vs plain", left=3)
    for row in rows:
        rates = [f"{row[name]['images_per_second']:,.0f}" for name in (CEILING, OURS, PLAIN)]
        ratios = [f"{row[name]:.2f}" for name in ("to_ceiling", "to_plain")]
        table.add_row(row["recipe"], row["images"], "yes" if row["cuda_graph"] else "no", *rates, *ratios)
    print_table(table, console)
    for name in (CEILING, PLAIN):
        console.print(Text(f"{name}: {MEANINGS[name]}", "dim"), soft_wrap=True)


def _print_cifar10(rows: Rows, console: Console) -> None:
    table = _table("program", "run", "accuracy", "reached", "training", "process")
    for row in rows:
        process = "" if row["process_seconds"] is None else f"{row['process_seconds']:.1f} s"
        reached = "yes" if row["reached"] else "no"
        training = f"{row['training_seconds']:.2f} s"
        table.add_row(row["program"], str(row["run"]), f"{row['accuracy']:.4f}", reached, training, process)
    print_table(table, console)


def _print_processes(rows: Rows, console: Console) -> None:
    table = _table("processes", "backend", "last loss", "largest difference", "equal", "time", left=2)
    for row in rows:
        difference = f"{row['difference']:.1e}" if row["backend"] else ""
        equal = ("yes" if row["equal"] else "no") if row["backend"] else ""
        loss = f"{row['losses'][-1]:.6f}"
        table.add_row(str(row["processes"]), row["backend"] or "-", loss, difference, equal, f"{row['seconds']:.1f} s")
    print_table(table, console)


PRINTERS: dict[str, Callable[[Rows, Console], None]] = {
    gpu.TESTS: _print_tests,
    gpu.LOSS: _print_loss,
    gpu.TRAINING: _print_training,
    gpu.CIFAR10: _print_cifar10,
    gpu.PROCESSES: _print_processes,
}
