"""Several seeds or folds of one config: each run's final metrics, their mean, standard deviation and range."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..argument_types import METRICS
from ..inference.compare import summary_statistics
from .console import plain_table, print_table

NAMES = ("mean", "deviation", "min", "max")


@dataclass(frozen=True)
class SeedMetrics:
    """The final metrics of several seeds or folds.

    Attributes:
        event: seeds or folds, as `--json` calls them.
        split: the split they were measured on.
        rows: (label, run folder, {loss, accuracy, ...}) of each run.
        statistics: metric -> (mean, sample standard deviation, smallest, largest).
    """

    event: str
    split: str
    rows: tuple[tuple[str, Path, dict[str, float]], ...]
    statistics: dict[str, tuple[float, float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """The last event of `train --seeds --json` or `train --folds --json`."""
        statistics = {name: dict(zip(NAMES, values, strict=True)) for name, values in self.statistics.items()}
        runs = [{"label": label, "run": str(folder), **row} for label, folder, row in self.rows]
        return {"event": self.event, "split": self.split, "runs": runs, **statistics}


def summarize(event: str, split: str, rows: Sequence[tuple[str, Path, dict[str, float]]]) -> SeedMetrics:
    """The statistics of two rows or more: of the metrics that all of them have."""
    names = [
        name for name in rows[0][2] if name in METRICS and all(isinstance(row.get(name), float) for *_, row in rows)
    ]
    statistics = {name: summary_statistics([row[name] for *_, row in rows]) for name in names}
    return SeedMetrics(event, split, tuple(rows), statistics)


def print_seeds(metrics: SeedMetrics, console: Console) -> None:
    """Print a row per run, then the mean, the standard deviation and the range."""
    table = plain_table()
    table.add_column(metrics.split)
    for name in metrics.statistics:
        table.add_column(name, justify="right")
    table.add_column("run folder", overflow="ignore", no_wrap=True)
    for label, folder, row in metrics.rows:
        table.add_row(label, *(f"{row[name]:.4f}" for name in metrics.statistics), str(folder))
    table.add_section()
    for index, name in enumerate(NAMES):
        table.add_row(name, *(f"{values[index]:.4f}" for values in metrics.statistics.values()), "")
    print_table(table, console)
