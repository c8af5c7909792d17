"""Reporters of a training run: a table on a terminal, plain lines elsewhere, JSON Lines for programs."""

import contextlib
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from .. import streams
from ..config.registry import OWN_IMAGES
from ..data.batches import Batch, Batches
from ..data.folder import memory_for_images
from ..data.progressive_resizing import describe_sizes, sizes_by_epoch
from ..data.splits import InMemory, OnDisk
from ..data.whole_images import ManySizes
from ..runs.folder import SPLITS, Status
from ..runtime.environment import describe_device
from ..session import Level, Outcome, Reporter
from ..training.run import Epoch, Run
from ..training.tally import Scores
from . import console
from .json_values import dumps

FEW_CLASSES = 8  # whose counts are shown one by one


def console_reporter(*, as_json: bool, quiet: bool) -> Reporter:
    """The reporter that suits stdout."""
    if as_json:
        return JsonLines()
    if quiet:
        return Quiet()
    return GrowingTable() if sys.stdout.isatty() else PlainLines()


def introduction(run: Run, folder: Path | None) -> list[str]:
    """Data, model and device of a run, a line each; a fourth line has the run folder, if there is one."""
    config = run.config
    counts = [f"{batches.num_images:,} {name}" for name in SPLITS if (batches := getattr(run, name)) is not None]
    shape = "x".join(map(str, run.preprocessing.shape))
    parameters = sum(p.numel() for p in run.model.parameters())
    names = ", ".join([config.loss.name, config.optimizer.name, config.schedule.name])
    depth = "" if run.preprocessing.depth == "uint8" else f" {run.preprocessing.depth}"
    lines = [
        f"{config.source.name}, {shape}{depth}, {len(run.classes)} classes: {', '.join(counts)} images",
        f"{config.model.name} ({parameters:,} parameters), {names}",
        f"device {describe_device(run.device)}, {run.precision}{_processes(run)}",
    ]
    resolved = [f"{key}: auto is {text}" for key, text in config.resolved.items()]
    sizes = [described] if (described := describe_sizes(sizes_by_epoch(config, run.preprocessing.shape))) else []
    lines[1:1] = [*unequal_classes(run.train, run.classes), *storage(run), *resolved, *sizes]
    return lines if folder is None else [*lines, f"run folder: {folder}"]


def unequal_classes(train: Batches, classes: Sequence[str]) -> list[str]:
    """How many training images the classes have, in a line; none unless one has at least twice as many as another."""
    counts = train.split.labels.bincount(minlength=len(classes))
    if 2 * counts.min() > counts.max():
        return []
    named = sorted(zip(counts.tolist(), classes, strict=True), reverse=True)
    if len(named) <= FEW_CLASSES:
        line = ", ".join(f"{count:,} {name}" for count, name in named)
    else:
        (most, frequent), (least, rare) = named[0], named[-1]
        line = f"{least:,} ({rare}) to {most:,} ({frequent}), median {int(counts.median()):,}"
    drawn = ""
    if train.sampler is not None:
        low, high = train.sampler.counts(counts).aminmax()
        drawn = f"; data.sampler draws {f'{low:,} to ' if low < high else ''}{high:,} of each in an epoch"
    return [f"training images of a class: {line}{drawn}"]


def storage(run: Run) -> list[str]:
    """Where the images of files are kept, and why, in a line; none for images that are no files of the user's."""
    source, splits = run.config.source, [batches.split for name in SPLITS if (batches := getattr(run, name))]
    if source.name not in OWN_IMAGES:
        return []
    images = sum(map(len, splits))
    size = images * math.prod(run.preprocessing.shape) * np.dtype(run.preprocessing.depth).itemsize
    reason = f"limit {_bytes(memory_for_images())}"
    if (chosen := source.arguments.get("in_memory")) is not None:
        reason = f"data.in_memory: {str(chosen).lower()}"
    where = "in memory" if isinstance(run.train.split, InMemory) else "read from the files in every epoch"
    return [f"{images:,} images, {_bytes(size)} decoded: {where} ({reason}){_whole_images(run.train)}"]


def _whole_images(train: Batches) -> str:
    """Where the whole images are kept that an augmentation cuts from; empty if they are the decoded images."""
    if isinstance(train.whole, ManySizes):
        return f"; and whole images to augment, {_bytes(train.whole.pixels.nbytes)}: in memory"
    if isinstance(train.whole, OnDisk) and isinstance(train.split, InMemory):
        return "; whole images to augment: read from the files in every epoch"
    return ""


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _processes(run: Run) -> str:
    group = run.group
    if group.is_single:
        return ""
    size, working = run.train.batch_size, group.working(run.train.batch_size)
    images = f"{size // working}" if size % working == 0 else f"{size // working} or {size // working + 1}"
    idle = f"; {group.world_size - working} have no images, as each needs two" if working < group.world_size else ""
    return f"; {group.world_size} processes, {images} images of each batch for each{idle}"


# -- a terminal -------------------------------------------------------------------------------------------------------

REFRESH = 0.5  # seconds between two updates of the bar: drawing it takes about as long as a small model's step
WIDTHS = (7, 8, 10, 9, 9, 8, 8, 6, 4)  # of the columns of GrowingTable
DROPPED = (6, 1, 7, 3, 2, 8, 4)  # columns that a narrow terminal does without, in this order
METRICS_AT = 6  # the column before which those of other metrics are inserted


def columns_that_fit(width: int, others: Sequence[str] = ()) -> list[int]:
    """The indices of the columns of GrowingTable that a terminal has room for; all of the metrics in `others`."""
    columns = list(range(len(WIDTHS)))
    width -= sum(len(name) + 1 for name in others)
    for index in DROPPED:
        if sum(WIDTHS[i] + 1 for i in columns) - 1 <= width:
            break
        columns.remove(index)
    return columns


def scores_text(scores: Scores) -> str:
    """`loss 0.1234 accuracy 0.9876`, and the other metrics likewise."""
    return " ".join(f"{name} {value:.4f}" for name, value in scores.to_dict().items())


class GrowingTable(Reporter):
    """A table with a row per epoch, and below it a progress bar for the epoch in progress."""

    def __init__(self, console_: Console | None = None) -> None:
        self.console = console_ or console.stdout()
        self.progress = Progress(
            TextColumn("epoch {task.fields[label]}", style="dim"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[loss]}"),
            _Rate(),
            TextColumn("{task.fields[left]}", style="dim"),
            console=self.console,
            transient=True,
            auto_refresh=False,
        )
        self.best_metric = "accuracy"
        self.columns: list[int] = []  # those that are shown; decided with the first row
        self.others: tuple[str, ...] = ()  # the metrics that have a column beside them

    def expect(self, run: Run) -> None:
        """Set the totals of the progress bar, and the metric whose column is bold."""
        self.run = run
        self.epochs, self.best_metric = run.config.epochs, run.config.best_metric
        self.images = run.train.num_images
        self.images_done, self.began = 0, time.monotonic()  # by this process, of all epochs

    def start(self, run: Run, folder: Path) -> None:
        """Print the introduction on stderr."""
        self.expect(run)
        for line in introduction(run, folder):
            console.stderr().print(line, style="dim")

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterator[Batch]:
        """Draw a progress bar while the batches are consumed."""
        label = f"{epoch}/{self.epochs}"
        task = self.progress.add_task("", total=self.images, completed=done, label=label, loss="", left="")
        self.progress.start()
        drawn = time.monotonic()
        try:
            for batch in batches:
                yield batch
                images = len(batch[1]) * self.run.group.world_size
                done += images
                self.images_done += images
                if (now := time.monotonic()) - drawn >= REFRESH:
                    loss = f"loss {self.run.tally.scores().loss:.4f}" if self.run.tally.images else ""
                    left = time_left(now - self.began, self.images_done, self.images * (self.epochs - epoch + 1) - done)
                    self.progress.update(task, completed=done, loss=loss, left=left)
                    self.progress.refresh()
                    drawn = now
        finally:
            self.progress.remove_task(task)
            self.progress.stop()

    def epoch(self, epoch: Epoch) -> None:
        """Print a row."""
        held_out = epoch.validation or epoch.test
        name = "val" if epoch.validation else "test"
        headers = ("epoch", "lr", "train loss", "train acc", f"{name} loss", f"{name} acc", "images/s", "sec", "")
        if not self.columns:
            self.others = tuple(held_out.others) if held_out else ()
            self.columns = columns_that_fit(self.console.width, self.others)
            others = [Text(name, style="bold") for name in self.others]
            self._print([Text(header, style="bold") for header in headers], others)
            self._print([Text("─" * w, style="dim") for w in WIDTHS], [Text("─" * len(n), "dim") for n in self.others])
        row = [
            Text(f"{epoch.number}/{self.epochs}"),
            Text(f"{epoch.learning_rate:.2e}", style="dim"),
            Text(f"{epoch.train.loss:.4f}"),
            Text(f"{epoch.train.accuracy:.4f}"),
            Text(f"{held_out.loss:.4f}" if held_out else "", style=self._emphasis("loss")),
            Text(f"{held_out.accuracy:.4f}" if held_out else "", style=self._emphasis("accuracy")),
            Text(f"{epoch.images_per_second:,.0f}", style="dim"),
            Text(f"{epoch.seconds:.1f}", style="dim"),
            Text("best" if epoch.best else "", style="green"),
        ]
        values = held_out.others if held_out else {}
        self._print(row, [Text(f"{values[name]:.4f}", style=self._emphasis(name)) for name in self.others])

    def _emphasis(self, metric: str) -> str:
        """Bold for the metric that decides which epoch is the best."""
        return "bold" if metric == self.best_metric else ""

    def _print(self, cells: list[Text], others: list[Text]) -> None:
        """Print a row; each is printed as soon as it is known, so that the widths are fixed."""
        padded = {i: Text(" " * (WIDTHS[i] - cells[i].cell_len)) + cells[i] for i in self.columns}
        before, after = ([padded[i] for i in padded if (i < METRICS_AT) is side] for side in (True, False))
        middle = [
            Text(" " * (len(name) - cell.cell_len)) + cell for name, cell in zip(self.others, others, strict=True)
        ]
        line = Text(" ").join([*before, *middle, *after])
        line.rstrip()
        self.console.print(line, soft_wrap=True)

    def end(self, outcome: Outcome) -> None:
        """Print the result, and the next command."""
        self.console.print()
        for line in summary(outcome):
            self.console.print(line, style="bold" if line.startswith(outcome.split) else None, soft_wrap=True)


