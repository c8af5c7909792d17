"""Environments of the process: OpenMP's and MKL's settings, processors, forks, threads, home, umask, locale, terminal.

In each, commands end within a time limit, with the right status and without a traceback.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers import SMALL, Softmaxce

COMMAND = shlex.quote(str(Path(sys.executable).parent / "softmaxce"))
LIMIT = 120  # seconds; a hang is for ever, and a machine may be busy

SETTINGS = {
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "OMP_NUM_THREADS=64": {"OMP_NUM_THREADS": "64"},
    "OMP_THREAD_LIMIT=1": {"OMP_THREAD_LIMIT": "1"},
    "OMP_THREAD_LIMIT=1, OMP_NUM_THREADS=2": {"OMP_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "2"},
    "OMP_DYNAMIC=true": {"OMP_DYNAMIC": "true"},
    "OMP_PROC_BIND=true": {"OMP_PROC_BIND": "true"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_CPU_AFFINITY=0": {"GOMP_CPU_AFFINITY": "0"},
    "KMP_BLOCKTIME=0, MKL_NUM_THREADS=1": {"KMP_BLOCKTIME": "0", "MKL_NUM_THREADS": "1"},
    "OMP_NUM_THREADS=nonsense": {"OMP_NUM_THREADS": "nonsense"},
}
NAMES = ("OMP_", "GOMP_", "KMP_", "MKL_")


def shell(line: str, folder: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """A line of shell without the settings of the tests' own OpenMP; None removes a variable."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(NAMES)}
    variables = {key: value for key, value in (inherited | environment).items() if value is not None}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT, check=False
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder, with a config and a run of it."""
    folder = tmp_path_factory.mktemp("environments")
    (folder / "small.yaml").write_text(SMALL)
    done = shell(f"{COMMAND} train small.yaml -q", folder)
    assert done.returncode == 0, done.stderr
    return folder


def metrics(run: Path) -> str:
    """A run's metrics of its epochs, without their times."""
    return (run / "metrics.jsonl").read_text().partition(', "images_per_second"')[0]


@pytest.mark.parametrize("name", [*SETTINGS, "taskset -c 0"])
def test_training_ends_whatever_is_set_for_threads(name: str, here: Path) -> None:
    prefix = ""
    if name.startswith("taskset"):
        if shutil.which("taskset") is None:
            pytest.skip("there is no taskset")
        prefix = name
    output = shlex.quote(f"threads {name}")
    line = f"{prefix} {COMMAND} train --config digits --set epochs=1 --output {output} -q"
    done = shell(line, here, **SETTINGS.get(name, {}))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert '"epoch": 1' in metrics(here / f"threads {name}")


IN_THREADS = """\
import threading
import softmaxce
def train(name):
    softmaxce.train("small.yaml", output=name, quiet=True)
    ended.append(name)
ended = []
threads = [threading.Thread(target=train, args=(f"in a thread {n}",)) for n in range(2)]
for group in (threads[:1], threads[1:]):
    group[0].start()
    train(f"beside {group[0].name}")
    group[0].join()
print(len(ended))
"""
FORKED = """\
import os, sys
import softmaxce
softmaxce.train("digits", {"epochs": 1}, output="forked", quiet=True)
if (child := os.fork()) == 0:
    print(softmaxce.load("forked").metrics("test").accuracy, flush=True)
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(softmaxce.load("forked").metrics("test").accuracy)
sys.exit(status)
"""


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own; all of its processes are ended after the time limit."""
    return shell(f"timeout -s KILL {LIMIT - 10} {shlex.quote(sys.executable)} -c {shlex.quote(code)}", folder)


def test_training_in_python_threads_ends(here: Path) -> None:
    done = python(IN_THREADS, here)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["4"]), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_after_training_evaluates_to_the_same_accuracy(here: Path) -> None:
    done = python(FORKED, here)
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.splitlines()[-2:]
    assert float(child) == pytest.approx(float(parent), abs=0.01)  # on one thread, sums are rounded otherwise


# -- home, umask, locale, terminal ------------------------------------------------------------------------------------

PLACES: dict[str, dict[str, str | None]] = {
    "no HOME": {"HOME": None},
    "HOME is missing": {"HOME": "/nonexistent/home"},
    "HOME is unwritable": {"HOME": "/proc"},
    "umask 077": {},
    "LC_ALL=C": {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "TERM=dumb": {"TERM": "dumb"},
    "COLUMNS=40": {"COLUMNS": "40"},
    "COLUMNS=60": {"COLUMNS": "60"},
    "COLUMNS=80": {"COLUMNS": "80"},
}
CHEAP = ("list losses", "runs", "config check small.yaml")
EVALUATED = ("HOME is unwritable", "LC_ALL=C", "COLUMNS=40")  # where torch is imported too


@pytest.mark.parametrize("name", PLACES)
def test_commands_work_wherever_they_run(name: str, here: Path) -> None:
    prefix = "umask 077;" if name.startswith("umask") else ""
    words = (*CHEAP, "eval runs/small/1") if name in EVALUATED else CHEAP
    line = " && ".join(f"{COMMAND} {each}" for each in words)
    done = shell(f"{prefix} {line}", here, **PLACES[name])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "softmax_cross_entropy" in done.stdout
    assert "runs/small/1" in done.stdout  # a path is never folded
    if name == "LC_ALL=C":
        assert done.stdout.isascii()


def test_nobody_else_reads_a_run_that_is_trained_with_umask_077(here: Path) -> None:
    done = shell(f"umask 077; {COMMAND} train small.yaml --output private -q", here)
    assert done.returncode == 0, done.stderr
    assert {file.stat().st_mode & 0o077 for file in [here / "private", *(here / "private").rglob("*")]} == {0}


@pytest.mark.parametrize("name", ["[a] b", 'it\'s "q"'])
def test_the_next_line_can_be_pasted_into_a_shell(name: str, here: Path) -> None:
    (here / f"{name}.yaml").write_text(SMALL)
    done = shell(f"{COMMAND} train {shlex.quote(name + '.yaml')}", here)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("next: ")]
    assert shlex.split(line) == ["next:", "softmaxce", "eval", f"runs/{name}/1"]


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "", "-3", "1e3", "\u0663"])
def test_a_launchers_variable_that_is_not_a_number_is_one_line_with_its_name(
    name: str, value: str, softmaxce: Softmaxce, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, text in (LAUNCHED | {name: value}).items():
        monkeypatch.setenv(key, text)
    done = softmaxce("train", "--config", str(small))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {name}: '{value}' in the environment is not a number; "
        "a launcher of several processes sets it, else unset it\n"
    )


def test_a_process_whose_others_never_start_says_so_and_ends_by_sigterm(small: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).parent / "softmaxce"), "train", "--config", small.name]
    variables = os.environ | LAUNCHED | {"MASTER_PORT": port}
    process = subprocess.Popen(command, cwd=small.parent, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == (
        f"waiting at localhost:{port} for the other processes; this is rank 0 of 2, by its environment\n"
    )
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM  # 143 to a shell
    process.stderr.close()
    assert not (small.parent / "runs").exists()
