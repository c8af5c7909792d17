"""`softmaxce lr-find`: the learning-rate range test."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softmaxce.build import build_run
from softmaxce.data.splits import InMemory
from softmaxce.training import range_test as tests
from softmaxce.training.run import Run

from ..helpers import SMALL, Softmaxce, config


def half_squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, K], [B] -> []: the loss of linear regression to one-hot targets, which is quadratic in the weights."""
    return (logits - torch.nn.functional.one_hot(targets, logits.shape[1])).square().sum(1).mean() / 2


def test_plain_gradient_descent_on_a_quadratic_loss_falls_below_the_rate_2_over_l_and_diverges_above() -> None:
    loss = f"{__name__}:half_squared_error"
    changes: dict[str, Any] = {"data__batch_size": 96, "data__validation": None, "data__normalize": "none"}
    settings = config(model="linear", loss=loss, optimizer={"name": "sgd", "lr": 1.0}, schedule="constant", **changes)
    run = build_run(tests.at_rate(settings, 1.0))
    split = run.train.split
    assert isinstance(split, InMemory)
    pixels = split.images.numpy().reshape(96, -1) / 255
    inputs = np.concatenate([pixels, np.ones((96, 1))], 1)
    hessian = inputs.T @ inputs / 96  # of each output's weights; L is its largest eigenvalue
    limit = 2 / np.linalg.eigvalsh(hessian)[-1]
    weights = np.concatenate([p.detach().numpy().reshape(10, -1) for p in run.model.parameters()], 1).astype(float)
    labels = np.eye(10)[split.labels.numpy()]

    result = tests.range_test(run, limit / 30, limit * 30, 200)

    expected = []
    for rate in result.rates:  # gradient descent by hand, in float64
        errors = inputs @ weights.T - labels
        expected.append((errors**2).sum(1).mean() / 2)
        weights -= rate * errors.T @ inputs / 96
    below = np.array(result.rates) < limit
    # Above, what the step at 1 / L has left of the fastest direction grows, and that is a rounding error.
    np.testing.assert_allclose(np.array(result.losses)[below], np.array(expected)[: len(below)][below], rtol=1e-3)
    assert (np.diff(result.losses)[below[:-1]] < 0).all()
    assert result.stopped_at is not None
    assert limit < result.stopped_at < 3 * limit
    assert result.suggested is not None
    assert result.suggested < limit / 5


@pytest.mark.parametrize(
    "changes",
    [
        {"fine_tuning": {"layer_decay": 0.5}, "optimizer": {"name": "adamw"}},
        {"fine_tuning": {"layer_decay": 0.5, "head_lr": 0.03}, "no_decay": "auto"},
        {"optimizer": {"name": "muon", "adamw_lr": 0.004}, "model": {"name": "mlp", "hidden": [16, 8]}},
        {"fine_tuning": {"head_lr": 0.01}},  # a rate that the test passes through itself
        {"loss": "tests.own_loss:Scaled"},  # with a parameter
    ],
)
def test_every_parameter_has_the_rate_that_train_with_this_lr_gives_it(changes: dict[str, Any]) -> None:
    run = build_run(tests.at_rate(config(**changes), 0.01))
    set_rate = tests.rate_setter(run)
    for rate in (0.01, 0.37):
        set_rate(rate)
        trained = build_run(tests.at_rate(config(**changes), rate))
        assert rates_of(run) == pytest.approx(rates_of(trained), rel=1e-12)


def rates_of(run: Run) -> list[float]:
    """The learning rate of each parameter."""
    rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    return [rates[id(p)] for p in run.parameters]


def test_the_rates_named_are_a_tenth_of_the_minimums_and_the_steepest_of_a_known_curve() -> None:
    rates = np.geomspace(1e-6, 10, 100)
    decades = np.log10(rates)
    falling = 2 / (1 + np.exp(4 * (decades + 3))) + 0.3  # steepest at 1e-3
    noise = np.random.default_rng(0).normal(0, 0.02, 100)
    result = tests.analyze(rates.tolist(), (falling + 2 * np.exp(6 * (decades - 0.5)) + noise).tolist())
    assert result.steepest == pytest.approx(1e-3, rel=0.3)
    lowest = rates[(falling + 2 * np.exp(6 * (decades - 0.5))).argmin()]
    assert result.suggested == result.tenth_of_minimum == pytest.approx(lowest / 10, rel=1.0)  # the bottom is flat
    assert result.reason == ""


@pytest.mark.parametrize(
    ("curve", "diverged", "reason"),
    [
        (lambda x: 2.3 + 0 * x, None, "the loss is flat from 1e-06 to 10; raise --max-lr"),
        (lambda x: 2.3 + 0.2 * np.sin(97 * x), None, "the loss is flat from 1e-06 to 10; raise --max-lr or data.batch"),
        (lambda x: 2.3 + 5 * x**2, 10.0, "the loss rises and does not fall, from 1e-06 on; lower --min-lr"),
        (lambda x: 2.3 - 2 * x, None, "the loss is smallest at the last rate, 10; a larger"),
    ],
)
def test_a_flat_or_rising_curve_names_no_rate_and_says_why(curve: Any, diverged: float | None, reason: str) -> None:
    rates = np.geomspace(1e-6, 10, 100).tolist()
    result = tests.analyze(rates, curve(np.linspace(0, 1, 100)).tolist(), diverged)
    assert result.reason.startswith(reason)
    assert (result.suggested is not None) == ("last rate" in reason)


def test_lr_find_names_a_rate_that_its_next_command_trains_with_and_leaves_the_picture_alone_behind(
    softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    words = ["lr-find", small.name, "--set", "model.dropout=0", "--batch-size", "16", "--output", "rates.svg"]
    done = softmaxce(*words, "--max-lr", "100", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rates.svg", "small.yaml"]
    assert small.read_text() == SMALL
    assert (
        result["command"] == f"softmaxce train small.yaml --set model.dropout=0 --batch-size 16 --lr {result['lr']:.2g}"
    )
    assert "optimizer.lr" in (tmp_path / "rates.svg").read_text()
    trained = softmaxce(*shlex.split(result["command"])[1:], "--json")
    start = json.loads(trained.stdout.splitlines()[0])
    assert start["config"]["optimizer"]["lr"] == result["lr"]
    shown = softmaxce(*words[:-1], "a/b/rates.png", "--max-lr", "100").stdout.splitlines()
    assert shown[-1] == f"next: {result['command']}"
    assert f"lr {result['lr']:.2g}: a tenth of the rate with the smallest smoothed loss" in shown
    assert Image.open(tmp_path / "a" / "b" / "rates.png").size > (500, 300)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--output", "small.svg"], 2, "is not a picture of softmaxce"),
        (["--set", "fine_tuning={freeze: backbone, head_lr: 0.1}"], 2, "optimizer.lr: is the rate of no parameter"),
        (["--max-lr", "1e-5"], 1, ""),
    ],
)
def test_what_cannot_be_tested_is_one_line_and_writes_nothing(
    options: list[str], status: int, message: str, softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.svg").write_text("mine")
    done = softmaxce("lr-find", small.name, *options)
    assert done.returncode == status, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert (tmp_path / "small.svg").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small.svg", "small.yaml"]
    if status == 1:
        assert "no learning rate: the loss is flat" in done.stdout
