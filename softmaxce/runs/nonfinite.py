"""The policy for a batch whose loss or gradient is not finite: save it, then stop, skip it or restore the weights."""

from pathlib import Path

from ..errors import TrainingError
from ..files import keep_as, replace_file
from ..training.nonfinite import NonFiniteError
from ..training.run import Run
from . import checkpoint
from .folder import LAST, NONFINITE, RESTORABLE


def apply_policy(run: Run, error: NonFiniteError, folder: Path) -> str:
    """Do what the config's `on_nonfinite` says. Returns: a warning. Raises: TrainingError to stop."""
    file = run.group.from_rank_0(lambda: save_nonfinite(run, error, folder))
    allowed, count = run.config.max_nonfinite, run.progress.nonfinite
    message = f"{error}. The batch is saved in {file}"
    if run.config.on_nonfinite == "stop":
        raise TrainingError(
            f"{message}; lower optimizer.lr, add schedule.warmup_epochs or set clip_grad_norm, "
            "or set on_nonfinite: skip"
        )
    if count > allowed:
        raise TrainingError(f"{message}; that was number {count}, and max_nonfinite is {allowed}")
    action = "skipped"
    if run.config.on_nonfinite == "restore":
        saved = run.group.from_rank_0(lambda: _restorable(run, folder))
        if saved is None:
            raise TrainingError(f"{message}; there is no checkpoint to restore yet, set checkpoint_every")
        checkpoint.restore_weights(run, saved)
        action = f"restored the weights of {saved.file}"
    return f"{message}; {action} ({count} of {allowed})"


def keep_restorable(run: Run, folder: Path, *, planned: bool) -> None:
    """Keep the checkpoint just saved as the one to restore, unless a signal caused it: then it is not in every run."""
    if run.config.on_nonfinite == "restore":
        if planned:
            keep_as(folder / LAST, folder / RESTORABLE)
    else:
        (folder / RESTORABLE).unlink(missing_ok=True)  # of an earlier part of the run


def _restorable(run: Run, folder: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint to restore; in a run that an earlier version began, the newest."""
    if (folder / RESTORABLE).is_file():
        return checkpoint.load(folder / RESTORABLE)
    return checkpoint.newest(folder)[0] if run.progress.epoch else None


def save_nonfinite(run: Run, error: NonFiniteError, folder: Path) -> Path:
    """Save the batch whose loss was not finite, and the weights, as nonfinite.safetensors. Returns: the file.

    `images` [B, C, H, W] are the model's inputs, `targets` are labels [B] or probabilities [B, K]; the weights have
    names under model/, the state of a user's loss under loss/.
    """
    tensors = {f"model/{name}": checkpoint.contiguous_copy(tensor) for name, tensor in run.model.state_dict().items()}
    tensors |= checkpoint.loss_tensors(run)
    tensors |= {
        "images": checkpoint.contiguous_copy(error.images),
        "targets": checkpoint.contiguous_copy(error.targets),
    }
    content, _ = checkpoint.serialized(tensors, {**checkpoint.header_of(run), "nonfinite": str(error)})
    replace_file(folder / NONFINITE, content)
    return folder / NONFINITE
