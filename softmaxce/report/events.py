"""A run's epochs as TensorBoard event files: the optional extra `tensorboard`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import yamlfile
from ..data.batches import Batch
from ..training.run import Epoch, Run
from ..training.tally import Scores
from .training import Outcome, Reporter

FOLDER = "tensorboard"  # in the run folder


class TensorBoard:
    """A reporter that also writes event files, and leaves the telling to another.

    Args:
        telling: the reporter that a person or a program sees.
    """

    def __init__(self, telling: Reporter) -> None:
        self._telling = telling
        self._writer: Any = None

    def start(self, run: Run, folder: Path) -> None:
        """Open an event file; of a resumed run, what was logged of epochs that are done again is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        done = run.progress.epoch
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=done + 1 if done else None)
        if not done:
            lines = yamlfile.dump(run.config.to_dict()).splitlines()
            self._writer.add_text("config", "".join(f"    {line}\n" for line in lines))  # indented: Markdown's code
        self._telling.start(run, folder)

    def track(self, batches: Iterable[Batch], count: int, epoch: int) -> Iterable[Batch]:
        """As the other reporter."""
        return self._telling.track(batches, count, epoch)

    def epoch(self, epoch: Epoch) -> None:
        """Log an epoch, to be seen at once."""
        for split in ("train", "validation", "test"):
            self._scores("", split, getattr(epoch, split), epoch.number)
        self._writer.add_scalar("learning_rate", epoch.learning_rate, epoch.number)
        self._writer.add_scalar("images_per_second", epoch.images_per_second, epoch.number)
        self._writer.flush()
        self._telling.epoch(epoch)

    def end(self, outcome: Outcome) -> None:
        """Log the final figures and finish the file."""
        self._scores("final_", outcome.split, outcome.scores, outcome.epochs)
        self._writer.close()
        self._telling.end(outcome)

    def _scores(self, prefix: str, split: str, scores: Scores | None, step: int) -> None:
        for name, value in scores.to_dict().items() if scores is not None else ():
            self._writer.add_scalar(f"{prefix}{name}/{split}", value, step)
