"""A training run as TensorBoard event files. Needs the extra `tensorboard`."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config import yamlfile
from ...files import make_folder
from ...runs.folder import Status
from .background import LoggedRun

FOLDER = "tensorboard"  # in the run folder


class TensorBoardLogger:
    """Writes TensorBoard event files into the run folder."""

    def open(self, run: LoggedRun) -> Collection[int]:
        """Open an event file. Of a resumed run, TensorBoard hides what the earlier ones have; it is written again."""
        from torch.utils.tensorboard import SummaryWriter

        make_folder(run.folder / FOLDER)
        suffix = f".{os.urandom(8).hex()}"  # TensorBoard would follow a link of the file's name
        self._writer: Any = SummaryWriter(
            str(run.folder / FOLDER), purge_step=1 if run.epochs else None, filename_suffix=suffix
        )
        if not run.epochs:
            lines = yamlfile.dump(run.config).splitlines()
            self._writer.add_text("config", "".join(f"    {line}\n" for line in lines))  # indented: Markdown code
        return ()

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch and flush the file."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def log_final(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the final evaluation."""
        self.log(epoch, metrics)

    def add_files(self, files: Sequence[Path]) -> None:
        """Nothing: the files lie beside the event files already."""

    def close(self, status: Status) -> None:
        """Close the file."""
        self._writer.close()
