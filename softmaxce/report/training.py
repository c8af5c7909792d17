"""A training run as it goes: a table that grows on a terminal, plain lines elsewhere, JSON Lines for programs."""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..data.batches import Batch
from ..inference.requirements import RequirementResult
from ..runs.resume import FINISHED
from ..runtime.environment import describe_device
from ..training.run import Epoch, Run
from ..training.tally import Scores
from . import console


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: completed, stopped_early, failed, interrupted or terminated.
        folder: the run folder.
        epochs: how many were done.
        seconds: of this process's part of the run.
        best_epoch: 0 where nothing was selected.
        split: what `scores` were measured on.
        scores: the final evaluation; None if there was none.
        verdicts: the requirements and what came of them.
        message: why, where it did not complete.
    """

    status: str
    folder: Path
    epochs: int
    seconds: float
    best_epoch: int = 0
    best_metric: str = ""
    best_value: float | None = None
    split: str = "test"
    scores: Scores | None = None
    verdicts: tuple[RequirementResult, ...] = ()
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As the last JSON line holds it."""
        line: dict[str, Any] = {"event": "end", "run": str(self.folder), "status": self.status, "epochs": self.epochs}
        if self.best_epoch:
            line["best_epoch"] = self.best_epoch
        if self.scores is not None:
            line[self.split] = self.scores.to_dict()
        if self.verdicts:
            line["requirements"] = [verdict.to_dict() for verdict in self.verdicts]
        if self.message:
            line["message"] = self.message
        return {**line, "seconds": round(self.seconds, 3)}


class Reporter(Protocol):
    """Who tells of a run. `track` wraps an epoch's batches, for a progress bar."""

    def start(self, run: Run, folder: Path) -> None:
        """The run begins, or goes on."""

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        """The same batches, watched."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is done."""

    def end(self, outcome: Outcome) -> None:
        """The run is over."""


def reporter(*, as_json: bool, quiet: bool) -> Reporter:
    """The one that suits stdout."""
    if as_json:
        return JsonLines()
    if quiet:
        return Quiet()
    return GrowingTable() if sys.stdout.isatty() else PlainLines()


def introduction(run: Run, folder: Path | None) -> list[str]:
    """What is about to be trained, in three short lines, and in a fourth where it is kept."""
    config = run.config
    counts = [f"{run.train.num_images:,} train"]
    for name, batches in (("validation", run.validation), ("test", run.test)):
        if batches is not None:
            counts.append(f"{batches.num_images:,} {name}")
    shape = "x".join(map(str, run.preprocessing.shape))
    parameters = sum(p.numel() for p in run.model.parameters())
    names = ", ".join([config.loss.name, config.optimizer.name, config.schedule.name])
    lines = [
        f"{config.source.name}, {shape}, {len(run.classes)} classes: {', '.join(counts)} images",
        f"{config.model.name} ({parameters:,} parameters), {names}",
        f"device {describe_device(run.device)}, {run.precision}",
    ]
    return lines if folder is None else [*lines, f"run folder: {folder}"]


# -- a terminal -------------------------------------------------------------------------------------------------------

EVERY = 0.5  # seconds between two pictures of the bar: a small model's step takes little longer than drawing it
WIDTHS = (7, 8, 10, 9, 9, 8, 8, 6, 4)


class GrowingTable:
    """One row an epoch, and under the rows a bar for the epoch in progress."""

    def __init__(self, to: Console | None = None) -> None:
        self.console = to or console.stdout()
        self.progress = Progress(
            TextColumn("epoch {task.fields[label]}", style="dim"),
            BarColumn(bar_width=None),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            auto_refresh=False,
        )
        self.header_shown = False

    def expect(self, run: Run) -> None:
        """Take note of what there is to come."""
        self.epochs = run.config.epochs
        self.images = run.train.num_images

    def start(self, run: Run, folder: Path) -> None:
        """Say what is trained."""
        self.expect(run)
        for line in introduction(run, folder):
            console.stderr().print(line, style="dim")

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterator[Batch]:
        """Draw a bar while the batches pass."""
        task = self.progress.add_task("", total=self.images, completed=done, label=f"{epoch}/{self.epochs}")
        self.progress.start()
        drawn = time.monotonic()
        try:
            for batch in batches:
                yield batch
                done += len(batch[1])
                if (now := time.monotonic()) - drawn >= EVERY:
                    self.progress.update(task, completed=done)
                    self.progress.refresh()
                    drawn = now
        finally:
            self.progress.remove_task(task)
            self.progress.stop()

    def epoch(self, epoch: Epoch) -> None:
        """Add a row."""
        held_out = epoch.validation or epoch.test
        name = "val" if epoch.validation else "test"
        # A table a row, all of the same widths: rows stay where they were printed, however many there come to be.
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        headers = ("epoch", "lr", "train loss", "train acc", f"{name} loss", f"{name} acc", "images/s", "sec", "")
        for header, width in zip(headers, WIDTHS, strict=True):
            table.add_column(justify="right" if header else "left", width=width, no_wrap=True)
        if not self.header_shown:
            table.add_row(*(Text(header, style="bold") for header in headers))
            table.add_row(*(Text("─" * width, style="dim") for width in WIDTHS))
            self.header_shown = True
        row = [
            Text(f"{epoch.number}/{self.epochs}"),
            Text(f"{epoch.learning_rate:.2e}", style="dim"),
            Text(f"{epoch.train.loss:.4f}"),
            Text(f"{epoch.train.accuracy:.4f}"),
            Text(f"{held_out.loss:.4f}" if held_out else ""),
            Text(f"{held_out.accuracy:.4f}" if held_out else "", style="bold"),
            Text(f"{epoch.images_per_second:,.0f}", style="dim"),
            Text(f"{epoch.seconds:.1f}", style="dim"),
            Text("best" if epoch.best else "", style="green"),
        ]
        table.add_row(*row)
        self.console.print(table)

    def end(self, outcome: Outcome) -> None:
        """Sum up, and say what to type next."""
        self.console.print()
        for line in summary(outcome):
            self.console.print(line, style="bold" if line.startswith(outcome.split) else None, soft_wrap=True)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "", style="dim")


# -- not a terminal ---------------------------------------------------------------------------------------------------


class PlainLines:
    """One line an epoch, no escape codes, no bar."""

    def start(self, run: Run, folder: Path) -> None:
        """Say what is trained, on stderr."""
        self.epochs = run.config.epochs
        for line in introduction(run, folder):
            print(line, file=sys.stderr)

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        """The batches as they are."""
        return batches

    def epoch(self, epoch: Epoch) -> None:
        """Print a line."""
        parts = [f"epoch {epoch.number}/{self.epochs}", f"lr {epoch.learning_rate:.3g}"]
        for name in ("train", "validation", "test"):
            if (scores := getattr(epoch, name)) is not None:
                parts.append(f"{name} loss {scores.loss:.4f} accuracy {scores.accuracy:.4f}")
        parts += [f"{epoch.images_per_second:.0f} images/s", f"{epoch.seconds:.2f} s"]
        print("  ".join(parts + ["best"] * epoch.best), flush=True)

    def end(self, outcome: Outcome) -> None:
        """Sum up."""
        for line in summary(outcome):
            print(line, flush=True)


class Quiet(PlainLines):
    """The result alone."""

    def start(self, run: Run, folder: Path) -> None:
        """Say nothing."""

    def epoch(self, epoch: Epoch) -> None:
        """Say nothing."""

    def end(self, outcome: Outcome) -> None:
        """Print the result and the requirements."""
        for line in summary(outcome)[:-1]:
            print(line, flush=True)


class JsonLines:
    """Events, one JSON object a line, and nothing else on stdout."""

    def start(self, run: Run, folder: Path) -> None:
        """The `start` event."""
        images = {"train": run.train.num_images}
        images |= {"validation": run.validation.num_images} if run.validation else {}
        images |= {"test": run.test.num_images} if run.test else {}
        line = {
            "event": "start",
            "run": str(folder),
            "epochs": run.config.epochs,
            "epochs_done": run.progress.epoch,
            "batches_done": run.progress.batch,
            "images": images,
            "classes": list(run.classes),
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "device": str(run.device),
            "config": run.config.to_dict(),
        }
        _emit(line)

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        """The batches as they are."""
        return batches

    def epoch(self, epoch: Epoch) -> None:
        """An `epoch` event."""
        _emit(epoch.to_dict())

    def end(self, outcome: Outcome) -> None:
        """The `end` event; the requirements are also answered on stderr."""
        _emit(outcome.to_dict())
        for verdict in outcome.verdicts:
            print(verdict, file=sys.stderr)


def finite(value: Any) -> Any:
    """The same data with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _emit(line: dict[str, Any]) -> None:
    print(json.dumps(finite(line), allow_nan=False), flush=True)


def summary(outcome: Outcome) -> list[str]:
    """How it went, in a few lines; the last says what to type next."""
    lines = []
    if outcome.best_epoch and outcome.best_value is not None:
        early = ", stopped early" if outcome.status == "stopped_early" else ""
        lines.append(
            f"best epoch {outcome.best_epoch} of {outcome.epochs}{early}: "
            f"validation {outcome.best_metric} {outcome.best_value:.4f}"
        )
    if outcome.scores is not None:
        scores = outcome.scores
        lines.append(
            f"{outcome.split} loss {scores.loss:.4f} accuracy {scores.accuracy:.4f} ({scores.images:,} images)"
        )
    lines += map(str, outcome.verdicts)
    if outcome.status in FINISHED:
        lines.append(f"run folder: {outcome.folder} ({outcome.seconds:.1f} s)")
        lines.append(f"next: softmaxce eval {outcome.folder}")
    return lines
