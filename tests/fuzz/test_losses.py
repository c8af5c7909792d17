"""Short runs of the losses' fuzzing: 300 rounds, and every kernel between guard pages."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from . import losses

ROOT = Path(__file__).parents[2]


def test_losses_match_the_formula_for_random_shapes_dtypes_layouts_and_options() -> None:
    findings = [finding for seed in range(1_000_000, 1_000_300) if (finding := losses.attempt(seed)) is not None]
    assert findings == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected in Linux's way")
def test_no_kernel_reads_or_writes_outside_its_tensors() -> None:
    command = [sys.executable, "-m", "tests.fuzz.guards"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr[-2000:]}"
    assert "no access outside any tensor" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected in Linux's way")
def test_a_read_of_one_byte_beyond_a_guarded_tensor_crashes() -> None:
    command = [sys.executable, "-m", "tests.fuzz.guards", "trap"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGSEGV
