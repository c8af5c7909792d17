"""What the first batch or the final evaluation raises: one line with its location, in a dry run and in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.data.batches import Batches
from softmaxce.data.mixup import mixing
from softmaxce.errors import ConfigError, TrainingError
from softmaxce.runtime.random_state import random_state
from softmaxce.training.dry_run import dry_run

from ..helpers import config

DATA = {"name": "synthetic", "train": 40, "test": 8, "size": 8, "batch_size": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {**DATA, "augment": [{"name": "random_crop", "padding": 8, "padding_mode": "reflect"}]}},
            "random_crop",
        ),
        ({"data": {**DATA, "channels": 2, "augment": ["rand_augment"]}}, "1 or 3 channels, got 2"),
        ({"data": {**DATA, "channels": 4, "augment": ["trivial_augment"]}}, "1 or 3 channels, got 4"),
        (
            {"data": {**DATA, "batch_size": 1}, "model": "resnet9"},
            "data.batch_size: resnet9 cannot be trained on batches",
        ),
        ({"data": {**DATA, "train_limit": 1}, "model": "resnet9"}, "there is only one training image"),
        (
            {"data": {**DATA, "train": 5}, "loss": {"name": "softmax_cross_entropy", "weight": "balanced"}},
            "there are none of class5, class6, class7, class8, class9",
        ),
    ],
)
def test_parts_that_cannot_take_a_batch_are_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run(config(**changes))


def test_the_trials_of_a_build_leave_random_numbers_and_statistics_as_they_were() -> None:
    plain = build_run(config(data={**DATA, "batch_size": 1}, model={"name": "cnn", "channels": [4]}))
    torch_state = random_state()["torch"]
    data = {**DATA, "batch_size": 1, "augment": ["random_horizontal_flip", "rand_augment"]}
    tried = build_run(config(data=data, model={"name": "cnn", "channels": [4]}))
    assert torch.equal(random_state()["torch"], torch_state)
    expected = plain.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tried.model.state_dict().items())


class FailsInTraining(nn.Module):
    """Fails as a user's module may: not when it is built, but on a batch."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.layer, self.mode = nn.Linear(64, 10), mode

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training == self.mode:
            raise LookupError("no such layer\nand more")
        return self.layer(images.flatten(1))  # type: ignore[no-any-return]


def test_what_a_batch_raises_is_one_line_in_a_dry_run_and_in_training(tmp_path: Path) -> None:
    run = build_run(config(data=DATA))
    run.model = FailsInTraining(True)
    with pytest.raises(TrainingError, match=r"^the first batch: LookupError: no such layer[^\n]*$"):
        dry_run(run)
    with pytest.raises(TrainingError, match=r"^epoch 1: LookupError: no such layer[^\n]*$"):
        session.train(run, tmp_path / "run")


def test_an_optimizer_that_fails_is_one_line_in_a_dry_run() -> None:
    run = build_run(config(data=DATA))
    run.optimizer = torch.optim.SGD(run.model.parameters(), 0.1, differentiable=True)  # fails on a model's parameters
    run.optimizer.param_groups[0]["initial_lr"] = 0.1
    with pytest.raises(TrainingError, match=r"^the first batch: a leaf Variable that requires grad"):
        dry_run(run)


def test_a_failure_of_the_final_evaluation_is_called_one(tmp_path: Path) -> None:
    run = build_run(config(data={**DATA, "validation": 8}, epochs=1))

    class Refusing(Batches):
        def epoch(self, number: int, start: int = 0) -> Any:
            raise LookupError("no test images")

    assert run.test is not None
    run.test = Refusing(run.test.split, run.preprocessing, batch_size=8, device=run.device)
    with pytest.raises(TrainingError, match=r"^the final evaluation: LookupError: no test images"):
        session.train(run, tmp_path / "run")


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(1, 0), (0, 1), (2, 1)])
def test_whole_numbers_mix_as_the_same_floats_do(mixup_alpha: int, cutmix_alpha: int) -> None:
    images, labels, results = torch.rand(8, 1, 6, 6), torch.arange(8), []
    for alphas in ((mixup_alpha, cutmix_alpha), (float(mixup_alpha), float(cutmix_alpha))):
        torch.manual_seed(0)
        mix = mixing(alphas[0], alphas[1], 8)
        assert mix is not None
        results.append(mix(images, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
