"""`softmaxce bench train` and `bench startup` as they are typed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softmaxce.bench.clock import ratios, turns
from softmaxce.bench.throughput import Ways

from ..helpers import Completed, Softmaxce

WAYS = {"ceiling", "softmaxce", "plain"}
MADE_UP = """\
epochs: 2
data:
  {name: synthetic, size: 12, train: 512, test: 64, batch_size: 32, validation: 64,
  augment: [{name: random_crop, padding: 1}, {name: cutout, size: 3}]}
model: {name: cnn, channels: [8, 16]}
optimizer: {name: adamw, lr: 0.003}
"""


@pytest.fixture(scope="module")
def measured(forked: Callable[..., Completed], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `bench train --json` prints."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "made_up.yaml").write_text(MADE_UP)
    changes = ("--set", "precision=bf16", "--set", "model_ema_decay=0.9")
    command = ["softmaxce", "bench", "train", "--config", "made_up.yaml", "--rounds", "2", "--json", *changes]
    done = forked(folder, command, {})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_way_has_its_rate_and_its_ratios(measured: Any) -> None:
    assert (measured["config"], measured["batch_size"], measured["precision"]) == ("made_up", 32, "bf16")
    assert measured["left_out"] == ["cutout"]  # torchvision has none
    for figure in ("training", "evaluation"):
        assert set(measured[figure]) == WAYS
        for name, way in measured[figure].items():
            low, high = way["images_per_second"]["quartiles"]
            assert 0 < low <= way["images_per_second"]["median"] <= high
            assert (way["to_ceiling"]["median"] == 1.0) == (name == "ceiling")
            assert (way["to_plain"]["median"] == 1.0) == (name == "plain")


def test_an_epochs_parts_are_named_and_none_is_negative(measured: Any) -> None:
    parts = ["data", "forward", "loss", "backward", "step", "the rest", "evaluation", "table and checkpoint"]
    assert list(measured["epoch_seconds"]) == parts
    assert all(seconds >= 0 for seconds in measured["epoch_seconds"].values())


def test_the_tables_say_the_same_to_a_person(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (tmp_path / "made_up.yaml").write_text(MADE_UP)
    done = softmaxce("bench", "train", "--config", "made_up.yaml", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    for heading in (
        "training, batches of 32",
        "evaluation, batches of 64",
        "time of one epoch of softmaxce",
        "vs plain",
    ):
        assert heading in done.stdout
    assert "plain PyTorch leaves out cutout" in done.stdout
    assert "\x1b" not in done.stdout


def test_more_images_a_second_is_a_larger_ratio() -> None:
    ways = Ways.of({"ceiling": [100.0, 200.0], "softmaxce": [90.0, 180.0], "plain": [30.0, 60.0]})
    assert ways.to_ceiling["softmaxce"].median == pytest.approx(0.9)
    assert ways.to_plain["softmaxce"].median == pytest.approx(3.0)


def test_a_ratio_is_taken_within_a_round() -> None:
    assert ratios([2.0, 40.0, 6.0], [1.0, 10.0, 3.0]).median == 2.0


def test_whoever_goes_first_changes_with_the_round() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = turns({name: lambda name=name: turn(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert "".join(order) == "abba"
    assert found == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_startup_times_five_things_and_helps_ratio_is_to_typers_import(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (tmp_path / "made_up.yaml").write_text(MADE_UP)
    done = softmaxce("bench", "startup", "--config", "made_up.yaml", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["startup"]
    assert list(found) == ["typer and rich", "--help", "a config error", "the first step", "the whole run"]
    assert found["typer and rich"]["to_base"]["median"] == 1.0
    assert found["the first step"]["seconds"]["median"] < found["the whole run"]["seconds"]["median"]
    assert found["the first step"]["to_base"]["median"] > 1  # torch is imported on the way


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--config", "mnits"], "no recipe called 'mnits'; did you mean 'mnist'?"),
        (["train", "--set", "model=lenett"], "there is no 'lenett' among the models; did you mean 'lenet'?"),
        (["train", "--device", "cuda:99"], "device: 'cuda:99' is not there"),
        (["train", "--set", "data.name=mnist", "--set", "data.root=nowhere"], "MNIST is not in nowhere"),
        (["startup", "--config", "mnits"], "no recipe called 'mnits'; did you mean 'mnist'?"),
        (["startup", "--set", "epochs"], "write it as key=value"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(softmaxce: Softmaxce, arguments: list[str], line: str) -> None:
    done = softmaxce("bench", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
