"""What can go wrong while a run is saved: every system call in turn, a damaged file, a second process."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from softmaxce import checkpoint
from softmaxce.build import build_run
from softmaxce.errors import RunError
from softmaxce.files import locked
from softmaxce.runfolder import BEST, LAST, LAST_BEFORE
from softmaxce.train import Epoch, Pause, Run, fit, fit_with_pauses

from .test_train import VARIANTS, config, figures

CALLS = ("open", "write", "fsync", "link", "replace", "unlink")  # what saving asks of the system


class EveryStep:
    """Pauses wherever a run can pause."""

    def after_step(self) -> bool:
        return True

    def at_once(self) -> bool:
        return False


def small(**changes: Any) -> Run:
    return build_run(config(data__train=160, best_metric="loss", **changes))


def train_on(run: Run) -> Iterator[bool]:
    """Train; at each moment that is saved, whether the epoch is the best so far."""
    for event in fit_with_pauses(run, EveryStep()):
        yield isinstance(event, Epoch) and event.best


def count_calls(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> Callable[[], int]:
    """Have `action` called with its number before each system call that writes; how many there were."""
    count = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            action(count)
            return call(*arguments, **named)

        return called

    for name in CALLS:
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return lambda: count


def is_whole(folder: Path, run: Run, allowed: list[tuple[int, int]]) -> None:
    """The folder's checkpoint verifies, is one of those allowed (epoch, batch), and its best belongs with it."""
    found, told = checkpoint.newest(folder)
    assert found is not None
    assert told == []
    twin = build_run(run.config)
    checkpoint.restore(twin, found)
    assert (twin.progress.epoch, twin.progress.batch) in allowed
    if twin.progress.best_epoch:
        best = checkpoint.load(folder / BEST)
        assert best.header["epoch"] == twin.progress.best_epoch
        assert best.sha256 == twin.progress.best_sha256


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["disk full", "input/output error"])
def test_whichever_system_call_fails_the_checkpoint_before_loads(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small()
    before: tuple[int, int] | None = None
    failed = 0
    for best in train_on(run):
        now = (run.progress.epoch, run.progress.batch)
        target = 0
        while before is not None:
            target += 1

            def fail(count: int, target: int = target) -> None:
                if count == target:
                    raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                count_calls(patch, fail)
                try:
                    checkpoint.save(run, tmp_path, best=best)
                except OSError:
                    failed += 1
                else:
                    break  # fewer calls than that, or one that is made good
            is_whole(tmp_path, run, [before, now])
        checkpoint.save(run, tmp_path, best=best)
        is_whole(tmp_path, run, [now])
        before = now
    assert failed > 30


def test_killed_before_any_system_call_leaves_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small()
    before: tuple[int, int] | None = None
    killed = 0
    for best in train_on(run):
        now = (run.progress.epoch, run.progress.batch)
        target = 0
        while before is not None:
            target += 1
            child = os.fork()
            if not child:

                def die(count: int, target: int = target) -> None:
                    if count == target:
                        os._exit(9)

                count_calls(monkeypatch, die)
                checkpoint.save(run, tmp_path, best=best)
                os._exit(0)
            if not os.waitpid(child, 0)[1]:
                break
            killed += 1
            is_whole(tmp_path, run, [before, now])
        checkpoint.save(run, tmp_path, best=best)
        before = now
    assert killed > 60


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoints of a short run."""
    run = small()
    for best in train_on(run):
        checkpoint.save(run, tmp_path, best=best)
    return tmp_path


def flip(file: Path, where: float) -> None:
    """Turn one bit over."""
    content = bytearray(file.read_bytes())
    content[int(where * (len(content) - 1))] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("where", [0.01, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_one_bit_turned_over_is_noticed_and_the_checkpoint_before_is_taken(saved: Path, where: float) -> None:
    flip(saved / LAST, where)
    with pytest.raises(RunError, match=r"its checksum is wrong|no checkpoint that can be read|was not written by"):
        checkpoint.load(saved / LAST)
    found, told = checkpoint.newest(saved)
    assert found is not None
    assert found.file.name == LAST_BEFORE
    assert len(told) == 1
    assert told[0].startswith(f"{saved / LAST}: ")
    assert checkpoint.load(saved / LAST).sha256 == found.sha256  # in its place again


def test_no_checkpoint_that_verifies_is_an_error_that_names_each(saved: Path) -> None:
    for name in (LAST, LAST_BEFORE):
        flip(saved / name, 0.9)
    with pytest.raises(RunError, match=rf"no checkpoint in it can be used.*{LAST}: .*{LAST_BEFORE}: "):
        checkpoint.newest(saved)


def test_a_best_that_is_damaged_is_told_and_chosen_anew(saved: Path) -> None:
    flip(saved / BEST, 0.9)
    found, told = checkpoint.newest(saved)
    assert "the best epoch is chosen anew" in told[0]
    assert found is not None
    run = small()
    checkpoint.restore(run, found)
    assert (run.progress.best_epoch, run.progress.best_value) == (0, None)


# -- within an epoch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_within_an_epoch_is_bit_identical(variant: str, tmp_path: Path) -> None:
    asked = config(data__train=200, epochs=2, **VARIANTS[variant])
    whole = build_run(asked)
    expected = figures(whole)
    events = 0
    run = build_run(asked)
    done: list[Any] = []
    while run.progress.epoch < 2:  # after each single step, everything is built anew from the file
        for event in fit_with_pauses(run, EveryStep()):
            events += isinstance(event, Pause)
            if isinstance(event, Epoch):
                done.append((event.number, event.learning_rate, event.train, event.validation, event.test, event.best))
            checkpoint.save(run, tmp_path, best=isinstance(event, Epoch) and event.best)
            break
        torch.rand(7)  # another process would stand elsewhere
        run = build_run(asked)
        found, _ = checkpoint.newest(tmp_path)
        assert found is not None
        checkpoint.restore(run, found)
    assert events >= 4
    assert done == expected
    for ours, reference in zip(run.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, reference)


def test_fit_yields_epochs_alone() -> None:
    assert [type(event) for event in fit(small())] == [Epoch, Epoch]


# -- two processes ----------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from softmaxce.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(RunError, match=f"is being trained by process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with locked(tmp_path):
        pass


def test_metrics_are_whole_lines_at_any_instant(tmp_path: Path) -> None:
    from softmaxce.runfolder import append_metrics

    for number in range(1, 4):
        append_metrics(tmp_path, {"epoch": number})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, number + 1))
    assert not list(tmp_path.glob("*.tmp"))
