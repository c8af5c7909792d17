"""A training run as TensorBoard event files. Needs the optional extra `tensorboard`."""

import os
from pathlib import Path
from typing import Any

from ..config import yamlfile
from ..files import make_folder
from ..runs.folder import SPLITS
from ..session import Outcome, Reporter
from ..training.run import Epoch, Run
from ..training.tally import Scores

FOLDER = "tensorboard"  # in the run folder


class TensorBoard(Reporter):
    """Writes TensorBoard event files into the run folder."""

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: Run, folder: Path) -> None:
        """Open an event file; TensorBoard hides what a resumed run had logged of the epochs to be repeated."""
        from torch.utils.tensorboard import SummaryWriter

        done = run.progress.epoch
        make_folder(folder / FOLDER)
        suffix = f".{os.urandom(8).hex()}"  # TensorBoard would follow a link of the file's name
        self._writer = SummaryWriter(
            str(folder / FOLDER), purge_step=done + 1 if done else None, filename_suffix=suffix
        )
        if not done:
            lines = yamlfile.dump(run.config.to_dict()).splitlines()
            self._writer.add_text("config", "".join(f"    {line}\n" for line in lines))  # indented: Markdown code

    def epoch(self, epoch: Epoch) -> None:
        """Log an epoch and flush the file."""
        for split in SPLITS:
            self._scores("", split, getattr(epoch, split), epoch.number)
        self._writer.add_scalar("learning_rate", epoch.learning_rate, epoch.number)
        self._writer.add_scalar("images_per_second", epoch.images_per_second, epoch.number)
        self._writer.flush()

    def end(self, outcome: Outcome) -> None:
        """Log the final evaluation and close the file."""
        if self._writer is None:  # the run failed before it started
            return
        self._scores("final_", outcome.split, outcome.scores, outcome.epochs)
        self._writer.close()

    def _scores(self, prefix: str, split: str, scores: Scores | None, step: int) -> None:
        for name, value in scores.to_dict().items() if scores is not None else ():
            self._writer.add_scalar(f"{prefix}{name}/{split}", value, step)
