"""A training run in Weights & Biases: on its server where there is an API key, else offline in the run folder.

Needs the extra `wandb`.
"""

import netrc
import os
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...errors import RunError
from ...files import expanded, make_folder
from ...runs.folder import Status
from .background import TIMEOUT, LoggedRun
from .identity import read_id, write_id

FOLDER = "wandb"  # in the run folder, unless WANDB_DIR names another
SERVER = "https://api.wandb.ai"
NETRC_FILES = ("~/.netrc", "~/_netrc")


class WandbLogger:
    """Writes to one W&B run, whose id is kept in the run folder."""

    def open(self, run: LoggedRun) -> Collection[int]:
        """Begin the W&B run, or continue that of the run folder."""
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        if mode == "online" and not has_key():  # W&B would ask for it on the terminal
            raise RunError("WANDB_MODE is online, but there is no API key; run: wandb login")
        if mode == "offline":  # nothing is sent anywhere; the user's own setting has precedence
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        own_id = read_id(run.folder, "wandb")
        self._id = own_id or secrets.token_hex(4)
        folder = Path(os.environ.get("WANDB_DIR") or run.folder)
        if folder == run.folder:
            make_folder(folder / FOLDER)
        earlier = sorted((folder / FOLDER).glob(f"*run-*-{self._id}")) if own_id else []
        self._files: list[Path] = []
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.recipe,
            id=self._id,
            name=run.name,
            dir=str(folder),
            mode=mode,
            resume="allow",
            reinit="create_new",  # a notebook may have a run of its own
            settings=wandb.Settings(silent=True, console="off", init_timeout=TIMEOUT, finish_timeout=TIMEOUT),
        )
        write_id(run.folder, "wandb", self._id)
        self._run.config.update(dict(run.config), allow_val_change=True)
        if mode != "offline":
            return range(self._run.step)  # the server says which comes next
        return _replaced(earlier, run.epochs)

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch; it is W&B's step."""
        self._run.log(dict(metrics), step=epoch)

    def log_final(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Store the final evaluation in the run's summary."""
        self._run.summary.update(dict(metrics))

    def add_files(self, files: Sequence[Path]) -> None:
        """Keep files for the artifact, of which `close` makes one version."""
        self._files += files

    def close(self, status: Status) -> None:
        """Store the files as an artifact, and end the W&B run."""
        import wandb

        if self._files:
            artifact = wandb.Artifact(f"run-{self._id}", type="model")
            for file in self._files:
                artifact.add_file(str(file), skip_cache=True, policy="immutable")
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if status.finished else 1)


def has_key() -> bool:
    """Whether W&B has an API key: in the environment, or stored by `wandb login`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = os.environ.get("NETRC") or next((one for one in map(Path, NETRC_FILES) if expanded(one).is_file()), "")
    if not file:
        return False
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).netloc
    try:
        return netrc.netrc(expanded(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):  # W&B could not read it either
        return False


def _replaced(earlier: Sequence[Path], epochs: int) -> Collection[int]:
    """The epochs that need not be logged again after those of the earlier offline parts of a resumed run.

    W&B keeps what it logs offline in memory for seconds, so that the folder of a killed process lacks epochs, nobody
    knows which. So the new folder gets all epochs, and replaces those that were not uploaded yet. After an upload only
    new epochs are logged.
    """
    if any(not folder.name.startswith("offline-run-") or [*folder.glob("*.synced")] for folder in earlier):
        return range(epochs + 1)
    for folder in earlier:
        if not folder.is_symlink():
            shutil.rmtree(folder)
    return ()
