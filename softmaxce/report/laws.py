"""The results of `softmaxce check-loss`: a table of laws, the smallest failing inputs, the loss's cost."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..config.registry import LAWS
from ..laws.calculus import without_reference
from ..laws.cost import Costs
from ..laws.law import LawResult
from ..laws.subject import Subject
from . import console as consoles
from .console import plain_table, print_table

STYLES = {"passed": "green", "failed": "bold red", "exempt": "magenta", "not applicable": "dim"}


def with_progress(results: Iterable[LawResult], count: int) -> list[LawResult]:
    """All results, with progress on stderr if it is a terminal."""
    console = consoles.stderr()
    if not console.is_terminal:
        return list(results)
    done: list[LawResult] = []
    with console.status("checking the laws") as status:
        for result in results:
            done.append(result)
            status.update(f"checking the laws: {len(done)} of {count}")
    return done


def to_dict(subject: Subject, results: list[LawResult], costs: Costs | None) -> dict[str, Any]:
    """As one JSON object."""
    component = subject.component
    return {
        "loss": component.name,
        "arguments": component.arguments,
        "reference": subject.reference.component.to_dict() if subject.reference else None,
        "not_given_to_reference": subject.withheld,
        "device": str(subject.device),
        "seed": subject.seed,
        "sound": not any(result.status == "failed" for result in results),
        "laws": [result.to_dict() for result in results],
        "cost": costs.to_dict() if costs else None,
    }


def print_results(subject: Subject, results: list[LawResult], costs: Costs | None, console: Console) -> None:
    """Print everything."""
    print_table(_table(results), console)
    for result in results:
        if result.case is not None:
            console.print()
            _print_failure(result, console)
    if costs is not None:
        console.print()
        _print_costs(costs, console)
    console.print()
    if subject.reference is not None:
        console.print(Text(_reference(subject, subject.reference)), soft_wrap=True)
    console.print(_summary(subject, results), soft_wrap=True)
    if line := _not_checked(subject, results):
        console.print(line, soft_wrap=True)


def _table(results: list[LawResult]) -> Table:
    table = plain_table()
    table.add_column("law", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("claim")
    for result in results:
        about = Text(result.claim)
        if result.detail and result.status != "failed":
            about = Text(f"{result.claim}: {result.detail}" if result.status == "passed" else result.detail)
        if result.status != "failed":
            about.stylize("dim")
        table.add_row(result.law, Text(result.status, STYLES[result.status]), about)
    return table


def _print_failure(result: LawResult, console: Console) -> None:
    assert result.case is not None
    console.print(Text.assemble((result.law, "bold red"), f": {result.detail}"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    for index, line in enumerate(result.case.lines()):
        grid.add_row("" if index else "with", line)
    grid.add_row("look at", result.look_at)
    print_table(Padding(grid, (0, 0, 0, 2)), console)


def _print_costs(costs: Costs, console: Console) -> None:
    if costs.problem:
        console.print(f"not measured: {costs.problem}")
        return
    table = plain_table()
    for index, name in enumerate(("float32, 1 thread", "forward + backward", "torch's", "ratio")):
        table.add_column(name, justify="right" if index else "left")
    for cost in costs.times:
        table.add_row(
            f"{cost.rows} x {cost.num_classes}",
            f"{1e3 * cost.seconds:.3f} ms",
            f"{1e3 * cost.torch_seconds:.3f} ms",
            f"{cost.ratio:.2f}",
        )
    if (memory := costs.memory) is not None:
        peaks = [f"{memory.peak:.2f} x", f"{memory.torch_peak:.2f} x"]
        table.add_row(f"{memory.rows} x {memory.num_classes}, memory beyond the logits", *peaks, _ratio(*peaks))
    print_table(table, console)


def _ratio(peak: str, torch_peak: str) -> str:
    mine, theirs = float(peak[:-2]), float(torch_peak[:-2])
    return f"{mine / theirs:.2f}" if theirs else "-"


def _reference(subject: Subject, reference: Subject) -> str:
    """The reference, with the loss's arguments that it got, and the names of those that it did not get."""
    given = ", ".join(
        f"{name}={value!r}"
        for name, value in reference.component.arguments.items()
        if name in subject.component.arguments
    )
    line = f"reference: {reference.component.name}({given})"
    return f"{line}; not given to it: {', '.join(subject.withheld)}" if subject.withheld else line


def _summary(subject: Subject, results: list[LawResult]) -> Text:
    failed = [result.law for result in results if result.status == "failed"]
    tested = sum(result.status in ("failed", "passed") for result in results)
    name = subject.component.name
    if failed:
        return Text(f"{name} violates {len(failed)} of {tested} laws checked: {', '.join(failed)}", style="red")
    return Text(f"{name} obeys all {tested} laws checked", style="green")


def _not_checked(subject: Subject, results: list[LawResult]) -> str:
    """The laws that were not tested, by their reasons, and how to compare with cross-entropy; empty if all were."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.status in ("exempt", "not applicable"):
            reasons.setdefault(result.detail, []).append(result.law)
    parts = [f"{', '.join(laws)} ({reason})" for reason, laws in reasons.items()]
    if others := len(LAWS) - len(results):
        parts.append(f"{others} other laws (--only)")
    if reasons.get(without_reference(subject)):
        parts.append("to compare with cross-entropy: --reference softmax_cross_entropy")
    return f"not checked: {'; '.join(parts)}" if parts else ""
