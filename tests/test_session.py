"""`session.train` as a Python caller uses it: an Outcome or an error, in any thread, and nothing printed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import softmaxce
from softmaxce import session
from softmaxce.build import build_run
from softmaxce.config import reader as configs
from softmaxce.config.objects import with_objects
from softmaxce.config.reader import Override
from softmaxce.config.registry import LOSSES
from softmaxce.data.batches import Batch
from softmaxce.errors import ConfigError, RunError, TrainingError
from softmaxce.runs.folder import Status, read_metrics, read_record
from softmaxce.session import Level, Outcome, Reporter
from softmaxce.training.run import Epoch, Run


def run_of(file: Path, **changes: Any) -> Run:
    overrides = [Override(tuple(key.split("__")), value, key) for key, value in changes.items()]
    return build_run(configs.load(str(file), overrides))


def weights(run: Run) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in run.model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Recorder(Reporter):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.messages: list[tuple[Level, str]] = []
        self.outcomes: list[Outcome] = []

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch.number)

    def message(self, level: Level, text: str) -> None:
        self.messages.append((level, text))

    def end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_a_run_trains_in_another_thread_without_printing(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, recorder, outcomes = run_of(small), Recorder(), []
    before = signal.getsignal(signal.SIGINT)

    def train() -> None:
        outcomes.append(session.train(run, small.parent / "out", reporters=[recorder]))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    (outcome,) = outcomes
    assert outcome.status is Status.COMPLETED
    assert (outcome.epochs, recorder.epochs, recorder.outcomes) == (2, [1, 2], [outcome])
    assert outcome.scores is not None
    assert read_record(outcome.folder)["test"] == outcome.scores.to_dict()
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr() == ("", "")


class Interrupting(Recorder):
    """Sends a signal after the first epoch, as ctrl-C would."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number
        self.stopped = 0

    def epoch(self, epoch: Epoch) -> None:
        super().epoch(epoch)
        os.kill(os.getpid(), self.number)

    def stopping(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, Status.INTERRUPTED), (signal.SIGTERM, Status.TERMINATED)]
)
def test_an_interrupted_run_is_resumed_to_the_bits_of_one_that_was_not(
    number: signal.Signals, status: Status, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = run_of(small, epochs=3)
    session.train(whole, small.parent / "whole")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    folder, interrupting = small.parent / "cut", Interrupting(number)
    with pytest.raises(KeyboardInterrupt):
        session.train(run_of(small, epochs=3), folder, reporters=[interrupting])
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert (interrupting.epochs, interrupting.stopped) == ([1], 1)
    assert [outcome.status for outcome in interrupting.outcomes] == [status]
    assert read_record(folder)["status"] == status
    recorder, resumed = Recorder(), run_of(small, epochs=3)
    assert session.train(resumed, folder, resume=True, reporters=[recorder]).status is Status.COMPLETED
    assert recorder.epochs == [2, 3]
    assert recorder.messages == [(Level.INFO, f"resumed from {folder}/last.safetensors, after 1 of 3 epochs")]
    assert same(weights(resumed), weights(whole))
    assert capfd.readouterr() == ("", "")


class InterruptedInEpoch2(Reporter):
    """Ctrl-C while the first batch of epoch 2 is trained."""

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        for number, batch in enumerate(batches):
            if (epoch, number) == (2, 0):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


SPIKE = "def spike(steps, steps_per_epoch):\n    return lambda step: 1e32 if step == steps_per_epoch + SHIFT else 1.0\n"


@pytest.mark.parametrize(
    ("policy", "every", "shift"),
    [("restore", None, 1), ("restore", "2 steps", 1), ("restore", "2 steps", 4), ("skip", None, 1)],
)
def test_a_run_that_is_resumed_and_then_not_finite_ends_with_the_undisturbed_runs_metrics(
    policy: str, every: str | None, shift: int, small: Path
) -> None:
    (small.parent / "own.py").write_text(SPIKE.replace("SHIFT", str(shift)))
    changes = {
        "schedule": f"{small.parent}/own.py:spike",
        "on_nonfinite": policy,
        "checkpoint_every": every,
        "epochs": 4,
    }
    whole, folder = small.parent / "whole", small.parent / "cut"
    session.train(run_of(small, **changes), whole)
    with pytest.raises(KeyboardInterrupt):
        session.train(run_of(small, **changes), folder, reporters=[InterruptedInEpoch2()])
    session.train(run_of(small, **changes), folder, resume=True)
    expected, got = ([line["train"] for line in read_metrics(one)] for one in (whole, folder))
    assert got == expected
    assert read_record(folder)["test"] == read_record(whole)["test"]


def test_a_run_that_fails_raises_and_reports_its_end(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    with pytest.raises(TrainingError, match="the training loss is") as raised:
        session.train(run_of(small, optimizer__lr=1e30), small.parent / "out", reporters=[recorder])
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.message) == (Status.FAILED, str(raised.value))
    assert read_record(small.parent / "out")["status"] == "failed"
    assert capfd.readouterr() == ("", "")


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise LookupError("no such layer")


def test_any_error_of_a_model_is_a_training_error_with_its_cause(small: Path) -> None:
    run = run_of(small)
    run.model = Failing()
    with pytest.raises(TrainingError, match="epoch 1: LookupError: no such layer") as raised:
        session.train(run, small.parent / "out")
    assert isinstance(raised.value.__cause__, LookupError)


def test_a_requirement_that_is_not_met_is_in_the_outcome_and_raises_nothing(small: Path) -> None:
    outcome = session.train(
        run_of(small), small.parent / "out", requirements=["loss>=0", "accuracy>1e0", "macro_f1>=0"]
    )
    assert [result.met for result in outcome.requirements] == [True, False, True]
    assert not outcome.requirements_met
    assert read_record(outcome.folder)["requirements"] == [result.to_dict() for result in outcome.requirements]


def test_what_cannot_be_trained_is_refused_before_anything_is_written(small: Path) -> None:
    folder = small.parent / "out"
    with pytest.raises(ConfigError, match="there is no class 'cat'"):
        session.train(run_of(small), folder, requirements=["recall.cat>=0.5"])
    with pytest.raises(RunError, match="there is no run in this folder"):
        session.train(run_of(small), folder, resume=True)
    assert not folder.exists()
    session.train(run_of(small), folder)
    files = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(RunError, match="the folder is not empty"):
        session.train(run_of(small), folder)
    with pytest.raises(RunError, match=r"optimizer\.lr was 0\.05 and is now 1"):
        session.train(run_of(small, optimizer__lr=1), folder, resume=True)
    assert {file: file.read_bytes() for file in folder.iterdir()} == files


# -- which softmaxce --------------------------------------------------------------------------------------------------

COMMIT = "from softmaxce.runtime.environment import softmaxce_commit; print(softmaxce_commit())"


def test_the_recorded_commit_is_of_a_checkout_of_softmaxce_and_of_no_other_repository(tmp_path: Path) -> None:
    package = tmp_path / "env" / "softmaxce"
    shutil.copytree(Path(softmaxce.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}

    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", *author, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    def recorded() -> str:
        command = [sys.executable, "-c", COMMIT]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "own.py").write_text("")
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("add", "own.py", ".gitignore")
    git("commit", "-qm", "the user's own")
    assert recorded() == "None"  # an environment in the user's repository, whose files git does not track
    git("add", "env")
    git("commit", "-qm", "a checkout")
    assert recorded() == git("rev-parse", "HEAD")
    (package / "errors.py").write_text("# changed\n" + (package / "errors.py").read_text())
    assert recorded() == git("rev-parse", "HEAD") + "-dirty"


def test_run_json_has_the_commits_of_softmaxce_and_of_the_users_folder(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    outcome = session.train(run_of(small))
    environment = json.loads((outcome.folder / "run.json").read_text())["environment"]
    assert environment["git_commit"] is None
    assert environment["softmaxce_commit"] is None or len(environment["softmaxce_commit"].partition("-")[0]) == 40
    assert outcome.folder == Path("runs/small/1")


def no_minus(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(1).gather(1, targets[:, None]).mean()


def test_a_negative_training_loss_is_a_warning_once_in_a_run(small: Path) -> None:
    folder, recorder = small.parent / "out", Recorder()
    for number, resume in ((2, False), (3, True)):
        config = with_objects(configs.load(str(small), [Override(("epochs",), number, "epochs")]), loss=no_minus)
        session.train(build_run(config), folder, resume=resume, reporters=[recorder])
    first = read_metrics(folder)[0]["train"]["loss"]
    (text,) = [text for _, text in recorder.messages if "cross-entropy" in text]
    assert text.startswith(f"the training loss of epoch 1 is negative, {first:.4g}; cross-entropy never is: a minus or")
    assert text.endswith("missing; check it with softmaxce.check_loss(loss)")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_built_in_loss_is_never_reported_as_negative(loss: str, small: Path) -> None:
    recorder = Recorder()
    session.train(run_of(small, loss=loss, epochs=1), small.parent / loss, reporters=[recorder])
    assert [text for level, text in recorder.messages if level is Level.WARNING] == []
