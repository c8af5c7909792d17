"""`softmaxce average`: uniform and greedy averages of the weights of several runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import update_bn
from typer.testing import CliRunner

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.inference.averaging import greedily
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.runtime.random_state import seed_everything

from ..helpers import config

BASE: dict[str, Any] = {"epochs": 1, "data__noise": 1.5, "data__train": 200, "data__validation": 0.5}
CNN = {"name": "cnn", "channels": [2, 4], "hidden": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one initial state with other rates (mlp), two of a network with batch normalization, and odd ones."""
    folder = tmp_path_factory.mktemp("runs")
    changes: dict[str, dict[str, Any]] = {
        **{f"mlp{i}": {"optimizer": {"name": "sgd", "lr": lr}} for i, lr in enumerate((2.5, 1.0, 4.0, 3.0))},
        **{f"cnn{i}": {"model": CNN, "optimizer": {"name": "sgd", "lr": lr}} for i, lr in enumerate((0.1, 0.2))},
        "normalized": {"data__normalize": "none"},
        "seeded": {"seed": 1, "data__normalize": "none"},
        "wide": {"model": {"name": "mlp", "hidden": [9]}},
        "classes": {"data__classes": 4},
    }
    for name, changed in changes.items():
        session.train(build_run(config(**{**BASE, **changed})), folder / name)
    return folder


def average(app: typer.Typer, *arguments: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, ["average", *arguments])
    assert done.exit_code == status, done.output + done.stderr
    return done


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "best.safetensors")


def accuracy(state: dict[str, Tensor], images: Tensor, labels: Tensor) -> float:
    """Of the mlp, by hand: [N, D] normalized images, [N]."""
    bias1, weight1, bias2, weight2 = (state[name] for name in sorted(state))
    hidden = torch.relu(images @ weight1.T + bias1)
    return ((hidden @ weight2.T + bias2).argmax(1) == labels).double().mean().item()


def test_the_uniform_average_is_the_mean_of_the_weights_with_the_statistics_of_torchs_update_bn(
    app: typer.Typer, runs: Path, tmp_path: Path
) -> None:
    average(app, str(runs / "cnn0"), str(runs / "cnn1"), "--output", str(tmp_path / "soup"))
    one, two, soup = (weights(folder) for folder in (runs / "cnn0", runs / "cnn1", tmp_path / "soup"))
    run = build_run(config(**BASE, model=CNN))
    run.model.load_state_dict(soup)
    seed_everything(0)
    update_bn(list(run.train.epoch(1)), run.model)
    for name, tensor in soup.items():
        if "running" in name or "num_batches" in name:
            torch.testing.assert_close(tensor, run.model.state_dict()[name])
        else:
            torch.testing.assert_close(tensor, (one[name] + two[name]) / 2, rtol=1e-6, atol=1e-7)
    assert {name.rpartition(".")[2] for name in soup} >= {"running_mean", "running_var", "weight"}


def test_the_greedy_average_is_that_of_the_papers_algorithm_written_directly(
    app: typer.Typer, runs: Path, tmp_path: Path
) -> None:
    named = [str(runs / f"mlp{i}") for i in range(4)]
    result = json.loads(average(app, *named, "--greedy", "--output", str(tmp_path / "soup"), "--json").stdout)

    run = build_run(config(**BASE))
    assert run.validation is not None
    batches = list(run.validation.epoch(0))
    images = torch.cat([batch for batch, _ in batches]).flatten(1)
    labels = torch.cat([ids for _, ids in batches])

    def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}

    def val_acc(states: list[dict[str, Tensor]]) -> float:
        return accuracy(mean(states), images, labels) if states else 0.0

    thetas = sorted((weights(Path(name)) for name in named), key=lambda state: val_acc([state]), reverse=True)
    ingredients: list[dict[str, Tensor]] = []
    for theta in thetas:
        if val_acc([*ingredients, theta]) >= val_acc(ingredients):
            ingredients.append(theta)

    for name, tensor in weights(tmp_path / "soup").items():
        torch.testing.assert_close(tensor, mean(ingredients)[name], rtol=1e-6, atol=1e-7)
    assert 1 < len(ingredients) < 4  # otherwise the test would tell little
    assert sum(one["averaged"] for one in result["ingredients"]) == len(ingredients)
    assert result["value"] == pytest.approx(val_acc(ingredients))
    record = json.loads((tmp_path / "soup" / "run.json").read_text())
    assert [one["sha256"] for one in record["averaged"]["runs"]] == [one["sha256"] for one in result["ingredients"]]


def test_greedy_keeps_what_makes_the_average_no_worse() -> None:
    quality = {(0,): 0.8, (0, 1): 0.7, (0, 2): 0.8, (0, 2, 3): 0.9}
    assert greedily([0, 1, 2, 3], lambda chosen: quality[tuple(chosen)]) == [0, 2, 3]
    assert greedily([0, 1], lambda chosen: np.nan if len(chosen) > 1 else 0.5) == [0]


def test_an_average_is_a_run_folder_for_other_commands_but_cannot_be_resumed(
    app: typer.Typer, runs: Path, tmp_path: Path
) -> None:
    soup = tmp_path / "soup"
    shown = average(app, str(runs / "mlp0"), str(runs / "mlp3"), "--output", str(soup)).stdout
    assert f"next: softmaxce eval {soup}" in shown
    done = CliRunner().invoke(app, ["eval", str(soup), "--split", "val", "--json"])
    value = json.loads(done.stdout)["accuracy"]
    assert f"{value:.4f}" in next(line for line in shown.splitlines() if line.startswith("uniform average of 2"))
    assert TrainedModel.open(soup).record["averaged"]["method"] == "uniform"
    refused = CliRunner().invoke(app, ["train", "--resume", str(soup)])
    assert refused.exit_code == 2
    assert "is an average of runs, which cannot be resumed" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mlp0", "an average needs at least two runs"),
        ("mlp0 cnn0", "is a cnn, and"),
        ("mlp0 wide --output new", "its weights are of another model"),
        ("mlp0 classes", "its classes are not those of"),
        ("mlp0 normalized", "the normalization of its images is another than that of"),
        ("normalized seeded --greedy", "has other validation images than"),
        ("mlp0 mlp0", "is the same checkpoint as"),
        ("mlp0 nowhere", "there is no such run folder or checkpoint"),
        ("mlp0 mlp3 --output mlp0", "the folder is not empty"),
    ],
)
def test_runs_that_cannot_be_averaged_are_one_line_and_nothing_is_written(
    words: str, message: str, app: typer.Typer, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    before = sorted(runs.rglob("*"))
    done = average(app, *words.split(), status=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(runs.rglob("*")) == before
