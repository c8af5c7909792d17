"""How a run can end: real processes, real signals, real faults; one line, the right exit status, a checkpoint whole."""

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from softmaxce.runs import checkpoint
from softmaxce.runtime.signals import Every, Pauses, Signals

from ..helpers import Softmaxce

COMMAND = str(Path(sys.executable).parent / "softmaxce")
ROOT = Path(__file__).parents[2]


class Running:
    """The real command, started in a folder, its stdout JSON Lines."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [COMMAND, "train", *arguments, "--json"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=_obey_modes,
        )  # fmt: skip

    def wait_for(self, event: str) -> None:
        """Read stdout up to the next event of this kind."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line)["event"] == event:
                return
        raise AssertionError(f"ended before {event}: {self.process.communicate()[1]}")

    def wait_for_line(self) -> str:
        """The next line of stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self) -> tuple[int, list[str]]:
        """Its exit status and the lines of stderr."""
        _, said = self.process.communicate(timeout=120)
        assert "Traceback" not in said
        return self.process.returncode, said.splitlines()


def _obey_modes() -> None:
    """Have root, too, be refused what a folder's mode forbids: give up CAP_DAC_OVERRIDE before exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[Running]]:
    """What a test has started; it does not outlive the test."""
    started: list[Running] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


def epochs_saved(folder: Path) -> int:
    """How many epochs the newest checkpoint of a folder has, once it is known to verify."""
    saved, warnings = checkpoint.newest(folder)
    assert saved is not None
    assert warnings == []
    return int(saved.header["epoch"])


# -- signals ----------------------------------------------------------------------------------------------------------

SLOW = """\
import pathlib, time
from torch.nn.functional import cross_entropy

steps = 0

def slow(logits, targets):
    global steps
    steps += logits.requires_grad
    if steps == 5 and not pathlib.Path("quick").exists():  # in epoch 2; the first was when the config was checked
        pathlib.Path("asleep").touch()
        time.sleep(60)
        pathlib.Path("awake").touch()
    return cross_entropy(logits, targets)
"""


