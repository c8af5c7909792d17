"""`sweep --jobs` and `train --seeds --jobs`: the runs of the serial form, several at a time. Five commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from softmaxce_cli.job import Part
from softmaxce_cli.jobs import _Jobs
from softmaxce_cli.training import OutputOptions
from typer.testing import CliRunner

from softmaxce.config.sweep import grid
from softmaxce.files import lock_holder, locked
from softmaxce.runs.plan import Plan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows forks no processes")

CONFIG = """\
epochs: 2
data: {name: synthetic, train: 96, test: 60, noise: 0.8, batch_size: 32, validation: 0.25}
model: {name: mlp, hidden: [16]}
optimizer: {name: sgd, lr: 0.05}
"""
TIMES = ("seconds", "images_per_second")


def start(folder: Path, *arguments: str, in_background: bool = False) -> "subprocess.Popen[str]":
    """The command; with `in_background`, as a script's `&` starts it, with SIGINT ignored."""
    (folder / "c.yaml").write_text(CONFIG)
    command = [str(Path(sys.executable).parent / "softmaxce"), *arguments]
    if in_background:
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def events(text: str, folder: str) -> dict[str, list[Any]]:
    """The events by their run, without times and the run's folder; those of no run under ''."""
    runs: dict[str, list[Any]] = {}
    run = ""
    for line in text.splitlines():
        event = json.loads(line.replace(f"{folder}/", ""))
        run = event["run"] if event["event"] == "start" else run
        run = "" if event["event"] == "comparison" else run
        runs.setdefault(run, []).append({key: value for key, value in event.items() if key not in TIMES})
    return runs


def test_runs_at_a_time_are_those_of_the_serial_form_to_the_bit_and_one_that_fails_is_a_line(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["sweep", "c.yaml", "--lr", "0.05,1e30,0.01", "--require", "accuracy>=0", "--json", "--output"]
    process = start(tmp_path, *line, "parallel", "--jobs", "2")
    stdout, said = process.communicate(timeout=120)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    serial = CliRunner().invoke(app, [*line, "serial"])
    torch.set_num_threads(threads)
    assert process.returncode == serial.exit_code == 1, said
    assert events(stdout, "parallel") == events(serial.stdout, "serial")
    assert list(events(stdout, "parallel"))[-1] == ""  # the comparison comes last
    failure = next(line for line in serial.stderr.splitlines() if "failed: " in line)
    assert said.splitlines().count(failure.replace("serial/", "parallel/")) == 1
    assert "3 runs, 2 at a time, each with 1 thread" in said
    assert "Traceback" not in said
    for lr in ("0.05", "0.01"):
        first, second = (tmp_path / name / f"lr={lr}" / "best.safetensors" for name in ("parallel", "serial"))
        assert first.read_bytes() == second.read_bytes()


def test_two_commands_share_a_sweep_and_each_run_is_trained_once(tmp_path: Path) -> None:
    line = ["sweep", "c.yaml", "--lr", "0.05,0.02,0.01,0.005", "--output", "s", "--resume", "auto", "--jobs", "1"]
    processes = [start(tmp_path, *line, "--set", "data.train=8000") for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    trained = [
        text for _, said in ends for text in said.splitlines() if "already finished" in text or "started" in text
    ]
    assert len(trained) >= 8
    summaries = [text for stdout, _ in ends for text in stdout.splitlines() if text.startswith("[")]
    assert sorted(text.split("run folder: ")[1].split()[0] for text in summaries) == [
        f"s/lr={lr}" for lr in ("0.005", "0.01", "0.02", "0.05")
    ]
    tables = [stdout[stdout.index("ranked by") :] for stdout, _ in ends]
    assert tables[0] == tables[1]


def children(parent: int) -> list[int]:
    """The processes that descend from one, by their ids."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
    found = [parent]
    for one in found:
        found += [child for child, its in parents.items() if its == one]
    return found[1:]


def begin_long_runs(folder: Path, *options: str, in_background: bool = False) -> "subprocess.Popen[str]":
    """A command with two runs in progress, each after its first epoch."""
    line = ["train", "c.yaml", "--seeds", "3", "--jobs", "2", "--output", "s", "--set", "data.train=4000"]
    process = start(folder, *line, *options, in_background=in_background)
    until = time.monotonic() + 60
    metrics = [folder / "s" / f"seed-{seed}" / "metrics.jsonl" for seed in (0, 1)]
    before = [file.read_text().count("\n") if file.exists() else 0 for file in metrics]
    while any(not file.exists() or file.read_text().count("\n") <= n for file, n in zip(metrics, before, strict=True)):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_its_command(tmp_path: Path) -> None:
    process = begin_long_runs(tmp_path, "--epochs", "100000")
    started = children(process.pid)
    assert len(started) >= 4  # two runs, the server that forks them, and multiprocessing's own
    process.kill()
    process.communicate(timeout=5)  # its pipes are closed by the last process
    until = time.monotonic() + 5
    while any(Path(f"/proc/{one}").exists() for one in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{one}").exists() for one in started)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("in_background", [False, True])
def test_sigint_saves_all_runs_also_one_that_is_just_being_started(tmp_path: Path, in_background: bool) -> None:
    process = begin_long_runs(tmp_path, "--epochs", "100000", "--resume", "auto", in_background=in_background)
    runs = [one for one in children(process.pid) if lock_holder(tmp_path / "s" / "seed-0") == holder(one)]
    os.kill(runs[0], signal.SIGKILL)  # the others go on
    assert process.stderr is not None
    while "was killed by SIGKILL" not in (text := process.stderr.readline()):
        assert text, "ended without a line about the killed process"
    assert text.startswith("[1/3] seed-0: failed: ")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "resume all of them with the same command and --resume auto" in said
    assert "Traceback" not in said
    assert "interrupted after" in json.loads((tmp_path / "s/seed-1/run.json").read_text())["message"]


def test_a_signal_that_comes_before_a_run_handles_it_is_not_lost_though_the_command_ignored_sigint(
    tmp_path: Path,
) -> None:
    # Setting a pending signal to SIG_IGN, as multiprocessing does in a process that it forks, discards it.
    ignored = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    code = f"""
import sys
from softmaxce_cli import jobs
jobs.start_server()
process = jobs._context().Process(target=exec, args=({ignored!r},))
process.start()
process.join()
sys.exit(process.exitcode)
"""
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def holder(process: int) -> str:
    return f"process {process} on {os.uname().nodename}"


def test_a_lock_is_seen_from_another_process_and_not_disturbed(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    code = f"import pathlib, softmaxce.files; print(softmaxce.files.lock_holder(pathlib.Path({str(tmp_path)!r})))"
    with locked(tmp_path):
        for _ in range(2):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == holder(os.getpid())
    assert lock_holder(tmp_path) is None


def test_a_run_that_a_signal_keeps_from_starting_leaves_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    points = grid("c.yaml", ["optimizer.lr=0.1,0.2"])
    jobs = _Jobs(points, [Plan(point.config) for point in points], [], OutputOptions(), [Part(1, 1)])
    jobs.stopped = signal.SIGINT
    jobs._start(0, 0)
    assert not jobs.running
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["train", "c.yaml", "--jobs", "2"], "error: --jobs: trains several runs at a time; add --seeds N"),
        (["train", "c.yaml", "--seeds", "2", "--jobs", "2", "--set", "data={name: image_folder, root: no}"],
         "error: data.root: there is no folder 'no'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_any_run_is_started(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(answer)
    assert not (tmp_path / "runs").exists()
