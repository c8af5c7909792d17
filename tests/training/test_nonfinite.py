"""A loss or a gradient that is not finite: detected before the step, reported, and skipped if configured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.kernels.all_finite import FiniteCheck
from softmaxce.report.training import GrowingTable, JsonLines, PlainLines
from softmaxce.runs.folder import read_metrics
from softmaxce.training.loop import fit
from softmaxce.training.nonfinite import NonFiniteError
from softmaxce.training.run import Epoch, Run

from ..helpers import config


def diverging(precision: str, **changes: Any) -> Run:
    return build_run(config(optimizer={"name": "sgd", "lr": 1e30}, schedule="constant", precision=precision, **changes))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_learning_rate_that_diverges_is_noticed_before_the_weights_take_it_up(precision: str) -> None:
    run = diverging(precision)
    with pytest.raises(NonFiniteError) as raised:
        list(fit(run))
    assert (raised.value.epoch, raised.value.batch, raised.value.learning_rate) == (1, 2, 1e30)
    assert "the output of layer '" in raised.value.layer
    assert raised.value.images.shape == (32, 1, 16, 16)
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_finite_gradients_whose_sum_is_not_are_no_mistake() -> None:
    run = build_run(config(optimizer={"name": "sgd", "lr": 0.0}, schedule="constant", epochs=1, model="linear"))
    bias = run.model.get_parameter("1.bias")
    bias.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    (epoch,) = fit(run)
    assert epoch.train.images == len(run.train.split)


def test_an_infinity_and_its_opposite_do_not_hide_each_other() -> None:
    run = build_run(config(optimizer={"name": "sgd", "lr": 0.1}, schedule="constant", epochs=1, model="linear"))
    sign = torch.tensor([1.0, -1.0] * 5)
    run.model.get_parameter("1.bias").register_hook(lambda gradient: sign * torch.inf)
    with pytest.raises(NonFiniteError, match=r"gradient of '1.bias'"):
        list(fit(run))


@given(
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
    where=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([math.nan, math.inf, -math.inf, -math.nan, 3.4e38, -3.4e38, 0.0, 1e-45]),
    missing=st.booleans(),
)
def test_one_pass_over_the_gradients_sees_what_isfinite_sees(
    sizes: list[int], where: float, value: float, missing: bool
) -> None:
    parameters = [torch.zeros(size, requires_grad=True) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3e38)
    chosen = parameters[int(where * len(sizes))]
    assert chosen.grad is not None
    chosen.grad[int(where * chosen.numel())] = value
    if missing:
        parameters[0].grad = None
    expected = all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None)
    watch = FiniteCheck(parameters)
    assert watch.all_finite() is expected
    assert watch.all_finite() is expected


class NanOnce:
    """Cross-entropy that is NaN at its third batch, and has a gradient that is at its fourth."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.requires_grad:
            self.calls += 1
        loss = nn.functional.cross_entropy(logits, targets)
        if self.calls == 3:
            return loss * float("nan")
        if self.calls == 4:
            return loss + (logits * 0).abs().sqrt().sum()  # the square root's slope at 0 is infinite, times 0
        return loss


def test_a_step_that_is_skipped_leaves_weights_and_running_statistics_as_they_were() -> None:
    run = build_run(config(data__train=200, on_nonfinite="skip", model={"name": "cnn", "channels": [4, 8]}))
    run.loss = NanOnce()
    messages = []
    events: list[Epoch] = []
    for _ in range(3):
        try:
            events += fit(run)
        except NonFiniteError as error:
            messages.append((error.batch, error.layer))
            assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())
    assert [batch for batch, _ in messages] == [3, 4]
    assert "the gradient of '" in messages[1][1]
    assert [event.number for event in events] == [1, 2]
    assert run.progress.nonfinite == 2
    assert all(torch.isfinite(torch.tensor(event.train.loss)) for event in events)


SKIPS_FIRST_EPOCH = """
import torch
from torch import nn


class NanAtFirst:
    def __init__(self):
        self.calls = 0

    def __call__(self, logits, targets):
        loss = nn.functional.cross_entropy(logits, targets)
        self.calls += logits.requires_grad
        return loss * float("nan") if 1 < self.calls <= 4 and logits.requires_grad else loss
"""


def test_an_epoch_whose_steps_were_all_skipped_has_no_training_loss_and_no_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first.py").write_text(SKIPS_FIRST_EPOCH)  # the trial before training is the first call
    changes = {"loss": f"{tmp_path / 'first.py'}:NanAtFirst", "on_nonfinite": "skip"}
    console = Console(width=100, no_color=True)
    reporters = [PlainLines(), JsonLines(), GrowingTable(console)]
    session.train(build_run(config(**changes)), tmp_path / "run", reporters=reporters)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("epoch 1/2") and "train loss nan accuracy nan " in line for line in printed)
    assert any(line.split()[0] == "1/2" and line.split()[2:4] == ["nan", "nan"] for line in printed if line.strip())
    events = [json.loads(line) for line in printed if line.startswith('{"event": "epoch"')]
    assert events[0]["train"] == {"loss": None, "accuracy": None}
    assert events[0]["validation"]["accuracy"] >= 0
    assert 0 < events[1]["train"]["loss"] < 10
    recorded = read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in recorded] == [1, 2]  # and the commands that read it do so to its end
    assert math.isnan(recorded[0]["train"]["loss"])
    assert math.isnan(recorded[0]["train"]["accuracy"])
    assert recorded[0]["validation"] == events[0]["validation"]