def test_a_second_ctrl_c_stops_at_once_and_the_command_to_resume_trusts_the_users_code(
    small: Path, tmp_path: Path, running: list[Running]
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    running.append(Running(tmp_path, "--config", "small.yaml", "--set", "loss=slow.py:slow", "--output", "a run"))
    running[0].wait_for("epoch")
    while not (tmp_path / "asleep").exists():
        assert running[0].process.poll() is None
    running[0].process.send_signal(signal.SIGINT)
    assert running[0].wait_for_line() == "stopping after this step; a second ctrl-C or SIGTERM stops at once\n"
    running[0].process.send_signal(signal.SIGINT)
    status, lines = running[0].end()
    assert status == 130
    assert not (tmp_path / "awake").exists()  # the step did not come to its end
    (line,) = lines
    assert line == "interrupted after 1 of 2 epochs; resume with: softmaxce train --resume 'a run' --trust-code"
    assert epochs_saved(tmp_path / "a run") == 1
    (tmp_path / "quick").touch()
    program, *arguments = shlex.split(line.partition("resume with: ")[2])
    assert program == "softmaxce"
    done = subprocess.run([COMMAND, *arguments, "-q"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert epochs_saved(tmp_path / "a run") == 2


def test_sigusr1_saves_within_the_epoch_and_training_continues(
    small: Path, tmp_path: Path, running: list[Running]
) -> None:
    sets = ("--set", "data.train=8000", "--set", "data.batch_size=4")
    running.append(Running(tmp_path, "--config", "small.yaml", *sets, "--output", "out"))
    running[0].wait_for("start")
    running[0].process.send_signal(signal.SIGUSR1)
    line = running[0].wait_for_line()
    assert re.fullmatch(r"saved out/last\.safetensors after 0 of 2 epochs and \d+ of 1500 batches\n", line)
    status, lines = running[0].end()
    assert (status, lines) == (0, [])
    assert epochs_saved(tmp_path / "out") == 2


def test_a_checkpoint_that_was_requested_before_the_first_step_is_saved_after_it() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        pauses = Pauses(Every(), signals)
        assert pauses.should_checkpoint()
        pauses.saved()
        assert not pauses.should_checkpoint()


# -- a loss that is not finite ----------------------------------------------------------------------------------------

SPIKE = """\
def spike(steps, steps_per_epoch):
    return lambda step: 1e32 if step == steps_per_epoch + 1 else 1.0
"""


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_that_diverges_restores_the_last_checkpoint_if_configured(
    precision: str, small: Path, tmp_path: Path, softmaxce: Softmaxce
) -> None:
    (tmp_path / "own.py").write_text(SPIKE)
    sets = ("schedule=own.py:spike", "on_nonfinite=restore", f"precision={precision}", "epochs=4")
    options = [part for text in sets for part in ("--set", text)]
    done = softmaxce("train", "--config", "small.yaml", "--output", "out", "--json", *options)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"warning: the training loss is (nan|inf) in epoch 2, batch 3 \(learning rate 0.05\); the first ", line
    )
    assert line.endswith("; restored the weights of out/restorable.safetensors (1 of 10)")
    assert (tmp_path / "out" / "nonfinite.safetensors").is_file()
    losses = [json.loads(text)["train"]["loss"] for text in (tmp_path / "out" / "metrics.jsonl").open()]
    assert len(losses) == 4
    assert losses[3] < losses[0]  # it still learns
    assert epochs_saved(tmp_path / "out") == 4


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("way", ["restore", "skip"])
def test_a_run_that_keeps_diverging_ends_after_the_times_allowed(
    way: str, precision: str, small: Path, tmp_path: Path, softmaxce: Softmaxce
) -> None:
    sets = ("optimizer.lr=1e30", f"on_nonfinite={way}", "max_nonfinite=2", "checkpoint_every=1 step")
    options = [part for text in (*sets, f"precision={precision}") for part in ("--set", text)]
    done = softmaxce("train", "--config", "small.yaml", "--output", "out", "-q", *options)
    assert done.returncode == 1
    *warnings, last = done.stderr.splitlines()
    assert [line[-8:] for line in warnings] == ["(1 of 2)", "(2 of 2)"]
    assert last.startswith("error: the training loss is ")
    assert last.endswith("; that was number 3, and max_nonfinite is 2")
    assert epochs_saved(tmp_path / "out") == 1


# -- folders and files that go away -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_run_folder_that_goes_away_is_one_line_and_1(
    how: str, small: Path, tmp_path: Path, running: list[Running]
) -> None:
    running.append(Running(tmp_path, "--config", "small.yaml", "--epochs", "10000", "--output", "out"))
    running[0].wait_for("epoch")
    (tmp_path / "out").rename(tmp_path / "moved")
    if how == "removed":
        shutil.rmtree(tmp_path / "moved")
    status, (line,) = running[0].end()
    assert status == 1
    assert re.fullmatch(r"error: out\S*: No such file or directory; was the run folder moved or removed\?", line)
    assert not (tmp_path / "out").exists()
    if how == "moved":
        assert epochs_saved(tmp_path / "moved") >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere root may write anywhere")
def test_a_run_folder_that_becomes_read_only_is_one_line_and_the_run_can_be_resumed(
    small: Path, tmp_path: Path, running: list[Running], softmaxce: Softmaxce
) -> None:
    line = ("--config", "small.yaml", "--output", "out", "--resume", "auto", "--epochs")
    running.append(Running(tmp_path, *line, "10000"))
    running[0].wait_for("epoch")
    (tmp_path / "out").chmod(0o555)
    status, (error,) = running[0].end()
    (tmp_path / "out").chmod(0o755)
    assert status == 1
    assert re.fullmatch(
        r"error: out/\S+: Permission denied; make the folder writable and resume with: softmaxce train --resume out",
        error,
    )
    done = epochs_saved(tmp_path / "out")
    assert done >= 1
    assert softmaxce("train", *line, str(done + 2), "-q").returncode == 0
    assert epochs_saved(tmp_path / "out") == done + 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere root may write anywhere")
def test_a_run_is_not_begun_where_nothing_can_be_written(small: Path, tmp_path: Path, running: list[Running]) -> None:
    (tmp_path / "shut").mkdir(mode=0o555)
    running.append(Running(tmp_path, "--config", "small.yaml", "--output", "shut/run"))
    assert running[0].end() == (2, ["error: the run folder shut/run cannot be made: Permission denied"])


FOLDER = """\
epochs: 500
data: {{name: image_folder, root: images, size: 8, batch_size: 4, in_memory: false, workers: {workers}}}
model: linear
optimizer: {{name: sgd, lr: 0.1}}
"""


def images(folder: Path) -> None:
    for name, shade in (("dark", 20), ("light", 230)):
        for split, number in (("train", 20), ("test", 4)):
            target = folder / "images" / split / name
            target.mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (8, 8), (shade, index, 0)).save(target / f"{index}.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_is_named_and_2(workers: int, tmp_path: Path, running: list[Running]) -> None:
    images(tmp_path)
    (tmp_path / "c.yaml").write_text(FOLDER.format(workers=workers))
    running.append(Running(tmp_path, "--config", "c.yaml", "--output", "out"))
    running[0].wait_for("epoch")
    (tmp_path / "images" / "train" / "light" / "7.png").unlink()
    status, (line,) = running[0].end()
    assert status == 2
    assert line == "error: images/train/light/7.png: No such file or directory"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"
    assert epochs_saved(tmp_path / "out") >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks a process's children up in /proc")
def test_a_worker_that_is_killed_is_one_line_and_1(tmp_path: Path, running: list[Running]) -> None:
    images(tmp_path)
    (tmp_path / "c.yaml").write_text(FOLDER.format(workers=1))
    running.append(Running(tmp_path, "--config", "c.yaml", "--output", "out"))
    running[0].wait_for("epoch")
    process = running[0].process
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it, or a worker, has just ended by itself
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
    status, (line,) = running[0].end()
    assert status == 1
    assert line.startswith(
        "error: a process that decodes images was killed, often because memory ran out; lower data.w"
    )
    assert epochs_saved(tmp_path / "out") >= 1


# -- the user's own data set ------------------------------------------------------------------------------------------

OWN_DATA = """\
import torch
from softmaxce.data.splits import InMemory, OnDisk, Source

images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)

def data(what="", root=None):
    labels = torch.arange(40) % 4
    shown = images
    if what == "out of range":
        labels = torch.arange(40) % 5
    elif what == "negative":
        labels = labels - 1
    elif what == "fractions":
        labels = labels.float()
    elif what == "one-hot":
        labels = torch.nn.functional.one_hot(labels)
    elif what == "too few":
        labels = labels[:30]
    elif what == "floats":
        shown = images / 255
    return Source(InMemory(shown, labels), None, ("a", "b", "c", "d"))

def decode(file):
    raise KeyError("gone")

def lazy(workers=0):
    split = OnDisk(("x", "y"), torch.tensor([0, 1]), (1, 8, 8), decode, workers)
    return Source(split, None, ("a", "b"))
"""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "{name: 'own.py:data', what: out of range}",
            "the train split has the label 4; with 4 classes labels go from 0",
        ),
        ("{name: 'own.py:data', what: negative}", "the train split has the label -1; with 4 classes labels go from 0"),
        ("{name: 'own.py:data', what: fractions}", "the train split's labels must be int64 class ids [N], got float32"),
        (
            "{name: 'own.py:data', what: one-hot}",
            "the train split's labels must be int64 class ids [N], got int64 [40, 4]",
        ),
        ("{name: 'own.py:data', what: too few}", "the train split has 40 images and 30 labels"),
        ("{name: 'own.py:data', what: floats}", "the train split's images must be uint8 [N, C, H, W], got float32"),
        ("{name: 'own.py:lazy', normalize: none}", ": KeyError: 'gone' (own.py:24)"),
        ("{name: 'own.py:lazy', normalize: none, workers: 1}", ": KeyError: 'gone' (own.py:24)"),
    ],
)
def test_what_is_wrong_with_a_users_data_set_is_one_line_and_2(
    data: str, message: str, tmp_path: Path, softmaxce: Softmaxce
) -> None:
    (tmp_path / "own.py").write_text(OWN_DATA)
    (tmp_path / "c.yaml").write_text(f"epochs: 1\ndata: {data}\nmodel: linear\noptimizer: {{name: sgd, lr: 0.1}}\n")
    done = softmaxce("train", "--config", "c.yaml", "-q")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line


