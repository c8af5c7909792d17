"""The batch size that fits into memory when a larger one did not, by trying half, a quarter, and so on."""

from collections.abc import Callable

import torch

from ..errors import MemoryRanOutError, ran_out_of_memory, within_memory
from .freezing import prepare_epoch
from .run import Run
from .step import TrainingStep


def find_fitting_batch_size(size: int, attempt: Callable[[int], None]) -> int | None:
    """The first of size/2, size/4, ... 1 with which `attempt` stays within memory; None if there is none.

    There are at most log2(size) attempts, each smaller than what has failed already.

    Args:
        size: a batch size that did not fit.
        attempt: does the same with a smaller one; it may call the user's own model and loss.
    """
    while (size := size // 2) >= 1:
        try:
            if fits(size, attempt):
                return size
        except Exception as error:  # the user's model or loss fails on this batch size; memory is what is reported
            if ran_out_of_memory(error):
                raise
            return None
    return None


def fits(size: int, attempt: Callable[[int], None]) -> bool:
    """Whether `attempt` stays within memory with a batch of this size."""
    try:
        with within_memory("trying"):
            attempt(size)
    except MemoryRanOutError:  # the answer
        return False
    return True


def smaller_steps(run: Run) -> str:
    """The remedy when a training step did not fit into memory; tries smaller ones, on black images."""
    size = min(run.train.batch_size, run.train.num_images)
    fitting = find_fitting_batch_size(size, lambda fewer: try_step(run, fewer))
    if fitting is None:
        return "no smaller batch fits either; use a smaller model or smaller images, or a machine with more memory"
    accumulated = -(-size // fitting) * run.config.grad_accum_steps
    return (
        f"a step of {fitting} images, tried just now, fits: set data.batch_size: {fitting} "
        f"and grad_accum_steps: {accumulated} for as many images a step as before"
    )


def try_step(run: Run, size: int) -> None:
    """Take a training step on `size` black images. It changes the run."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    run.optimizer.zero_grad()
    prepare_epoch(run, run.progress.epoch + 1)
    images = run.train.prepared(torch.zeros(size, *run.preprocessing.shape, dtype=torch.uint8, device=run.device))
    targets = torch.zeros(size, dtype=torch.int64, device=run.device)
    if run.mix is not None:
        images, targets = run.mix(images, targets)
    step = TrainingStep(run)
    _, loss = step.forward(images, targets)
    step.backward(loss)
    step.apply()
