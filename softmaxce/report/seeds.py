"""One config under several seeds: each run's final figures, and their mean, deviation and range."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..inference.compare import spread
from .console import plain_table, print_table

NAMES = ("mean", "deviation", "min", "max")


@dataclass(frozen=True)
class SeedMetrics:
    """What several seeds came to.

    Attributes:
        split: what was measured on.
        rows: (label, run folder, {loss, accuracy}) of each run.
        spreads: figure -> (mean, sample standard deviation, smallest, largest).
    """

    split: str
    rows: tuple[tuple[str, Path, dict[str, float]], ...]
    spreads: dict[str, tuple[float, float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """As the last JSON line holds it."""
        figures = {name: dict(zip(NAMES, values, strict=True)) for name, values in self.spreads.items()}
        runs = [{"label": label, "run": str(folder), **row} for label, folder, row in self.rows]
        return {"event": "seeds", "split": self.split, "runs": runs, **figures}


def summarize(split: str, rows: Sequence[tuple[str, Path, dict[str, float]]]) -> SeedMetrics:
    """Two rows or more as SeedFigures."""
    spreads = {name: spread([row[name] for _, _, row in rows]) for name in ("loss", "accuracy")}
    return SeedMetrics(split, tuple(rows), spreads)


def print_seeds(found: SeedMetrics, console: Console) -> None:
    """A line a run, then the mean, the deviation and the range."""
    table = plain_table()
    table.add_column(found.split)
    for name in found.spreads:
        table.add_column(name, justify="right")
    table.add_column("run folder", overflow="fold")
    for label, folder, row in found.rows:
        table.add_row(label, *(f"{row[name]:.4f}" for name in found.spreads), str(folder))
    table.add_section()
    for place, name in enumerate(NAMES):
        table.add_row(name, *(f"{values[place]:.4f}" for values in found.spreads.values()), "")
    print_table(table, console)