OWN_MODEL = """\
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(256, num_classes)

    def forward(self, images):
        if len(images) > 2 and self.training == TRAINING:
            raise LookupError("not so many")
        return self.layer(images.flatten(1))
"""


@pytest.mark.parametrize("how", ["dry run", "train", "eval"])
def test_a_users_model_that_raises_is_one_line_with_its_location_in_every_command(
    how: str, small: Path, tmp_path: Path, softmaxce: Softmaxce
) -> None:
    train = ("train", "--config", "small.yaml", "-q", "--set", "model={name: 'own.py:Own'}", "--output", "out")
    (tmp_path / "own.py").write_text(OWN_MODEL.replace("TRAINING", str(how != "eval")))
    if how == "eval":
        (tmp_path / "own.py").write_text(OWN_MODEL.replace("TRAINING", "None"))
        assert softmaxce(*train).returncode == 0
        (tmp_path / "own.py").write_text(OWN_MODEL.replace("TRAINING", "False"))
        done = softmaxce("eval", "out", "--trust-code")
    else:
        done = softmaxce(*train, *(["--dry-run"] if how == "dry run" else []))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert (
        line.removeprefix("error: ").removeprefix("epoch 1: ").removeprefix("the first batch: ")
        == "LookupError: not so many (own.py:10)"
    )


