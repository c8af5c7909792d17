"""The forward and backward pass of a training step, as run and as captured in a CUDA graph."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import TrainingError
from ..losses.interface import to_scalar
from ..runtime.device import autocast
from ..runtime.random_state import random_state, restore_random_state
from .cuda_graph import NoGraphError, StaticStep, static_step, tell_no_graph
from .nonfinite import is_bad
from .run import Run

T = TypeVar("T")


def forward_backward(
    run: Run,
    precision: contextlib.AbstractContextManager[Any],
    group_size: int,
    check: Callable[[Tensor], T],
    images: Tensor,
    targets: Tensor,
) -> T:
    """A batch's gradients, and its share in the sums of the epoch; the same whether it runs or is captured.

    Args:
        run: the run.
        precision: the context of the forward pass.
        group_size: batches whose gradients are averaged before a step.
        check: looks at the loss before the backward pass.
        images, targets: the batch.
    Returns: what `check` says.
    """
    with precision:
        logits = run.model(images)  # [B, K]
        loss = to_scalar(run.loss(logits, targets))
    answer = check(loss)
    run.scaler.scale(loss / group_size if group_size > 1 else loss).backward()
    run.tally.add(loss, logits, targets)
    return answer


def make_static_step(run: Run) -> StaticStep:
    """The run's forward and backward pass for full batches, made on a made-up one; the run stays as it is.

    Raises: NoGraphError with the reason, if a CUDA graph cannot be had.
    """
    size, device = run.config.data.batch_size, run.device
    run.tally.room = 0
    before = random_state()
    try:
        pixels = torch.randint(256, (size, *run.preprocessing.shape), dtype=torch.uint8, device=device)
        images, targets = run.train.prepared(pixels), torch.arange(size, device=device) % len(run.classes)
        if run.mix is not None:
            images, targets = run.mix(images, targets)
    finally:
        restore_random_state(before)
    accumulated = run.config.grad_accum_steps
    body = partial(forward_backward, run, autocast(device, run.precision), accumulated, is_bad)
    sums = (run.tally.loss, run.tally.hits)
    copied = accumulated > 1 or ":" in run.config.optimizer.name  # a user's may keep the gradients it was given
    return static_step(body, images, targets, (run.model, run.loss), sums, copied=copied)


def _try_graph(run: Run) -> None:
    """Make the run's CUDA graph, or say why there is none. Raises: TrainingError if the config insists on one."""
    try:
        run.step = make_static_step(run)
    except NoGraphError as error:
        run.graph_wanted = False
        if run.config.cuda_graph is True:
            raise TrainingError(f"no CUDA graph: {error}; cuda_graph: auto trains without") from None
        tell_no_graph(str(error))
