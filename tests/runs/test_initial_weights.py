"""`train --from RUN` and `model.weights_from`: what is taken from the other run, what is new, what is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import typer
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

import softmaxce
from softmaxce.config import yamlfile
from softmaxce.config.schema import schema
from softmaxce.data.splits import Dataset, InMemory

# A step of this size changes no weight, so that the weights at the end are those at the start.
CONFIG = """\
epochs: 1
data: {name: synthetic, train: 96, test: 40, batch_size: 32, validation: 0.25}
model: {name: mlp, hidden: [16]}
optimizer: {name: sgd, lr: 0}
"""


def train(app: typer.Typer, *words: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, words), "-q"])


@pytest.fixture
def source(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in the current folder, beside still.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("still.yaml").write_text(CONFIG)
    assert train(app, "still.yaml", "--set", "optimizer.lr=0.05", "--output", "source").exit_code == 0
    return Path("source")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "best.safetensors"))


def equal(run: Path, other: Path) -> dict[str, bool]:
    ours, theirs = weights(run), weights(other)
    return {name: torch.equal(ours[name], theirs[name]) for name in ours}


@pytest.mark.parametrize("more", [(), ("--set", "model_ema_decay=0.5"), ("--set", "precision=bf16")])
def test_a_run_begins_with_the_other_runs_weights_and_records_where_they_are_from(
    app: typer.Typer, source: Path, more: tuple[str, ...]
) -> None:
    done = train(app, "still.yaml", "--seed", "3", "--from", source, "--output", "run", *more)
    assert done.exit_code == 0, done.output
    assert done.stderr == "starts with the weights of source/best.safetensors (epoch 1)\n"
    assert all(equal(Path("run"), source).values())
    assert json.loads(Path("run/run.json").read_text())["weights_from"] == {
        "run": str(source.resolve()),
        "checkpoint": "best.safetensors",
        "sha256": hashlib.sha256((source / "best.safetensors").read_bytes()).hexdigest(),
        "epoch": 1,
        "new": [],
    }


def test_other_classes_get_a_new_head_which_a_line_says_and_resuming_needs_the_other_run_no_more(
    app: typer.Typer, source: Path
) -> None:
    recipe = Path("configs", "few.yaml")
    recipe.parent.mkdir()
    shutil.copytree(source, "configs/beside")
    recipe.write_text(CONFIG.replace("[16]", "[16], weights_from: beside").replace("40,", "40, classes: 4,"))
    jsonschema.validate(yamlfile.read(recipe).data, schema())
    dry = CliRunner().invoke(app, ["train", str(recipe), "--dry-run"])
    done = train(app, recipe, "--output", "run")
    line = (
        "starts with the weights of configs/beside/best.safetensors (epoch 1); the 4 classes are others than its 10, "
        "so the head is new: 3.weight, 3.bias\n"
    )
    assert (dry.exit_code, dry.stderr, done.exit_code, done.stderr) == (0, line, 0, line)
    same = {name: same for name, same in equal(Path("run"), source).items() if not name.startswith("3.")}
    assert all(same.values())
    assert {"1.weight", "1.bias"} <= set(same)
    record = json.loads(Path("run/run.json").read_text())["weights_from"]
    assert record["new"] == ["3.weight", "3.bias"]
    shutil.rmtree("configs")
    resumed = train(app, "--resume", "run", "--epochs", "2")
    assert (resumed.exit_code, resumed.stderr) == (0, "")
    assert json.loads(Path("run/run.json").read_text())["weights_from"] == record
    other = train(app, "--resume", "run", "--epochs", "3", "--from", "source")
    assert other.exit_code == 2
    assert "model.weights_from was 'configs/beside' and is now 'source'" in other.stderr


def blobs(classes: tuple[str, ...]) -> Dataset:
    labels = torch.arange(40) % len(classes)
    images = (labels * 60).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    return Dataset(train=InMemory(images, labels), test=InMemory(images, labels), classes=classes)


def test_as_many_classes_of_other_names_get_a_new_head_too(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"epochs": 1, "model": {"name": "mlp", "hidden": [8]}, "optimizer": {"name": "sgd", "lr": 0}}
    softmaxce.train(keys, output="cats", dataset=blobs(("cat", "dog")), quiet=True)
    for classes, new in ((("cat", "dog"), False), (("dog", "fox"), True)):
        run = softmaxce.build_run(keys, {"model.weights_from": "cats", "seed": 5}, dataset=blobs(classes))
        loaded = dict(load_file("cats/last.safetensors"))
        same = {name: torch.equal(tensor, loaded[name]) for name, tensor in run.model.state_dict().items()}
        assert same == {"1.weight": True, "1.bias": True, "3.weight": not new, "3.bias": not new}
        assert ("the head is new" in capsys.readouterr().err) == new


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--from", "nowhere"), ("--from: nowhere: there is no such run folder or checkpoint",)),
        (("--from", "still.yaml"), ("--from: still.yaml: is not a readable checkpoint",)),
        (
            ("--from", "source", "--set", "model.hidden=[17]"),
            (
                "--from: source/best.safetensors: its weights are of another model: ",
                "'1.weight' is [16, 256] but in the model [17, 256]",
                "the run has mlp (hidden [16], dropout 0.0), the config mlp (hidden [17], dropout 0.0)",
            ),
        ),
        (("--from", "source", "--set", "model=lenet"), ("the run has mlp (hidden [16]", "the config lenet")),
        (("--set", "model.weights_from=3"), ("weights_from must be a run folder or a checkpoint, got 3",)),
        (("--set", "model.weight_from=source"), ("takes no 'weight_from'; did you mean 'weights_from'?",)),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line_and_leaves_no_folder(
    app: typer.Typer, source: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    done = train(app, "still.yaml", *words, "--output", "run")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in parts)
    assert not Path("run").exists()


def test_a_model_that_is_only_its_head_is_refused_for_other_classes(app: typer.Typer, source: Path) -> None:
    assert train(app, "still.yaml", "--model", "linear", "--output", "one").exit_code == 0
    line = ("still.yaml", "--model", "linear", "--from", "one", "--output", "two")
    done = train(app, *line, "--set", "data.classes=4")
    assert done.exit_code == 2
    assert "its classes are others, and linear has no other weights" in done.stderr
    assert train(app, *line).exit_code == 0


def test_a_sweep_reports_the_run_that_does_not_fit_before_it_trains(app: typer.Typer, source: Path) -> None:
    assert train(app, "still.yaml", "--model", "linear", "--output", "one").exit_code == 0
    done = CliRunner().invoke(app, ["sweep", "still.yaml", "--set", "model.weights_from=source,one", "--output", "all"])
    assert done.exit_code == 2
    assert "model.weights_from=one: one/best.safetensors: its weights are of another model" in done.stderr
    assert not Path("all").exists()