def time_left(seconds: float, done: int, remaining: int) -> str:
    """An estimate for the whole run: `run 1:02:03 left`, from the images done in so many seconds."""
    minutes, left = divmod(round(seconds * remaining / max(1, done)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"run {f'{hours}:{minutes:02}' if hours else minutes}:{left:02} left"


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "", style="dim")


# -- not a terminal ---------------------------------------------------------------------------------------------------


class PlainLines(Reporter):
    """One line per epoch, without escape codes or a bar."""

    def start(self, run: Run, folder: Path) -> None:
        """Print the introduction on stderr."""
        self.epochs = run.config.epochs
        for line in introduction(run, folder):
            streams.line(line, err=True)

    def epoch(self, epoch: Epoch) -> None:
        """Print a line."""
        parts = [f"epoch {epoch.number}/{self.epochs}", f"lr {epoch.learning_rate:.3g}"]
        for name in SPLITS:
            if (scores := getattr(epoch, name)) is not None:
                parts.append(f"{name} {scores_text(scores)}")
        parts += [f"{epoch.images_per_second:.0f} images/s", f"{epoch.seconds:.2f} s"]
        streams.line("  ".join(parts + ["best"] * epoch.best))

    def end(self, outcome: Outcome) -> None:
        """Print the result, and the next command."""
        for line in summary(outcome):
            streams.line(line)


class Quiet(Reporter):
    """Only the result."""

    def end(self, outcome: Outcome) -> None:
        """Print the result and the requirements."""
        for line in summary(outcome)[:-1]:
            streams.line(line)


class JsonLines(Reporter):
    """Events on stdout, one JSON object per line."""

    def start(self, run: Run, folder: Path) -> None:
        """Print the `start` event."""
        images = {name: batches.num_images for name in SPLITS if (batches := getattr(run, name)) is not None}
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
            "processes": run.group.world_size,
            "config": run.config.to_dict(),
        }
        _emit(line)

    def epoch(self, epoch: Epoch) -> None:
        """Print an `epoch` event."""
        _emit(epoch.to_dict())

    def end(self, outcome: Outcome) -> None:
        """Print the `end` event, and the requirements on stderr too."""
        _emit(outcome.to_dict())
        for result in outcome.requirements:
            streams.line(result, err=True)


class Messages(Reporter):
    """Messages on stderr; with `quiet` only warnings and notices."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def message(self, level: Level, text: str) -> None:
        """Print a message."""
        if level is not Level.INFO or not self._quiet:
            streams.line(f"warning: {text}" if level is Level.WARNING else text, err=True)

    def stopping(self) -> None:
        """Print that the run is about to stop; unbuffered, as the signal may have interrupted another print."""
        with contextlib.suppress(OSError):  # stderr is full or closed, and the run must be saved nevertheless
            os.write(2, b"stopping after this step; a second ctrl-C or SIGTERM stops at once\n")


def _emit(line: dict[str, Any]) -> None:
    streams.json_text(dumps(line))


def summary(outcome: Outcome) -> list[str]:
    """The result in a few lines; the last of a finished run is the next command."""
    lines = []
    if outcome.best_epoch and outcome.best_value is not None:
        early = ", stopped early" if outcome.status is Status.STOPPED_EARLY else ""
        lines.append(
            f"best epoch {outcome.best_epoch} of {outcome.epochs}{early}: "
            f"validation {outcome.best_metric} {outcome.best_value:.4f}"
        )
    if outcome.scores is not None:
        lines.append(f"{outcome.split} {scores_text(outcome.scores)} ({outcome.scores.images:,} images)")
    lines += map(str, outcome.requirements)
    if outcome.status.finished:
        lines.append(f"run folder: {outcome.folder} ({outcome.seconds:.1f} s)")
        needed = "".join(f", {name}=..." for name in outcome.objects)
        load = f"softmaxce.load({str(outcome.folder)!r}{needed}).evaluate()"
        command = f"softmaxce eval {shlex.quote(str(outcome.folder))}"
        lines.append(f"next: {load if needed else command}")
    return lines
