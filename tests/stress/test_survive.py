"""The short form of tests/stress/survive.py: a few rounds, in processes forked from one that has loaded PyTorch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def survive(how: str, rounds: int, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.stress.survive", how, "--rounds", str(rounds), "--epochs", "1", "--fork"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # see tests/fuzz/watchdog.py
    return subprocess.run(
        [*command, "--folder", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["kill", signal.SIGTERM.name[3:], signal.SIGINT.name[3:]])
def test_a_run_stopped_at_random_instants_ends_as_an_undisturbed_one(how: str, tmp_path: Path) -> None:
    done = survive(how, 2, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 stopped" in done.stdout
    assert "0 problems" in done.stdout


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or sys.platform != "linux", reason="mounting a tmpfs needs root"
)
def test_a_run_on_a_disk_that_fills_up_says_so_and_can_be_resumed_when_there_is_room(tmp_path: Path) -> None:
    done = survive("disk", 1, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout
