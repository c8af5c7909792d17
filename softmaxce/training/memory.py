"""How much fits into memory when more did not: found by trying half, a quarter, and so on."""

from collections.abc import Callable

import torch

from ..errors import MemoryRanOutError, ran_out_of_memory, within_memory
from ..losses.interface import to_scalar
from ..runtime.device import autocast
from .run import Run


def find_fitting_batch_size(size: int, attempt: Callable[[int], None]) -> int | None:
    """The first of size/2, size/4, ... 1 with which `attempt` stays within memory; None if there is none.

    No attempt asks for more than what has failed already, and there are log2(size) of them at most.

    Args:
        size: what did not fit, a batch size.
        attempt: does the same with fewer; it may call the user's own model and loss.
    """
    while (size := size // 2) >= 1:
        try:
            with within_memory("trying"):
                attempt(size)
        except MemoryRanOutError:  # the answer to the attempt; half of it comes next
            continue
        except Exception as error:  # the user's model or loss, on a batch tried; that memory ran out is told
            if ran_out_of_memory(error):
                raise
            return None  # it takes no batch as small as this; what the caller tells is that memory ran out
        return size
    return None


def smaller_steps(run: Run) -> str:
    """What to do when a training step did not fit into memory: smaller ones are tried, on blank images."""
    size = min(run.config.data.batch_size, run.train.num_images)
    fits = find_fitting_batch_size(size, lambda fewer: try_step(run, fewer))
    if fits is None:
        return "no smaller batch fits either; take a smaller model or smaller images, or a machine with more memory"
    accumulated = -(-size // fits) * run.config.grad_accum_steps
    return (
        f"a step of {fits} images, tried just now, fits: set data.batch_size: {fits} "
        f"and grad_accum_steps: {accumulated} for as many images a step as before"
    )


def try_step(run: Run, size: int) -> None:
    """Take a training step on `size` blank images. It changes the run."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    run.optimizer.zero_grad()
    run.model.train()
    images = run.train.prepared(torch.zeros(size, *run.preprocessing.shape, dtype=torch.uint8, device=run.device))
    targets = torch.zeros(size, dtype=torch.int64, device=run.device)
    if run.mix is not None:
        images, targets = run.mix(images, targets)
    with autocast(run.device, run.precision):
        loss = to_scalar(run.loss(run.model(images), targets))
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