# -- run.json ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("commands", 5), ("commands", "x"), ("earlier_environments", {}), ("seconds", "long"), ("environment", [])],
)
def test_a_damaged_record_is_one_line_with_its_file(
    key: str, value: object, small: Path, tmp_path: Path, softmaxce: Softmaxce
) -> None:
    train = ("train", "--config", "small.yaml", "-q", "--output", "out", "--resume", "auto")
    assert softmaxce(*train).returncode == 0
    file = tmp_path / "out" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    done = softmaxce(*train, "--epochs", "3")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: out/run.json: is damaged: its '{key}' is wrong: Input should be a valid ")


# -- exit statuses ----------------------------------------------------------------------------------------------------


def test_every_exit_status_that_the_readme_lists_comes_out_of_a_real_process(
    small: Path, tmp_path: Path, running: list[Running], softmaxce: Softmaxce
) -> None:
    train = ("--config", "small.yaml")
    seen = {
        softmaxce("train", *train, "-q", "--output", "good", "--require", "loss>=0").returncode,
        softmaxce("eval", "good", "--require", "accuracy>1").returncode,
        softmaxce("train", *train, "--set", "optimizer.lr=1e30").returncode,
        softmaxce("train", "--no-such-option").returncode,
        softmaxce("train", *train, "--set", "epochs=none").returncode,
        softmaxce("train", *train, "--set", "data={name: image_folder, root: nowhere}").returncode,
    }
    for number in (signal.SIGINT, signal.SIGTERM):
        running.append(Running(tmp_path, *train, "--epochs", "10000"))
        running[-1].wait_for("epoch")
        running[-1].process.send_signal(number)
        seen.add(running[-1].end()[0])
    readme = (ROOT / "README.md").read_text().partition("| exit status | |")[2].partition("\n\n")[0]
    documented = {
        int(number) for cell in re.findall(r"^\| ([\d, ]+) \|", readme, re.MULTILINE) for number in cell.split(",")
    }
    assert seen == documented == {0, 1, 2, 130, 143}


WITHIN_AN_IMPORT = """
import os, sys

number = int(sys.argv.pop())

class Interrupt:
    def find_spec(self, name, *rest):
        if name == "torch.distributed":  # which C++ code imports, and aborts if that raises
            os.kill(os.getpid(), number)
            for _ in range(1000):  # a handler of Python's is called between two of its instructions
                pass
            print("no exception within the import", flush=True)

sys.meta_path.insert(0, Interrupt())
from softmaxce_cli.main import app
app()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_torch_is_imported_ends_the_command_after_the_import(
    number: signal.Signals, status: int, small: Path, tmp_path: Path
) -> None:
    arguments = ["train", "--config", small.name, "--output", "run", str(int(number))]
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_AN_IMPORT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "no exception within the import\n", "")
    assert not (tmp_path / "run").exists()


def test_an_interrupt_before_the_command_is_imported_ends_it_without_a_traceback() -> None:
    code = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
import softmaxce_cli.main
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")  # 130 to a shell
