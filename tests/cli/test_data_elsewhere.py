"""A run's data is found from another folder, and never replaced by other images that lie where run.json says."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

CONFIG = """\
epochs: 1
data: {name: image_folder, root: photos, validation: 0.4, batch_size: 8, cache: false}
model: linear
optimizer: {name: sgd, lr: 0.02}
"""
NET = """\
from torch import nn

class Net(nn.Sequential):
    def __init__(self, in_channels, image_size, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size[0] * image_size[1], num_classes))
"""
# Every command that reads a run's data; each works on a copy of the run.
COMMANDS = {
    "eval": ["eval", "run"],
    "eval of the validation split": ["eval", "run", "--split", "validation"],
    "calibrate": ["calibrate", "run"],
    "report": ["report", "run"],
    "explain": ["explain", "run", "--index", "1"],
    "compare": ["compare", "run", "run"],
}


def photos(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for split, count in (("train", 20), ("test", 8)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(110 + 20 * label, 60, (6, 6, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


def run(app: typer.Typer, *arguments: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == status, done.output
    return done


@pytest.fixture
def there(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run whose data.root was relative to the config's folder; the current folder is another."""
    photos(tmp_path / "home/photos")
    (tmp_path / "home/c.yaml").write_text(CONFIG)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run(app, "train", "home/c.yaml", "--output", "elsewhere/run", "-q")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_every_command_finds_the_data_of_a_run_from_another_folder(app: typer.Typer, there: Path) -> None:
    home = str(there / "home/photos")
    said = f"its data is not in {there / 'elsewhere/photos'}; the same images are read from {home}"
    shutil.copytree(home, "photos")
    expected = json.loads(run(app, "eval", "run", "--json").stdout)
    shutil.rmtree("photos")
    found = json.loads(run(app, "eval", "run", "--json").stdout)
    assert [found[name] for name in ("loss", "accuracy", "nll")] == [
        expected[name] for name in ("loss", "accuracy", "nll")
    ]
    for name, command in COMMANDS.items():
        assert said in run(app, *command).stderr, name
    resumed = run(app, "train", "--resume", "run", "--epochs", "2", "-q")
    assert said in resumed.stderr
    assert len((there / "elsewhere/run/metrics.jsonl").read_text().splitlines()) == 2


def test_the_current_folder_has_precedence(app: typer.Typer, there: Path) -> None:
    photos(there / "elsewhere/photos", seed=1)
    refused = run(app, "eval", "run", status=2)
    assert "the test images are not those of the run" in refused.stderr
    shutil.rmtree("photos")
    shutil.copytree("../home/photos", "photos")
    assert run(app, "eval", "run").stderr == ""


def test_data_that_has_moved_is_named_by_an_option(app: typer.Typer, there: Path) -> None:
    (there / "home/photos").rename(there / "moved")
    for name, command in COMMANDS.items():
        refused = run(app, *command, status=2)
        places = f"{there / 'elsewhere/photos'}, {there / 'home/photos'}"
        assert f"there is no folder 'photos'; looked in {places}; name its folder with --data" in refused.stderr, name
        if "eval" not in name:
            assert run(app, *command, "--data", "../moved").exit_code == 0, name
            photos(there / "others", seed=1)
            others = run(app, *command, "--data", "../others", status=2)
            assert "images are not those of the run" in others.stderr, name
            shutil.rmtree(there / "others")
            missing = run(app, *command, "--data", "nowhere", status=2)
            assert "--data nowhere: there is no such folder" in missing.stderr, name
    run(app, "train", "--resume", "run", "--epochs", "2", "-q", "--set", "data.root=../moved")


@pytest.mark.parametrize("how", ["changed", "named by another's run.json", "not fingerprinted"])
def test_other_images_at_the_recorded_path_are_refused_even_if_changed_data_is_allowed(
    app: typer.Typer, there: Path, how: str
) -> None:
    file = there / "elsewhere/run/run.json"
    record = json.loads(file.read_text())
    assert record["environment"]["data_root"] == str(there / "home/photos")
    if how == "changed":
        (there / "home/photos/test/cat/0.png").unlink()
    elif how == "not fingerprinted":
        del record["environment"]["data"]
    else:
        photos(there / "private", seed=1)
        record["environment"]["data_root"] = str(there / "private")
    file.write_text(json.dumps(record))
    for command in (*COMMANDS.values(), ["train", "--resume", "run", "--epochs", "2", "-q"]):
        refused = run(app, *command, "--allow-changed-data", status=2)
        assert "which run.json names, are not known to be those of the training" in refused.stderr, command


