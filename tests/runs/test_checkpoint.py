"""Checkpoints: whole or not there, readable by others, and refused when they are something else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from softmaxce.build import build_run
from softmaxce.errors import RunError
from softmaxce.files import replace_file
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.runs import checkpoint
from softmaxce.runs.folder import BEST, LAST, append_metrics, create, cut_metrics, newest, read_metrics
from softmaxce.training.loop import fit

from ..helpers import config


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with the checkpoints of a short run."""
    run = build_run(config(optimizer={"name": "adam", "lr": 0.01}))
    for epoch in fit(run):
        checkpoint.save(run, tmp_path, best=epoch.best)
    return tmp_path


def test_weights_lie_under_their_own_names_for_anyone_to_load(trained: Path) -> None:
    reference = build_run(config()).model
    reference.load_state_dict(load_file(trained / BEST))  # a plain state dict
    with safe_open(trained / BEST, framework="pt") as stream:
        header = json.loads(stream.metadata()["softmaxce"].partition(" ")[2])
    assert header["classes"][:2] == ["class0", "class1"]


def test_nothing_in_a_checkpoint_is_pickled(trained: Path) -> None:
    for name in (LAST, BEST):
        data = (trained / name).read_bytes()
        length = int.from_bytes(data[:8], "little")  # the safetensors format: a length, JSON, raw numbers
        header = json.loads(data[8 : 8 + length])
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        assert 8 + length + max(ends) == len(data)


def test_a_checkpoint_alone_rebuilds_the_model_and_its_figures(trained: Path) -> None:
    run = build_run(config(optimizer={"name": "adam", "lr": 0.01}))
    for _ in fit(run):
        pass
    evaluation = TrainedModel.open(trained / LAST)
    images = torch.rand(5, *run.preprocessing.shape)
    assert evaluation.model(images).equal(run.model.eval()(images))
    assert evaluation.preprocessing == run.preprocessing


def test_tied_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    run = build_run(config())
    shared = nn.Linear(16, 16)
    run.model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), shared, shared, nn.Linear(16, 10))
    checkpoint.save(run, tmp_path, best=True)
    before = run.model.state_dict()
    checkpoint.load_weights(run.model, checkpoint.load(tmp_path / BEST))
    assert all(before[name].equal(value) for name, value in run.model.state_dict().items())


# -- refused ----------------------------------------------------------------------------------------------------------


def test_another_models_weights_are_refused_with_the_shapes_that_differ(trained: Path) -> None:
    run = build_run(config(model={"name": "mlp", "hidden": [17], "dropout": 0.2}))
    with pytest.raises(RunError, match=r"of another model: .*'1.weight' is \[16, 256\] but in the model \[17, 256\]"):
        checkpoint.load_weights(run.model, checkpoint.load(trained / LAST))


def test_best_holds_weights_only_and_says_where_to_resume_from(trained: Path) -> None:
    with pytest.raises(RunError, match=f"has weights only; resume from the run folder, which has {LAST}"):
        checkpoint.restore(build_run(config()), checkpoint.load(trained / BEST))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_off_file_is_refused(trained: Path, keep: int) -> None:
    whole = (trained / LAST).read_bytes()
    (trained / LAST).write_bytes(whole[:keep])
    with pytest.raises(RunError, match="not a readable checkpoint"):
        checkpoint.load(trained / LAST)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="was not written by this version of softmaxce"):
        checkpoint.load(tmp_path / "other.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickled.pt")
    with pytest.raises(RunError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "pickled.pt")
    with pytest.raises(RunError, match="there is no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")


# -- files that are whole at any instant ------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from softmaxce.files import replace_file
print("ready", flush=True)
while True:
    for letter in b"ab":
        replace_file(Path(sys.argv[1]), bytes([letter]) * 5_000_000)
"""


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    replace_file(file, b"a" * 5_000_000)
    for wait in (0.0, 0.01, 0.02, 0.03):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = file.read_bytes()
        assert len(content) == 5_000_000
        assert len(set(content)) == 1


# -- the run folder ---------------------------------------------------------------------------------------------------


def test_run_folders_are_numbered_upwards_and_gaps_are_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert create("r", None) == Path("runs/r/1")
    Path("runs/r/7").mkdir()
    Path("runs/r/notes").mkdir()
    assert create("r", None) == Path("runs/r/8")
    assert create("other", None) == Path("runs/other/1")


def test_an_empty_folder_may_be_the_output_and_a_full_one_may_not(tmp_path: Path) -> None:
    assert create("r", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert create("r", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "a" / "b" / "x").touch()
    with pytest.raises(RunError, match="is not empty and is left as it is"):
        create("r", tmp_path / "a" / "b")
    with pytest.raises(RunError, match="cannot be made"):
        create("r", tmp_path / "a" / "b" / "x" / "y")


def test_the_newest_run_is_the_one_last_written(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    for order, name in enumerate(("a/2", "b/1", "a/1")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
        os.utime(tmp_path / name / "run.json", (order, order))
    assert newest(tmp_path) == tmp_path / "a/1"
    assert newest(tmp_path, "b") == tmp_path / "b/1"


def test_a_half_written_line_of_metrics_is_passed_over_and_later_epochs_cut(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        append_metrics(tmp_path, {"epoch": number})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epo')
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    cut_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_ctrl_c_while_a_file_is_written_leaves_the_old_one_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"old")

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(file, b"new")
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"model.onnx": b"old"}
