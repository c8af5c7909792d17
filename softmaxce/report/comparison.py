"""A comparison of runs as tables and sentences."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..config.values import show
from ..inference.compare import LEVEL, Comparison
from .console import plain_table, print_table

PRINTED = ("accuracy", "nll", "ece")  # with their differences they fill 80 columns


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the runs, the config keys that differ, the metrics, and the tests of the differences."""
    for number, run in enumerate(comparison.runs, 1):
        console.print(f"{number}  {run.folder} (epoch {run.epoch})", soft_wrap=True)
    console.print()
    _print_keys(comparison, console)
    _print_metrics(comparison, console)
    for line in conclusions(comparison):
        console.print(line, soft_wrap=not console.is_terminal)


def print_ranking(comparison: Comparison, labels: Sequence[str], metric: str, console: Console) -> None:
    """Print the runs of a sweep, which are in the order of a metric on the validation split."""
    console.print(f"ranked by validation {metric}")
    table = plain_table()
    table.add_column("")
    table.add_column("", overflow="fold")
    names = dict.fromkeys(("loss", "accuracy", metric))
    for name in names:
        table.add_column(f"validation {name}", justify="right", style="bold" if name == metric else None)
    for number, (label, run) in enumerate(zip(labels, comparison.runs, strict=True), 1):
        scores = run.validation or {}
        cells = [f"{scores[name]:.4f}" if name in scores else "–" for name in names]
        table.add_row(str(number), label, *cells)
    print_table(table, console)
    console.print()


def conclusions(comparison: Comparison) -> list[str]:
    """One sentence for each significance test, each temperature, and each group of runs that differ at most by seed."""
    lines = []
    for number, (test, larger) in enumerate(zip(comparison.tests, comparison.significant, strict=True), 2):
        if test is None:
            if not comparison.at_most_by_seed(number - 1):
                lines.append(f"{number} and 1 were not evaluated on the same images: no significance test.")
            continue
        conclusion = "significant" if larger else "not significant"
        lines.append(
            f"{number} vs 1: {number} is right on {test.only_second:,} images that 1 gets wrong, and wrong on "
            f"{test.only_first:,} that 1 gets right; {conclusion} (p = {test.p:.2g})."
        )
    count = sum(test is not None for test in comparison.tests)
    if count:
        corrected = f", Holm's correction for {count} tests" if count > 1 else ""
        lines.append(
            f"McNemar's exact test on the same {comparison.runs[0].images:,} images, level {LEVEL}{corrected}. This "
            "compares these weights only; to compare the configs, train several seeds."
        )
    lines += [f"{index + 1} was trained on other images than 1." for index in comparison.other_data]
    for group in comparison.seeds:
        mean, deviation, low, high = group.metrics["accuracy"]
        what = f"by seed and in {_listed(group.others)}" if group.others else "only by seed"
        lines.append(
            f"{_numbers(group.runs)} differ {what}: accuracy {mean:.4f}, deviation {deviation:.4f}, "
            f"from {low:.4f} to {high:.4f}."
        )
    for same in comparison.repetitions:
        what = f"only in {_listed(same.others)}" if same.others else "in nothing else"
        lines.append(f"{_numbers(same.runs)} have the same seed and images, and differ {what}.")
    for number, run in enumerate(comparison.runs, 1):
        if run.temperature != 1:
            lines.append(
                f"{number} is evaluated at temperature {run.temperature:.4g} (softmaxce calibrate), which changes nll, "
                "brier and ece but not accuracy."
            )
    return lines


def _numbers(runs: tuple[int, ...]) -> str:
    return _listed(tuple(str(index + 1) for index in runs))


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def value_text(value: Any) -> str:
    """A config's value in a cell."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "none"
    if isinstance(value, dict):
        arguments = [f"{key}={value_text(item)}" for key, item in value.items() if key != "name"]
        return f"{value.get('name', '')}({', '.join(arguments)})" if arguments else str(value.get("name", "none"))
    return value if isinstance(value, str) else show(value)


def _print_keys(comparison: Comparison, console: Console) -> None:
    if not comparison.keys:
        console.print("The configs are the same.")
        console.print()
        return
    table = plain_table()
    numbers = [str(number) for number in range(1, len(comparison.runs) + 1)]
    if len(numbers) <= max(4, len(comparison.keys)):
        table.add_column("config", no_wrap=True)
        for name in numbers:
            table.add_column(name, overflow="fold")
        for key, values in comparison.keys.items():
            table.add_row(key, *map(value_text, values))
    else:
        for name in ("", *comparison.keys):
            table.add_column(name, overflow="fold")
        for index, number in enumerate(numbers):
            table.add_row(number, *(value_text(values[index]) for values in comparison.keys.values()))
    print_table(table, console)
    console.print()


def _print_metrics(comparison: Comparison, console: Console) -> None:
    table = plain_table()
    table.add_column(comparison.split)
    for name in PRINTED:
        table.add_column(name, justify="right")
        table.add_column("", justify="right", style="dim")
    first = comparison.runs[0].metrics
    for number, run in enumerate(comparison.runs, 1):
        cells = []
        for name in PRINTED:
            cells.append(f"{run.metrics[name]:.4f}")
            cells.append(f"{run.metrics[name] - first[name]:+.4f}" if number > 1 else "")
        table.add_row(str(number), *cells)
    print_table(table, console)
    console.print()
