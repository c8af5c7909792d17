"""Stochastic weight averaging (`swa`), and averages of several runs (`softmaxce average`)."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import update_bn

from softmaxce.build import build_run
from softmaxce.runs import checkpoint
from softmaxce.training.loop import NeverCheckpoint, fit, fit_with_checkpoints
from softmaxce.training.run import Epoch, Run
from softmaxce.training.swa import batch_norms, recompute_statistics

from ..helpers import config

CNN = {"name": "cnn", "channels": [4, 8], "hidden": 16, "dropout": 0.2}  # with batch normalization
SWA: dict[str, Any] = {"epochs": 4, "model": CNN, "swa": {"start_epoch": 2, "every": 2, "lr_factor": 0.5}}
SWA |= {"data__train": 48, "data__test": 8, "data__batch_size": 16}


def test_swa_evaluates_the_mean_of_the_weights_at_the_ends_of_its_epochs_at_its_constant_rate() -> None:
    run = build_run(config(**SWA))
    ends, rates, evaluated = [], [], []
    for epoch in fit(run):
        ends.append([p.detach().clone() for p in run.model.parameters()])
        evaluated.append([p.detach().clone() for p in run.evaluated.parameters()])
        rates.append(epoch.learning_rate)
    averaged = ([0], [1], [1], [1, 3])  # ends of epochs that are in the mean after each epoch
    for indices, parameters in zip(averaged, evaluated, strict=True):
        for number, parameter in enumerate(parameters):
            mean = torch.stack([ends[i][number] for i in indices]).mean(0)
            torch.testing.assert_close(parameter, mean, rtol=1e-6, atol=1e-7)
    assert rates[1:] == pytest.approx([0.025] * 3)  # half of optimizer.lr
    assert rates[0] > 0.025


def test_recomputed_statistics_are_those_of_torchs_update_bn_where_nothing_is_dropped() -> None:
    run = build_run(config(model={**CNN, "dropout": 0.0}))
    ours, torchs = copy.deepcopy(run.model), copy.deepcopy(run.model)
    ours.eval()
    recompute_statistics(ours, batch_norms(ours).values(), run.train.epoch(1), "float32")
    update_bn(list(run.train.epoch(1)), torchs)
    assert any(not torch.equal(a, b) for a, b in zip(ours.buffers(), run.model.buffers(), strict=True))
    for a, b in zip(ours.buffers(), torchs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert not any(module.training for module in ours.modules())


class AbortsAnEvaluation(NeverCheckpoint):
    """Aborts the evaluation of the epoch `at`, once; 0 for none."""

    def __init__(self, at: int, run: Run) -> None:
        self.at, self.run = at, run

    def should_abort_evaluation(self) -> bool:
        return self.run.progress.epoch + 1 == self.at


@pytest.fixture(scope="module")
def undisturbed() -> Run:
    run = build_run(config(**SWA))
    list(fit(run))
    return run


@pytest.mark.parametrize(("saved_after", "evaluated"), [(1, True), (3, True), (2, False)])
def test_a_run_with_swa_resumed_from_any_checkpoint_ends_with_the_undisturbed_runs_bits(
    saved_after: int, evaluated: bool, undisturbed: Run, tmp_path: Path
) -> None:
    run = build_run(config(**SWA))
    for event in fit_with_checkpoints(run, AbortsAnEvaluation(0 if evaluated else saved_after, run)):
        if not isinstance(event, Epoch) or event.number == saved_after:
            checkpoint.save(run, tmp_path, best=False)
            assert isinstance(event, Epoch) is evaluated
            break
    resumed = build_run(config(**SWA))
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    checkpoint.restore(resumed, saved)
    list(fit(resumed))
    for one, other in ((undisturbed.model, resumed.model), (undisturbed.evaluated, resumed.evaluated)):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
