"""Memory that runs out: real processes under a real limit of the system's, one line each with what would fit."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softmaxce.build import build_run
from softmaxce.errors import MemoryRanOutError, ran_out_of_memory, within_memory
from softmaxce.training.loop import fit
from softmaxce.training.memory import find_fitting_batch_size

from ..helpers import config

COMMAND = str(Path(sys.executable).parent / "softmaxce")
LIMIT = 11 << 30  # bytes of address space, of which the program itself takes some; nothing here is ever touched

# A model that asks for 16 MiB an image while it trains, or while it is evaluated; a batch of 1024 needs 16 GiB.
HUNGRY = """\
import numpy as np, torch
from torch import nn

class Hungry(nn.Module):
    def __init__(self, in_channels, image_size, num_classes, when="training", of="torch"):
        super().__init__()
        self.layer = nn.Linear(in_channels * image_size[0] * image_size[1], num_classes)
        self.when, self.of = when, of

    def forward(self, images):
        if self.training == (self.when == "training") and len(images) > 2:
            asked = len(images) << 24
            held = torch.empty(asked, dtype=torch.uint8) if self.of == "torch" else np.empty(asked, np.uint8)
        return self.layer(images.flatten(1))
"""
CONFIG = """\
epochs: 1
data: {name: synthetic, train: 1400, test: 1100, batch_size: 1024, eval_batch_size: 16, validation: 0.25}
model: {name: "hungry.py:Hungry"}
optimizer: {name: sgd, lr: 0.1}
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "c.yaml").write_text(CONFIG)


def limited(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command in an address space of LIMIT bytes."""
    return subprocess.run(
        [COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )  # fmt: skip


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a process that ended with status 1."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("of", ["torch", "numpy"])
def test_a_step_that_does_not_fit_is_one_line_with_the_batch_size_that_does(of: str, tmp_path: Path) -> None:
    train = ("train", "--config", "c.yaml", "--quiet", "--set", f"model.of={of}")
    line = error_line(limited(tmp_path, *train, "--output", "a"))
    assert line.startswith("error: epoch 1: memory ran out while training (")
    found = re.search(r"data.batch_size: (\d+) and grad_accum_steps: (\d+) for as many", line)
    assert found is not None
    size, accumulated = map(int, found.groups())
    assert size * accumulated == 1024
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "failed"
    smaller = [f"--set=data.batch_size={size}", f"--set=grad_accum_steps={accumulated}"]
    done = limited(tmp_path, *train, "--output", "b", *smaller)
    assert done.returncode == 0, done.stderr  # what is said to fit does


def test_a_dry_run_that_does_not_fit_says_what_does(tmp_path: Path) -> None:
    line = error_line(limited(tmp_path, "train", "--config", "c.yaml", "--dry-run"))
    assert re.search(
        r"memory ran out while training \(.*\); a step of (512|256|128) images, tried just now, fits", line
    )


@pytest.mark.parametrize("how", ["train", "eval"])
def test_an_evaluation_that_does_not_fit_says_what_does(how: str, tmp_path: Path) -> None:
    sets = ("--set", "model.when=evaluation", "--set", "data.batch_size=64", "--set", "data.validation=null")
    train = ("train", "--config", "c.yaml", "--quiet", *sets, "--output", "a")
    first = limited(tmp_path, *train, *(("--set", "data.eval_batch_size=1024") if how == "train" else ()))
    if how == "eval":
        assert first.returncode == 0, first.stderr
        first = limited(tmp_path, "eval", "a", "--trust-code", "--batch-size", "1024")
    line = error_line(first)
    assert "memory ran out while evaluating" in line
    found = re.search(r"set data.eval_batch_size: (\d+), or --batch-size \1 with eval and predict", line)
    assert found is not None
    if how == "train":
        done = limited(tmp_path, *train[:-1], "b", "--set", f"data.eval_batch_size={found[1]}")
    else:
        done = limited(tmp_path, "eval", "a", "--trust-code", "--batch-size", found[1])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "doing"),
    [
        ({"data.train": "200000000"}, "reading the data set"),
        ({"model": "{name: mlp, hidden: [40000000]}"}, "building the model"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, str], doing: str, tmp_path: Path) -> None:
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    line = error_line(limited(tmp_path, "train", "--config", "c.yaml", *sets))
    assert re.match(rf"error: memory ran out while {doing} \([\d,.]+ \w+ more were requested\); ", line)


def test_memory_that_runs_out_late_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    train = ("train", "--config", "c.yaml", "--quiet", "--set", "data.batch_size=64", "--set", "epochs=2")
    again = ("--output", "a", "--resume", "auto")
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("<< 24", "<< 10"))
    assert limited(tmp_path, *train, *again).returncode == 0
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("<< 24", "<< 40"))
    done = limited(tmp_path, *train, *again, "--epochs", "3")
    *warnings, line = done.stderr.splitlines()
    assert all("was trained with another hungry.py" in warning or "spans the run" in warning for warning in warnings)
    assert line.startswith("error: epoch 3: memory ran out while training")
    assert "a step of 2 images, tried just now, fits" in line  # the model asks for nothing then
    assert line.endswith("; a keeps its last checkpoint")
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("<< 24", "<< 10"))
    done = limited(tmp_path, *train, *again, "--epochs", "3", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[0])["epochs_done"] == 2


@pytest.mark.parametrize("said", ["torch", "numpy"])
def test_the_words_of_those_who_have_no_memory_are_known(said: str) -> None:
    import numpy as np

    def ask() -> None:
        torch.empty(1 << 50) if said == "torch" else np.empty(1 << 50)

    with pytest.raises((RuntimeError, MemoryError)) as raised:
        ask()
    assert ran_out_of_memory(raised.value)
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    message = r"^memory ran out while asking \([\d.,]+ \w+ more were requested\)$"
    with pytest.raises(MemoryRanOutError, match=message), within_memory("asking"):
        ask()


def test_what_a_failed_call_held_is_free_for_the_next_attempt() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def fail() -> None:
        held = Held()
        raise MemoryError(held is None)

    with pytest.raises(MemoryRanOutError), within_memory("failing"):
        fail()
    assert Held.alive == 0


@pytest.mark.parametrize(
    ("size", "fits", "answer"), [(1024, 100, 64), (100, 50, 50), (3, 1, 1), (64, 0, None), (1, 9, None)]
)
def test_the_first_half_that_fits_is_taken(size: int, fits: int, answer: int | None) -> None:
    tried: list[int] = []

    def attempt(number: int) -> None:
        tried.append(number)
        if number > fits:
            raise MemoryError

    assert find_fitting_batch_size(size, attempt) == answer
    assert len(tried) <= size.bit_length()


@pytest.mark.gpu
def test_a_gpu_whose_memory_runs_out_says_what_fits() -> None:
    run = build_run(
        config(device="cuda", data__train=2048, data__batch_size=2048, model={"name": "cnn", "channels": [64]})
    )
    torch.cuda.set_per_process_memory_fraction(256 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(MemoryRanOutError, match=r"epoch 1: memory ran out .* set data.batch_size: \d+"):
            list(fit(run))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
