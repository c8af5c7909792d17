"""What can go wrong while a run is saved: every system call in turn, a damaged file, a second process."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from softmaxce.build import build_run
from softmaxce.config import registry
from softmaxce.errors import RunError
from softmaxce.files import locked
from softmaxce.runs import checkpoint
from softmaxce.runs.folder import BEST, LAST, LAST_BEFORE
from softmaxce.training.loop import CheckpointEvent, fit, fit_with_checkpoints
from softmaxce.training.run import Epoch, Progress, Run

from ..helpers import VARIANTS, config, train_and_list_metrics

CALLS = ("open", "write", "fsync", "close", "link", "replace", "unlink")  # what saving asks of the system


class EveryStep:
    """Pauses wherever a run can pause."""

    def should_checkpoint(self) -> bool:
        return True

    def should_abort_evaluation(self) -> bool:
        return False


def small(**changes: Any) -> Run:
    return build_run(config(data__train=160, best_metric="loss", **changes))


def train_on(run: Run) -> Iterator[bool]:
    """Train; at each moment that is saved, whether the epoch is the best so far."""
    for event in fit_with_checkpoints(run, EveryStep()):
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
    newest, warnings = checkpoint.newest(folder)
    assert newest is not None
    assert warnings == []
    twin = build_run(run.config)
    checkpoint.restore(twin, newest)
    assert (twin.progress.epoch, twin.progress.batch) in allowed
    if twin.progress.best_epoch:
        best = checkpoint.load(folder / BEST)
        assert best.header["epoch"] == twin.progress.best_epoch
        assert best.sha256 == twin.progress.best_sha256


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["disk full", "input/output error"])
def test_whichever_system_call_fails_the_checkpoint_before_loads(
    number: int, lasting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small()
    before, attempt = tmp_path / "before", tmp_path / "attempt"
    before.mkdir()
    previous: tuple[int, int] | None = None
    injected = raised = 0
    for best in train_on(run):
        now = (run.progress.epoch, run.progress.batch)
        target = made = 1 if previous is not None else 0
        while 0 < target <= made:  # until a save has made fewer calls than that

            def fail(count: int, target: int = target) -> None:
                if count == target or (lasting and count > target):
                    raise OSError(number, os.strerror(number))

            shutil.copytree(before, attempt)
            with monkeypatch.context() as patch:
                calls = count_calls(patch, fail)
                try:
                    checkpoint.save(run, attempt, best=best)
                    made_good = True
                except OSError:
                    made_good = False
                made = calls()
            if made >= target:
                injected, raised = injected + 1, raised + (not made_good)
            # what is made good counts as saved: no hard links on this file system, say
            is_whole(attempt, run, [now] if made_good else [previous, now])
            shutil.rmtree(attempt)
            target += 1
        checkpoint.save(run, before, best=best)
        is_whole(before, run, [now])
        previous = now
    assert injected > 80
    if lasting:
        assert raised == injected  # what fails once may be made good: a copy where there are no hard links


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
    with pytest.raises(RunError, match=r"its checksum is wrong|not a readable checkpoint|was not written by"):
        checkpoint.load(saved / LAST)
    newest, warnings = checkpoint.newest(saved)
    assert newest is not None
    assert newest.file.name == LAST_BEFORE
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{saved / LAST}: ")
    assert checkpoint.load(saved / LAST).sha256 == newest.sha256  # restored under its usual name


def test_no_checkpoint_that_verifies_is_an_error_that_names_each(saved: Path) -> None:
    for name in (LAST, LAST_BEFORE):
        flip(saved / name, 0.9)
    with pytest.raises(RunError, match=rf"no checkpoint in it can be used.*{LAST}: .*{LAST_BEFORE}: "):
        checkpoint.newest(saved)


def test_a_damaged_best_is_reported_and_selected_again(saved: Path) -> None:
    flip(saved / BEST, 0.9)
    newest, warnings = checkpoint.newest(saved)
    assert "the best epoch is selected from the coming ones" in warnings[0]
    assert newest is not None
    run = small()
    checkpoint.restore(run, newest)
    assert (run.progress.best_epoch, run.progress.best_value) == (0, None)


def entry(state: Any, *path: Any) -> list[Any]:
    """The [key, value] of a training state's JSON that a path leads to."""
    for key in path[:-1]:
        state = next(value for name, value in state["dict"] if name == key)
    return next(pair for pair in state["dict"] if pair[0] == path[-1])


def rewrite(file: Path, change: Callable[[Any, dict[str, torch.Tensor]], None]) -> None:
    """Change a checkpoint's training state, and give it its right checksum."""
    with safe_open(file, framework="pt") as stream:
        header = json.loads(stream.metadata()["softmaxce"].partition(" ")[2])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no dict
    change(header["training"], tensors)
    file.write_bytes(checkpoint.serialized(tensors, header)[0])


def replaced(*path: Any, by: Any) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    def change(state: Any, tensors: dict[str, torch.Tensor]) -> None:
        entry(state, *path)[1] = by

    return change


def renamed(*path: Any) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    def change(state: Any, tensors: dict[str, torch.Tensor]) -> None:
        entry(state, *path)[0] = "other"

    return change


def reshaped(name: str, tensor: torch.Tensor) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    def change(state: Any, tensors: dict[str, torch.Tensor]) -> None:
        assert name in tensors
        tensors[name] = tensor

    return change


