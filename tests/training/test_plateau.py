"""The schedule that reduces the learning rate on a plateau: torch's numbers, resumed to the same bits."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.config.keys import Config
from softmaxce.errors import ConfigError
from softmaxce.optim.plateau import ReduceOnPlateau
from softmaxce.runs.folder import read_metrics
from softmaxce.training.run import Epoch

from ..helpers import config, train_and_list_metrics

PLATEAU = {"name": "reduce_on_plateau", "factor": 0.5, "patience": 0, "threshold": 5.0, "threshold_mode": "abs"}


@given(
    st.lists(st.floats(0, 3) | st.just(math.nan), max_size=20),
    st.sampled_from(["loss", "accuracy", "macro_f1", "nll"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 20),
)
def test_the_factor_is_that_of_torchs_reduce_lr_on_plateau_also_when_resumed(
    values: list[float], metric: str, patience: int, cooldown: int, resumed_at: int
) -> None:
    def make() -> ReduceOnPlateau:
        options = {"factor": 0.5, "patience": patience, "cooldown": cooldown, "min_factor": 0.1}
        return ReduceOnPlateau(steps=100, steps_per_epoch=5, metric=metric, **options)  # type: ignore[arg-type]

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.25)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        "max" if metric in ("accuracy", "macro_f1") else "min",
        0.5,
        patience,
        cooldown=cooldown,
        min_lr=0.025,
        eps=0,
    )
    ours = make()
    for index, value in enumerate(values):
        if index == resumed_at:
            state, ours = ours.state(), make()
            ours.load_state(state)
        torchs.step(value)
        ours.observe({metric: value})
        assert 0.25 * ours(5 * index) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-15)


class StopsAfter(session.Reporter):
    def __init__(self, epoch: int) -> None:
        self.last = epoch

    def epoch(self, epoch: Epoch) -> None:
        if epoch.number == self.last:
            raise KeyboardInterrupt


def test_a_run_that_is_resumed_on_a_plateau_ends_with_the_undisturbed_runs_bits(tmp_path: Path) -> None:
    def settings() -> Config:
        return config(epochs=6, schedule=PLATEAU)

    whole = build_run(settings())
    epochs = train_and_list_metrics(whole)
    rates = [row[1] for row in epochs]
    assert rates[0] == 0.05
    assert rates[-1] == 0.05 / 16  # no epoch after the first improves by 5 nats
    with pytest.raises(KeyboardInterrupt):
        session.train(build_run(settings()), tmp_path / "run", reporters=[StopsAfter(3)])
    resumed = build_run(settings())
    session.train(resumed, tmp_path / "run", resume=True)
    assert resumed.progress.schedule == whole.progress.schedule
    lines = read_metrics(tmp_path / "run")
    assert [line["learning_rate"] for line in lines] == rates
    assert [line["train"] for line in lines] == [row[2].to_dict() for row in epochs]


def test_without_a_validation_split_there_is_no_plateau() -> None:
    with pytest.raises(ConfigError, match="reduce_on_plateau needs a validation split"):
        config(schedule=PLATEAU, data={"name": "synthetic"})
