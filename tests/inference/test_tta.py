"""Test-time augmentation: which views, with which weights, and where it applies."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from softmaxce.build import build_run
from softmaxce.inference.evaluate import evaluate, final_evaluation
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.inference.tta import with_tta
from softmaxce.runs.checkpoint import save
from softmaxce.runs.folder import BEST
from softmaxce.training.evaluation import predict
from softmaxce.training.loop import fit

from ..helpers import Softmaxce, config


class Pixels(nn.Module):
    """The pixels' values as logits: what a view shows is what comes out."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


IMAGE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
# by hand: the image moved down and right, and up and left, by a pixel; what lies beyond the border is mirrored
DOWN = torch.tensor([[5.0, 4.0, 5.0], [2.0, 1.0, 2.0], [5.0, 4.0, 5.0]])
UP = torch.tensor([[5.0, 6.0, 5.0], [8.0, 9.0, 8.0], [5.0, 6.0, 5.0]])
CROPS = IMAGE / 2 + DOWN / 4 + UP / 4


@pytest.mark.parametrize(
    ("tta", "expected"),
    [
        ("none", IMAGE),
        ("flip", (IMAGE + IMAGE.fliplr()) / 2),
        ("crops", CROPS),
        ("flip_crops", (CROPS + (IMAGE.fliplr() / 2 + DOWN.fliplr() / 4 + UP.fliplr() / 4)) / 2),
    ],
)
def test_the_logits_are_the_weighted_mean_of_the_views(tta: str, expected: Tensor) -> None:
    torch.testing.assert_close(with_tta(Pixels(), tta)(IMAGE.view(1, 1, 3, 3)), expected.flatten()[None])


@pytest.mark.parametrize("tta", ["flip", "crops", "flip_crops"])
def test_the_final_evaluation_and_eval_use_it_and_the_epochs_table_does_not(tta: str, tmp_path: Path) -> None:
    run = build_run(config(tta=tta))
    epochs = []
    for epoch in fit(run):
        save(run, tmp_path, best=epoch.best)
        epochs.append(epoch.validation)
    assert epochs == [epoch.validation for epoch in fit(build_run(config()))]
    _, final, _ = final_evaluation(run, tmp_path, ())
    assert final is not None
    assert final.loss == evaluate(tmp_path / BEST, "test").metrics.loss
    once = evaluate(tmp_path / BEST, "test", tta="none").metrics.loss
    assert final.loss != once
    assert run.test is not None
    logits, _ = predict(TrainedModel.open(tmp_path / BEST).model, run.test)
    bare = TrainedModel.open(tmp_path / BEST, tta="none").model
    expected, _ = predict(with_tta(bare, tta), run.test)
    assert logits.equal(expected)


def test_flip_changes_nothing_for_a_model_that_is_symmetric() -> None:
    class Symmetric(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.sum(3).flatten(1)

    images = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(with_tta(Symmetric(), "flip")(images), Symmetric()(images))


def test_eval_takes_the_option_and_prints_it(softmaxce: Softmaxce, small: Path) -> None:
    assert softmaxce("train", "--config", str(small), "--quiet").returncode == 0
    figures = [json.loads(softmaxce("eval", "--json", *more).stdout) for more in ((), ("--tta", "flip_crops"))]
    assert [one["tta"] for one in figures] == ["none", "flip_crops"]
    assert figures[0]["nll"] != figures[1]["nll"]
    assert "test-time augmentation: flip" in softmaxce("eval", "--tta", "flip").stdout
    wrong = softmaxce("eval", "--tta", "flap")
    assert wrong.returncode == 2
    assert "flip_crops" in wrong.stderr
