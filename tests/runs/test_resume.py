"""Which run is the same run: the config keys that count, the images, and requirements judged each time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from softmaxce.config import reader as configs
from softmaxce.config.keys import Config, Data, signature_of_section
from softmaxce.config.signatures import signature_of
from softmaxce.data.folder import image_folder
from softmaxce.runs.folder import begun_by
from softmaxce.runs.resume import DATA_SET_RULES, RULES, rule_of

SYNTHETIC = """\
epochs: 1
data: {name: synthetic, train: 96, test: 60, noise: 0.8, batch_size: 32, validation: 0.25}
model: {name: mlp, hidden: [8]}
optimizer: {name: sgd, lr: 0.05}
"""
PHOTOS = """\
epochs: 1
data: {name: image_folder, root: photos, channels: 1, batch_size: 8, validation: 0.3, cache: false}
model: linear
optimizer: {name: sgd, lr: 0.1}
"""
REFUSAL = "add --allow-changed-data to use the current images"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "c.yaml").write_text(SYNTHETIC)
    (tmp_path / "p.yaml").write_text(PHOTOS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photos(folder: Path, seed: int = 0, kind: str = "png") -> None:
    """Two classes of 8x8 grey noise that overlap, so that no model is right about all."""
    chance = np.random.default_rng(seed)
    for part, count in (("train", 20), ("test", 8)):
        for name, low in (("dark", 0), ("light", 12)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(low, low + 128, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number:02}.{kind}")


def run(app: typer.Typer, *arguments: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == status, done.output
    return done


def last_event(done: Any) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return event


# -- the table of keys ------------------------------------------------------------------------------------------------


def test_every_config_key_has_a_rule() -> None:
    no_keys = {"source", "augment", "recipe", "recorded", "options", "elsewhere", "resolved"} | {"weights_from"}
    fields = {argument.name for argument in signature_of_section(Config).arguments} - no_keys
    data = {f"data.{argument.name}" for argument in signature_of_section(Data).arguments}
    assert set(RULES) == fields | data


def test_the_data_sets_rules_name_arguments_that_they_take() -> None:
    assert {key.removeprefix("data.") for key in DATA_SET_RULES["image_folder"]} <= set(
        signature_of(image_folder).names()
    )
    assert rule_of("data.workers", "image_folder").may_change
    assert not rule_of("data.workers", "mylab.py:photos").may_change  # what it means there, its author knows
    assert rule_of("data.noise", "synthetic") == rule_of("model.hidden") == RULES["model"]


FREE = [
    *("keep_memory=false", "checkpoint_every=1 steps", "cuda_graph=false", "data.eval_batch_size=7"),
    *("data.download=true", "device=cpu", "data.root=elsewhere", "metrics=[macro_f1]"),
]


def test_a_key_that_changes_no_metrics_changes_no_weight_and_makes_no_other_run(app: typer.Typer, here: Path) -> None:
    assert {text.split("=")[0] for text in FREE} == {key for key, rule in RULES.items() if not rule.changes_metrics}
    run(app, "train", "-c", "c.yaml", "--seeds", "2", "-q")
    run(app, "sweep", "-c", "c.yaml", "--set", "seed=0,1", "-q", "--output", "grid")
    weights = load_file(here / "runs/c/1/best.safetensors")
    for number, text in enumerate(FREE):
        again = run(app, "train", "-c", "c.yaml", "--seeds", "2", "-q", "--resume", "auto", "--set", text)
        assert again.stderr.count("already finished") == 2, text
        again = run(
            app, "sweep", "-c", "c.yaml", "--set", "seed=0,1", "--set", text, "--output", "grid", "--resume", "auto"
        )
        assert again.stderr.count("already finished") == 2, text
        run(app, "train", "-c", "c.yaml", "--set", text, "--output", f"free-{number}", "-q")
        other = load_file(here / f"free-{number}/best.safetensors")
        assert all((weights[name] == other[name]).all() for name in weights), text
    assert len(list((here / "runs/c").iterdir())) == 2
    every = ",".join(text for text in FREE if not text.startswith("data.root"))
    options = [word for text in every.split(",") for word in ("--set", text)]
    run(app, "train", "-c", "c.yaml", "--seed", "2", "-q", *options)
    comparison = last_event(run(app, "compare", "runs/c/1", "runs/c/2", "runs/c/3", "--json"))
    assert [group["runs"] for group in comparison["seeds"]] == [["runs/c/1", "runs/c/2", "runs/c/3"]]


# -- requirements -----------------------------------------------------------------------------------------------------

DIGITS = ("-c", "digits", "--set", "model=linear", "--set", "data.train_limit=200", "--epochs", "1")
SEVERAL = {
    "seeds": ("train", *DIGITS, "--seeds", "2"),
    "sweep": ("sweep", *DIGITS, "--set", "optimizer.lr=0.001,0.002"),
    "seeds in a folder": ("train", *DIGITS, "--seeds", "2", "--output", "s"),
    "one run": ("train", *DIGITS),
    "one run in a folder": ("train", *DIGITS, "--output", "s"),
}


@pytest.mark.parametrize("line", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("figure", ["accuracy", "ece"])  # recorded in run.json; to be evaluated again
def test_a_finished_run_meets_a_requirement_no_more_than_a_fresh_one(
    app: typer.Typer, here: Path, line: tuple[str, ...], figure: str
) -> None:
    impossible, easy = f"{figure}>=0.9999", f"{figure}>=0"
    run(app, *line, "-q", "--require", impossible, status=1)
    folders = sorted(file.parent for file in here.rglob("run.json"))
    weights = [(folder / "last.safetensors").read_bytes() for folder in folders]
    seconds = [json.loads((folder / "run.json").read_text())["seconds"] for folder in folders]
    again = run(app, *line, "-q", "--resume", "auto", "--require", impossible, status=1)
    answers = [text for text in again.output.splitlines() if text.startswith("require")]
    assert len(answers) == len(folders)
    assert all("NOT met" in answer for answer in answers)
    run(app, *line, "-q", "--resume", "auto", "--require", easy)
    assert sorted(file.parent for file in here.rglob("run.json")) == folders
    assert [(folder / "last.safetensors").read_bytes() for folder in folders] == weights
    assert [json.loads((folder / "run.json").read_text())["seconds"] for folder in folders] == seconds


def test_a_requirement_that_no_split_can_answer_is_refused_before_training(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    shutil.rmtree(here / "photos/test")
    line = ("train", "-c", "p.yaml", "--set", "data.validation=null", "--require", "accuracy>=0.5")
    done = run(app, *line, status=2)
    (error,) = done.stderr.splitlines()
    assert error.startswith(
        "error: --require accuracy>=0.5: there is no test or validation split to evaluate; set data."
    )
    assert not (here / "runs").exists()


# -- the same images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "several", [("train", "--seeds", "2"), ("sweep", "--set", "seed=0,1")], ids=lambda words: words[0]
)
def test_a_moved_folder_is_the_same_data_and_another_folder_is_not(
    app: typer.Typer, here: Path, several: tuple[str, ...]
) -> None:
    photos(here / "photos")
    photos(here / "others", seed=1)
    line = (several[0], "-c", "p.yaml", *several[1:], "--resume", "auto")
    run(app, *line)
    other = run(app, *line, "--set", "data.root=others")
    assert "already finished" not in other.stderr
    why = "its train and validation and test images are not those in others"
    assert f"runs/p/1: has this config, but {why}; it is not resumed" in other.stderr
    assert len(list((here / "runs/p").iterdir())) == 4
    insisting = run(app, *line, "--set", "data.root=photos", "--allow-changed-data")  # is none the less exact
    assert "[1/2] seed" in insisting.stderr
    assert insisting.stderr.count("already finished in runs/p/1\n") == 1
    (here / "photos").rename(here / "moved")
    moved = run(app, *line, "--set", "data.root=moved", "--require", "accuracy>=0")
    assert moved.stderr.count("already finished") == 2
    assert "already finished in runs/p/1" in moved.stderr
    assert len(list((here / "runs/p").iterdir())) == 4


@pytest.mark.parametrize(
    "several",
    [("train", "--seeds", "2"), ("sweep", "--set", "seed=0,1"), ("train", "--epochs", "1")],
    ids=["seeds", "sweep", "train"],
)
def test_a_finished_run_on_other_images_is_refused_where_its_folder_is_named(
    app: typer.Typer, here: Path, several: tuple[str, ...]
) -> None:
    photos(here / "photos")
    line = (several[0], "-c", "p.yaml", *several[1:], "--output", "s", "--resume", "auto", "-q")
    run(app, *line)
    Image.new("L", (8, 8), 200).save(here / "photos/test/light/00.png")
    before = {file: file.read_bytes() for file in here.rglob("s/**/*") if file.is_file()}
    done = run(app, *line, status=2)
    (error,) = done.stderr.splitlines()
    assert "the test images are not those of the run" in error
    assert REFUSAL in error
    assert {file: file.read_bytes() for file in before} == before
    run(app, *line, "--allow-changed-data")


def test_a_resumed_run_on_other_images_is_refused_unless_the_user_insists(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    run(app, "train", "-c", "p.yaml", "--output", "out", "-q")
    shutil.copy(here / "photos/train/dark/00.png", here / "photos/train/dark/20.png")
    record = (here / "out/run.json").read_text()
    for require in ([], ["--require", "accuracy>=0"]):
        done = run(app, "train", "--resume", "out", "--epochs", "2", "-q", *require, status=2)
        (error,) = done.stderr.splitlines()
        assert error.startswith("error: out: the train images are not those of the run")
        assert REFUSAL in error
    assert (here / "out/run.json").read_text() == record
    done = run(app, "train", "--resume", "out", "--epochs", "2", "-q", "--allow-changed-data")
    assert "warning: out: the train images are not those" in done.stderr
    assert json.loads((here / "out/run.json").read_text())["earlier_environments"][0]["data"]
    assert "warning" not in run(app, "train", "--resume", "out", "--epochs", "3", "-q").stderr  # it is these by now


def test_classes_of_other_names_are_other_data(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    run(app, "train", "-c", "p.yaml", "--seeds", "2", "-q")
    for part in ("train", "test"):
        (here / "photos" / part / "light").rename(here / "photos" / part / "pale")
    done = run(app, "train", "--resume", "runs/p/1", "--epochs", "2", status=2)
    assert "other classes than this run was trained on: 'pale' instead of 'light'" in done.stderr
    again = run(app, "train", "-c", "p.yaml", "--seeds", "2", "-q", "--resume", "auto")
    assert "already finished" not in again.stderr


def test_files_of_the_same_names_and_sizes_are_other_data_if_their_contents_are(app: typer.Typer, here: Path) -> None:
    photos(here / "photos", kind="bmp")
    photos(here / "others", seed=1, kind="bmp")
    line = (
        "train",
        "-c",
        "p.yaml",
        "--set",
        "data.in_memory=false",
        "--set",
        "data.workers=0",
        "-q",
        "--resume",
        "auto",
    )
    run(app, *line)
    assert "has this config, but" in run(app, *line, "--set", "data.root=others").stderr
    assert len(list((here / "runs/p").iterdir())) == 2


COMMANDS = {
    "eval": ("eval", "out"),
    "eval of a checkpoint": ("eval", "out/best.safetensors"),
    "eval with a requirement": ("eval", "out", "--require", "accuracy>=0"),
    "calibrate": ("calibrate", "out"),
    "compare": ("compare", "out", "out"),
    "report": ("report", "out"),
    "explain": ("explain", "out", "--index", "0"),
    "explain a blend": ("explain", "out", "--index", "0", "--mix", "1"),
}


def test_no_command_measures_a_run_on_other_images_than_its_own_unless_the_user_insists(
    app: typer.Typer, here: Path
) -> None:
    photos(here / "photos")
    run(app, "train", "-c", "p.yaml", "--output", "out", "-q")
    for line in COMMANDS.values():
        assert "warning: out" not in run(app, *line).stderr, line  # calibrate warns about its few images
    shutil.rmtree(here / "out/report", ignore_errors=True)
    for name in ("calibration.json", "report.html"):
        (here / "out" / name).unlink()
    before = sorted(here.rglob("out/*"))
    shutil.copy(here / "photos/test/dark/00.png", here / "photos/test/dark/08.png")
    for line in COMMANDS.values():
        done = run(app, *line, status=2)
        (error,) = done.stderr.splitlines()
        assert error.startswith("error: out: the test images are not those of the run"), line
        assert REFUSAL in error
        assert done.stdout == ""
    assert sorted(here.rglob("out/*")) == before
    for line in COMMANDS.values():
        insisting = run(app, *line, "--allow-changed-data")
        assert "warning: out: the test images are not those of the run (16 then, 17 now)\n" in insisting.stderr, line
    # the split that did not change is measured as ever, and so is a folder that the user names
    assert run(app, "eval", "out", "--split", "train").stderr == ""
    assert run(app, "eval", "out", "--data", "photos").stderr == ""


def test_a_split_that_is_gone_or_new_is_other_data(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    (here / "photos/test").rename(here / "aside")
    run(app, "train", "-c", "p.yaml", "--output", "out", "-q")
    (here / "aside").rename(here / "photos/test")
    assert "the test images are not those" in run(app, "eval", "out", status=2).stderr
    done = run(app, "train", "--resume", "out", "--epochs", "2", "-q", status=2)
    assert "the test images are not those" in done.stderr
    run(app, "train", "-c", "p.yaml", "--output", "whole", "-q")
    shutil.rmtree(here / "photos/test")
    for command in ("eval", "report"):  # neither takes another split for it
        assert "this run has no test split" in run(app, command, "whole", status=2).stderr
    assert "the test images are not those" in run(app, "train", "--resume", "whole", status=2).stderr


def test_a_run_made_before_fingerprints_were_recorded_is_used_with_a_warning(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    run(app, "train", "-c", "p.yaml", "-q")
    file = here / "runs/p/1/run.json"
    record = json.loads(file.read_text())
    del record["environment"]["data"], record["environment"]["data_set"]
    file.write_text(json.dumps(record))
    known = "images are those of the training is not known: run.json holds no fingerprints of them"
    assert f"warning: runs/p/1: whether the test {known}" in run(app, "eval", "runs/p/1").stderr
    several = run(app, "train", "-c", "p.yaml", "--seeds", "2", "--resume", "auto", "-q")
    assert "warning: runs/p/1: may have been trained on other images (unknown)" in several.stderr
    assert "[1/2] seed-0: already finished in runs/p/1" in several.stderr
    again = run(app, "train", "-c", "p.yaml", "--resume", "auto", "-q")
    assert f"whether the train and validation and test {known}" in again.stderr
    assert sorted(file.name for file in (here / "runs/p").iterdir()) == ["1", "2"]
    shutil.copy(here / "runs/p/1/best.safetensors", here / "alone.safetensors")
    alone = run(app, "eval", "alone.safetensors")
    assert "there is no run.json beside it" in alone.stderr


def test_only_runs_on_the_same_data_set_differ_by_seed_alone(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    photos(here / "others", seed=1)
    shutil.rmtree(here / "others/test")
    shutil.copytree(here / "photos/test", here / "others/test")  # the same test images, to be compared on
    shutil.copytree(here / "photos", here / "copied")
    for name, seed, root in (("a", 0, "photos"), ("b", 1, "others"), ("c", 2, "copied"), ("d", 0, "others")):
        run(app, "train", "-c", "p.yaml", "--seed", str(seed), "--set", f"data.root={root}", "--output", name, "-q")
    comparison = last_event(run(app, "compare", "a", "b", "c", "d", "--json"))
    assert [group["runs"] for group in comparison["seeds"]] == [["a", "c"], ["b", "d"]]
    assert [row.get("mcnemar") is None for row in comparison["runs"][1:]] == [False, True, False]
    assert "2 was trained on other images than 1." in run(app, "compare", "a", "b").stdout


def test_other_photos_in_two_folders_are_never_the_same_files_at_another_size(app: typer.Typer, here: Path) -> None:
    photos(here / "photos")
    photos(here / "others", seed=1)
    for name, root, size in (("a", "photos", 8), ("b", "others", 6), ("c", "photos", 6)):
        options = ("--set", f"data.root={root}", "--set", f"data.size={size}")
        run(app, "train", "-c", "p.yaml", *options, "--output", name, "-q")
    comparison = last_event(run(app, "compare", "a", "b", "c", "--json"))
    assert comparison["runs"][1]["mcnemar"] is None
    assert comparison["runs"][2]["mcnemar"] is not None


OWN_DATA = """
from softmaxce.data.datasets import synthetic

