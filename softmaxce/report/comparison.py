"""A comparison of runs as a person reads it."""

from typing import Any

from rich.console import Console

from ..config.values import show
from ..inference.compare import LEVEL, Comparison
from .console import plain_table, print_table

PRINTED = ("accuracy", "nll", "ece")  # with their differences they fill 80 columns


def print_comparison(found: Comparison, console: Console) -> None:
    """Which runs, what differs, the figures, and what chance has to do with it."""
    for number, run in enumerate(found.runs, 1):
        console.print(f"{number}  {run.folder} (epoch {run.epoch})", soft_wrap=True)
    console.print()
    _print_keys(found, console)
    _print_figures(found, console)
    for line in conclusions(found):
        console.print(line, soft_wrap=not console.is_terminal)


def conclusions(found: Comparison) -> list[str]:
    """Whether differences are larger than chance, and what seeds alone do, a sentence each."""
    lines = []
    for number, (test, larger) in enumerate(zip(found.tests, found.significant, strict=True), 2):
        together = any({0, number - 1} <= set(group.runs) for group in found.seeds)
        if test is None:
            if not together:
                lines.append(f"{number} and 1 were not measured on the same images, so that chance cannot be judged.")
            continue
        verdict = "larger than chance" if larger else "no larger than chance explains"
        lines.append(
            f"{number} against 1: {test.only_second:,} images right that 1 has wrong, {test.only_first:,} the other "
            f"way; {verdict} (p = {test.p:.2g})."
        )
    count = sum(test is not None for test in found.tests)
    if count:
        corrected = f", Holm's correction for {count} tests" if count > 1 else ""
        lines.append(
            f"McNemar's exact test on the same {found.runs[0].images:,} images, level {LEVEL}{corrected}. It judges "
            "these weights; whether another seed would agree, several seeds tell."
        )
    lines += [f"{index + 1} was trained on other images than 1." for index in found.other_data]
    for group in found.seeds:
        mean, deviation, low, high = group.figures["accuracy"]
        numbers = ", ".join(str(index + 1) for index in group.runs)
        lines.append(
            f"{numbers} differ by seed alone: accuracy {mean:.4f}, deviation {deviation:.4f}, "
            f"from {low:.4f} to {high:.4f}."
        )
    return lines


def value_text(value: Any) -> str:
    """A config's value in a cell."""
    return "–" if value is None else value if isinstance(value, str) else show(value)


def _print_keys(found: Comparison, console: Console) -> None:
    if not found.keys:
        console.print("The configs are the same.")
        console.print()
        return
    table = plain_table()
    numbers = [str(number) for number in range(1, len(found.runs) + 1)]
    if len(numbers) <= max(4, len(found.keys)):
        for name in ("config", *numbers):
            table.add_column(name, overflow="fold")
        for key, values in found.keys.items():
            table.add_row(key, *map(value_text, values))
    else:
        for name in ("", *found.keys):
            table.add_column(name, overflow="fold")
        for place, number in enumerate(numbers):
            table.add_row(number, *(value_text(values[place]) for values in found.keys.values()))
    print_table(table, console)
    console.print()


def _print_figures(found: Comparison, console: Console) -> None:
    table = plain_table()
    table.add_column(found.split)
    for name in PRINTED:
        table.add_column(name, justify="right")
        table.add_column("", justify="right", style="dim")
    first = found.runs[0].figures
    for number, run in enumerate(found.runs, 1):
        cells = []
        for name in PRINTED:
            cells.append(f"{run.figures[name]:.4f}")
            cells.append(f"{run.figures[name] - first[name]:+.4f}" if number > 1 else "")
        table.add_row(str(number), *cells)
    print_table(table, console)
    console.print()