MOMENTUM = ("optimizer", "state", 0, "momentum_buffer")
SPOILT = {
    "a key missing": (renamed("optimizer"), r"its training is without optimizer; with other"),
    "a parameter that is not there": (renamed("optimizer", "state", 0), r"training\.optimizer\.state is with other"),
    "state of another optimizer": (renamed(*MOMENTUM), r"state\.0 is without momentum_buffer; with other"),
    "a number for a tensor": (replaced(*MOMENTUM, by=3), r"does not use the tensor"),
    "another shape": (
        reshaped("training/" + "/".join(map(str, MOMENTUM)), torch.zeros(3)),
        r"momentum_buffer is float32 \[3\], not float32 \[16, 256\]",
    ),
    "another type": (
        reshaped("training/tally/hits", torch.zeros(())),
        r"training\.tally\.hits is float32 \[\], not int64 \[\]",
    ),
    "a text for a number": (replaced("tally", "images", by="many"), r"tally\.images is a string, not an integer"),
    "no groups": (replaced("optimizer", "param_groups", by=[]), r"param_groups is a list of 0, not of 1"),
    "an epoch before the first": (replaced("progress", "epoch", by=-1), r"training\.progress\.epoch is wrong"),
    "a batch beyond the last": (replaced("progress", "batch", by=99), r"saved after batch 99 of \d"),
    "infinite patience": (
        replaced("progress", "best_value", by=float("inf")),
        r"training\.progress\.best_value is wrong",
    ),
    "random numbers of no generator": (replaced("random", "python", by=[3, [1, 2], None]), r"python\.1 is a list of 2"),
    "random numbers beyond their words": (
        reshaped("training/random/torch", torch.full((5056,), 255, dtype=torch.uint8)),
        r"training\.random is not the state of a generator",
    ),
    "a value of no kind": (replaced("scaler", by={"x": 1}), r"its training state has an invalid value"),
    "a tensor that is not there": (replaced("scaler", by={"tensor": "x"}), r"has an invalid value"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_training_state_that_does_not_fit_says_where_and_changes_nothing(what: str, saved: Path) -> None:
    change, message = SPOILT[what]
    rewrite(saved / LAST, change)
    run = small()
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    before = torch.get_rng_state()
    with pytest.raises(RunError, match=message) as raised:
        checkpoint.restore(run, checkpoint.load(saved / LAST))
    assert str(raised.value).startswith(f"{saved / LAST}: is damaged: ")
    assert run.progress == Progress()
    assert not run.optimizer.state
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.model.state_dict().items())


def test_a_checkpoint_with_an_earlier_versions_names_of_early_stopping_is_restored(saved: Path) -> None:
    expected = checkpoint.load(saved / LAST).training

    def earlier(state: Any, tensors: dict[str, torch.Tensor]) -> None:
        entry(state, "progress", "epochs_without_improvement")[0] = "waited"
        entry(state, "progress", "reference_value")[0] = "waited_from"

    rewrite(saved / LAST, earlier)
    run = small()
    checkpoint.restore(run, checkpoint.load(saved / LAST))
    assert expected is not None
    assert run.progress == Progress(**expected["progress"])
    assert run.progress.reference_value is not None


@pytest.mark.parametrize("optimizer", registry.OPTIMIZERS)
def test_the_state_of_every_built_in_optimizer_fits_a_run_of_its_own(optimizer: str, tmp_path: Path) -> None:
    requested = {"name": optimizer, "lr": 0.01} | ({"momentum": 0.9} if optimizer in ("sgd", "rmsprop") else {})
    changes = {
        "optimizer": requested,
        "epochs": 1,
        "model": {"name": "mlp", "hidden": [16, 16]},
    }
    run, twin = small(**changes), small(**changes)
    list(fit(run))
    checkpoint.save(run, tmp_path, best=False)
    checkpoint.restore(twin, checkpoint.load(tmp_path / LAST))
    ours, reference = (dict(enumerate(one.optimizer.state.values())) for one in (twin, run))
    assert ours.keys() == reference.keys()
    for index, state in ours.items():
        assert state.keys() == reference[index].keys()
        assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(reference[index][key])) for key in state)


# -- within an epoch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_within_an_epoch_is_bit_identical(variant: str, tmp_path: Path) -> None:
    requested = config(data__train=200, epochs=2, **VARIANTS[variant])
    whole = build_run(requested)
    expected = train_and_list_metrics(whole)
    events = 0
    run = build_run(requested)
    done: list[Any] = []
    while run.progress.epoch < 2:  # after each single step, everything is rebuilt from the file
        for event in fit_with_checkpoints(run, EveryStep()):
            events += isinstance(event, CheckpointEvent)
            if isinstance(event, Epoch):
                done.append((event.number, event.learning_rate, event.train, event.validation, event.test, event.best))
            checkpoint.save(run, tmp_path, best=isinstance(event, Epoch) and event.best)
            break
        torch.rand(7)  # another process would have other random numbers
        run = build_run(requested)
        newest, _ = checkpoint.newest(tmp_path)
        assert newest is not None
        checkpoint.restore(run, newest)
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
    from softmaxce.runs.folder import append_metrics

    for number in range(1, 4):
        append_metrics(tmp_path, {"epoch": number})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, number + 1))
    assert not list(tmp_path.glob("*.tmp"))
