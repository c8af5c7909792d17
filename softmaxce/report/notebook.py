"""The table of a training run in a Jupyter notebook: one output that grows, with a progress bar below it."""

import sys
import time
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from ..data.batches import Batch
from ..session import Outcome, Reporter
from ..training.run import Epoch, Run
from .training import introduction, summary

REFRESH = 0.5  # seconds between two updates of the bar


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel. Needs no IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookTable(Reporter):
    """A row per epoch and a progress bar, in one output of the cell; text for front ends without HTML."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.names: list[str] = []
        self.rows: list[list[str]] = []
        self.tail: list[str] = []
        self._handle: Any = None

    def start(self, run: Run, folder: Path) -> None:
        """Show the introduction."""
        self.epochs = run.config.epochs
        self.images = run.train.num_images
        self.head = introduction(run, folder)
        self._show()

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterator[Batch]:
        """Move the progress bar while the batches are consumed."""
        shown = time.monotonic()
        for batch in batches:
            yield batch
            done += len(batch[1])
            if (now := time.monotonic()) - shown >= REFRESH:
                self._show(f"epoch {epoch}/{self.epochs}", done / self.images)
                shown = now

    def epoch(self, epoch: Epoch) -> None:
        """Add a row."""
        held_out = epoch.validation or epoch.test
        self.names = ["epoch", "lr", "train loss", "train accuracy"]
        row = [f"{epoch.number}/{self.epochs}", f"{epoch.learning_rate:.2e}"]
        row += [f"{epoch.train.loss:.4f}", f"{epoch.train.accuracy:.4f}"]
        if held_out:
            name = "validation" if epoch.validation else "test"
            scores = held_out.to_dict()
            self.names += [f"{name} {metric}" for metric in scores]
            row += [f"{value:.4f}" for value in scores.values()]
        self.names += ["images/s", "seconds", ""]
        self.rows.append(
            [*row, f"{epoch.images_per_second:,.0f}", f"{epoch.seconds:.1f}", "best" if epoch.best else ""]
        )
        self._show()

    def end(self, outcome: Outcome) -> None:
        """Show the result."""
        self.tail = summary(outcome)
        self._show()

    def _show(self, label: str = "", fraction: float | None = None) -> None:
        from IPython.display import display

        content = {"text/html": self._html(label, fraction), "text/plain": self._text()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(content, raw=True)

    def _html(self, label: str, fraction: float | None) -> str:
        cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        heads = "".join(f"<th>{escape(name)}</th>" for name in self.names)
        parts = [f"<div>{'<br>'.join(map(escape, self.head))}</div>"]
        if self.rows:
            parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>")
        if fraction is not None:
            parts.append(f'<div>{escape(label)} <progress value="{fraction:.4f}"></progress></div>')
        parts.append(f"<div>{'<br>'.join(map(escape, self.tail))}</div>")
        return "".join(parts)

    def _text(self) -> str:
        lines = [self.names, *self.rows] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*self.head, *(line.rstrip() for line in table), *self.tail])
