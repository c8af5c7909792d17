"""Gradient accumulation: batches of b images, n to a step, train as batches of n b images do."""

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from softmaxce.build import build_run
from softmaxce.config.components import Component, build
from softmaxce.config.registry import LOSSES
from softmaxce.losses.interface import mean_divisor
from softmaxce.training.loop import fit
from softmaxce.training.run import Run
from softmaxce.training.step import TrainingStep

from ..helpers import config

BALANCED = {"name": "softmax_cross_entropy", "weight": "balanced"}
WEIGHTS = [0.2, 3.0, 1.0, 0.5, 0.1, 2.0, 1.5, 0.7, 4.0, 1.1]


def built(batch_size: int, accumulated: int, **changes: Any) -> Run:
    """`linear` on 250 digits, for an epoch of SGD with a learning rate of 0.5."""
    return build_run(
        config(
            **{
                "data": {"name": "digits", "train_limit": 250, "batch_size": batch_size},
                "model": "linear",
                "optimizer": {"name": "sgd", "lr": 0.5},
                "schedule": "constant",
                "epochs": 1,
                "grad_accum_steps": accumulated,
                **changes,
            }
        )
    )


def trained(batch_size: int, accumulated: int, **changes: Any) -> Run:
    run = built(batch_size, accumulated, **changes)
    list(fit(run))
    return run


def difference(one: Run, other: Run) -> float:
    """The norm of the difference of two runs' weights, relative to the norm of the weights."""
    ours, theirs = (nn.utils.parameters_to_vector(run.model.parameters()).detach().double() for run in (one, other))
    return float((ours - theirs).norm() / ours.norm())


CHOSEN: dict[str, Any] = {
    **{name: {"name": name, "weight": "balanced"} for name in LOSSES},
    "smoothed": {"name": "torch_cross_entropy", "weight": WEIGHTS, "label_smoothing": 0.2},
    "ignoring a class": {"name": "focal", "weight": WEIGHTS, "ignore_index": 3},
    "ignoring, unweighted": {"name": "softmax_cross_entropy", "ignore_index": 3},
    "one loss an image": {"name": "softmax_cross_entropy", "weight": WEIGHTS, "reduction": "none"},
    "the user's": "torch.nn.functional:cross_entropy",
}


@pytest.mark.parametrize("loss", CHOSEN)
def test_small_batches_accumulated_give_the_weights_of_the_large_batch(loss: str) -> None:
    large = trained(250, 1, loss=CHOSEN[loss])
    for batch_size, accumulated in ((125, 2), (100, 3)):  # the last of the three has 50 images
        assert difference(large, trained(batch_size, accumulated, loss=CHOSEN[loss])) < 1e-6


def test_clipping_and_further_steps_of_an_epoch_see_the_large_batch_too() -> None:
    changes = {"loss": BALANCED, "clip_grad_norm": 0.1}
    assert difference(trained(96, 1, **changes), trained(32, 3, **changes)) < 1e-6


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "focal"])
@pytest.mark.parametrize("targets", ["class ids", "mixed"])
def test_a_scaled_loss_and_mixed_labels_are_accumulated_to_the_large_batch(targets: str, loss: str) -> None:
    images = torch.rand(250, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(250) ** 2 % 10
    ways = []
    for batch_size, accumulated in ((250, 1), (100, 3)):
        changes = {"precision": "fp16", "loss": {"name": loss, "weight": WEIGHTS}, "clip_grad_norm": 0.1}
        run = built(batch_size, accumulated, **changes)
        step = TrainingStep(run)
        step.precision = contextlib.nullcontext()  # float32, so that only the loss scaling of fp16 is left
        step.begin(0)
        ids = functional.one_hot(labels, 10) * 0.7 + functional.one_hot(labels.flip(0), 10) * 0.3
        chosen = labels if targets == "class ids" else ids
        for index, batch in enumerate(zip(images.split(batch_size), chosen.split(batch_size), strict=True)):
            step.forward_backward(*batch, index)
        step.update()
        ways.append(run)
    assert ways[0].scaler.get_scale() > 1
    assert difference(*ways) < 1e-6


def test_sums_are_averaged_over_the_batches_of_a_step() -> None:
    sgd = {"name": "sgd", "lr": 1e-3}
    run = trained(100, 3, loss={"name": "softmax_cross_entropy", "reduction": "sum"}, optimizer=sgd)
    twin = built(100, 3, optimizer=sgd)
    for images, labels in twin.train.epoch(1):
        (functional.cross_entropy(twin.model(images), labels, reduction="sum") / 3).backward()
    twin.optimizer.step()
    assert difference(run, twin) < 1e-6


@pytest.mark.parametrize("name", LOSSES)
@given(
    cut=st.integers(1, 11),
    weighted=st.booleans(),
    ignore_index=st.sampled_from([-100, 0, 2]),
    smoothing=st.sampled_from([0.0, 0.3]),
    soft=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_mean_is_its_parts_means_weighed_by_their_divisors(
    name: str, cut: int, weighted: bool, ignore_index: int, smoothing: float, soft: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"weight": [0.5, 2.0, 1.25, 0.1]} if weighted else {}
    if not soft:
        options["ignore_index"] = ignore_index
    counts = {"class_counts": [3, 4, 3, 2]} if name == "logit_adjusted" else {}
    loss = build(Component(name, LOSSES[name], {**options, "label_smoothing": smoothing}), counts)
    logits = 3 * torch.randn(12, 4, generator=generator, dtype=torch.float32)
    targets = torch.randint(4, (12,), generator=generator)
    targets[0], targets[-1] = 1, 3  # neither part has ignored images alone
    if soft:
        targets = torch.rand(12, 4, generator=generator).softmax(1)
    divisors = [mean_divisor(loss, part) for part in (targets[:cut], targets[cut:], targets)]
    first, second = loss(logits[:cut], targets[:cut]), loss(logits[cut:], targets[cut:])
    mean = (divisors[0] * first + divisors[1] * second) / divisors[2]
    torch.testing.assert_close(mean, loss(logits, targets), rtol=1e-5, atol=1e-6)