def by_seed(*, seed):
    return synthetic(train=96, test=60, image_seed=seed)
"""


@pytest.mark.parametrize(("data", "same"), [("synthetic", True), ("own.py:by_seed", False)])
def test_several_seeds_are_one_group_and_share_the_images_unless_the_data_set_takes_the_seed(
    data: str, same: bool, app: typer.Typer, here: Path
) -> None:
    (here / "own.py").write_text(OWN_DATA)
    run(app, "train", "-c", "c.yaml", "--set", f"data={{name: '{data}', batch_size: 32}}", "--seeds", "2", "-q")
    comparison = last_event(run(app, "compare", "runs/c/1", "runs/c/2", "--json", "--trust-code"))
    assert len(comparison["seeds"]) == 1
    first, second = (json.loads(file.read_text())["environment"]["data"] for file in here.glob("runs/c/*/run.json"))
    assert (first == second) == same


def test_an_older_run_on_synthetic_images_keeps_those_that_its_seed_drew(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run/config.yaml").write_text("seed: 3\n" + SYNTHETIC)
    assert configs.load("run/config.yaml").source.arguments["image_seed"] == 0  # a user's file
    (here / "run/run.json").write_text("{}")
    assert configs.load("run/config.yaml").source.arguments["image_seed"] == 3  # a run's


def test_restarted_processes_resume_their_job_also_if_it_had_ended_and_a_new_job_of_that_name_does_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for status, begun in (("running", folder), ("completed", None)):
        (folder / "run.json").write_text(json.dumps({"job": "a", "status": status}))
        assert begun_by("a", folder, "own", restarted=False) == begun
        assert begun_by("a", folder, "own", restarted=True) == folder
        assert begun_by("b", folder, "own", restarted=True) is None