def test_code_and_data_beside_a_config_are_used(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "home/photos")
    (tmp_path / "home/c.yaml").write_text(CONFIG.replace("linear", "net.py:Net"))
    (tmp_path / "home/net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    run(app, "train", "home/c.yaml", "--output", "run", "-q")
    assert "16 images" in run(app, "eval", "run", "--trust-code").stdout  # the code's path is recorded
    (tmp_path / "home/net.py").unlink()
    assert "nor is it beside the config" in run(app, "train", "home/c.yaml", "-q", status=2).stderr
    option = run(app, "train", "home/c.yaml", "--model", "linear", "--set", "data.root=photo", "-q", status=2)
    assert f"there is no folder 'photo'; looked in {tmp_path / 'photo'}\n" in option.stderr
    shutil.rmtree(tmp_path / "home/photos")
    both = f"looked in {tmp_path / 'photos'}, {tmp_path / 'home/photos'}"
    assert both in run(app, "train", "home/c.yaml", "--model", "linear", "-q", status=2).stderr


def test_a_data_set_in_the_default_folder_is_read_after_the_default_has_changed(
    app: typer.Typer, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTMAXCE_DATA", str(real_data))
    data = "data: {name: mnist, train_limit: 500, validation: 100}"
    (tmp_path / "m.yaml").write_text(f"epochs: 1\n{data}\nmodel: linear\noptimizer: {{name: sgd, lr: 0.1}}\n")
    run(app, "train", "m.yaml", "--output", "run", "-q")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SOFTMAXCE_DATA", str(tmp_path / "empty"))
    found = run(app, "eval", "run")
    assert f"the same images are read from {real_data.resolve()}" in found.stderr
    assert "10,000 images" in found.stdout


def test_eval_of_a_split_takes_the_folder_that_the_data_was_moved_to(app: typer.Typer, there: Path) -> None:
    expected = json.loads(run(app, "eval", "run", "--split", "validation", "--json").stdout)
    (there / "home/photos").rename(there / "moved")
    moved = json.loads(run(app, "eval", "run", "--data", "../moved", "--split", "validation", "--json").stdout)
    assert [moved[name] for name in ("split", "images", "nll")] == ["validation", expected["images"], expected["nll"]]
    Image.new("RGB", (6, 6)).save(there / "moved/train/cat/new.png")
    refused = run(app, "eval", "run", "--data", "../moved", "--split", "train", status=2)
    assert "the train images are not those" in refused.stderr


def test_without_a_test_split_eval_is_of_the_validation_split(app: typer.Typer, there: Path) -> None:
    shutil.rmtree(there / "home/photos/test")
    line = ["train", "../home/c.yaml", "--set", "data.test_fraction=0", "--output", "untested", "-q"]
    run(app, *line)
    assert json.loads(run(app, "eval", "untested", "--json").stdout)["split"] == "validation"


@pytest.mark.parametrize(
    "data",
    [
        "{name: mnist, root: ~nobody-here/x}",
        "{name: image_folder, root: ~nobody-here/x}",
        "{name: image_list, file: ~nobody-here/x.csv, root: .}",
        "{name: shards, urls: '~nobody-here/x.tar', root: .}",
    ],
)
def test_the_home_folder_of_a_user_that_does_not_exist_is_one_line_with_the_path(
    app: typer.Typer, tmp_path: Path, data: str
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(f"epochs: 1\ndata: {data}\nmodel: linear\noptimizer: {{name: sgd, lr: 0.1}}\n")
    done = CliRunner().invoke(app, ["train", "--config", str(config), "--output", str(tmp_path / "run")])
    assert done.exit_code == 2, done.output
    assert "~nobody-here/x" in done.stderr
    assert done.stderr.startswith("error: ")
