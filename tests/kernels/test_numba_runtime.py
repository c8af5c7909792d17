"""Compiled code and its cache."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

from softmaxce.kernels import numba_runtime
from softmaxce.kernels.numba_runtime import pointer_to

ROOT = Path(__file__).parents[2]
LOSS = "import torch, softmaxce; print(softmaxce.cross_entropy(torch.zeros(2, 10), torch.tensor([1, 2])).item())"


QUICK = {"NUMBA_OPT": "1"}  # LLVM's level of optimization: code that compiles in half the time


def loss(package: Path, cache: Path) -> float:
    """The loss of two uniform rows of ten classes, log 10, in a process of its own that imports this copy."""
    environment = os.environ | QUICK | {"PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", LOSS], cwd=package, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_compiled_code_follows_a_helper_in_another_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "softmaxce", tmp_path / "softmaxce", ignore=shutil.ignore_patterns("__pycache__"))
    before = loss(tmp_path, tmp_path / "cache")
    assert abs(before - 2.302585) < 1e-5
    helper = tmp_path / "softmaxce" / "kernels" / "numbers.py"
    text = helper.read_text()
    assert "math.log(one_more) *" in text  # of log1p
    helper.write_text(text.replace("math.log(one_more) *", "2.0 * math.log(one_more) *"))
    assert loss(tmp_path, tmp_path / "cache") != before


class Job(ctypes.Structure):
    _fields_ = (("next_chunk", ctypes.c_int64), ("num_chunks", ctypes.c_int64), ("answer_", ctypes.c_int64))


def kernel(job_: Any) -> None:
    job = numba.carray(job_, 1)[0]
    pointer_to(job.answer_, numba.int64(0))[0] = job.num_chunks * 6


def answer() -> int:
    """What the kernel, compiled or read from the cache, makes of 7."""
    result = ctypes.c_int64()
    job = Job(0, 7, ctypes.addressof(result))
    numba_runtime.compile_kernel(kernel, Job, set())(ctypes.addressof(job))
    return result.value


def cached(folder: Path) -> dict[str, bytes]:
    return {file.suffix: file.read_bytes() for file in folder.rglob("*.nb?")}


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("size", [0, 1, 40, -1], ids=["empty", "one byte", "cut short", "without its last byte"])
def test_a_damaged_cache_of_compiled_code_is_made_again(
    ending: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert answer() == 42
    whole = cached(tmp_path)
    assert set(whole) == {".nbi", ".nbc"}
    (damaged,) = tmp_path.rglob(f"*{ending}")
    damaged.write_bytes(whole[ending][:size])
    assert answer() == 42
    assert {name: len(content) for name, content in cached(tmp_path).items()} == {
        name: len(content) for name, content in whole.items()
    }
    monkeypatch.setattr(numba_runtime, "_remove_cached", None)  # whoever needs it again fails
    assert answer() == 42
    assert str(tmp_path) == numba.config.CACHE_DIR


@pytest.mark.parametrize("kind", ["a file", "a device that is full", "a folder that is gone"])
def test_without_a_folder_for_compiled_code_it_is_compiled_and_nothing_lies_beside_the_source(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"a file": tmp_path / "file", "a device that is full": Path("/dev/full")}.get(kind, Path("/proc/1/gone"))
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    beside = set(Path(__file__).parent.rglob("*.nb?"))
    assert answer() == 42
    assert set(Path(__file__).parent.rglob("*.nb?")) == beside


FULL = """
import resource, signal, sys, torch
import softmaxce.build  # all that is compiled later
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # a larger file fails as on a full disk
from softmaxce.config.from_python import load_config
print(softmaxce.build.build_run(load_config("digits")).loss(torch.zeros(2, 10), torch.tensor([1, 2])).item())
"""


def test_a_disk_that_fills_up_while_code_is_cached_is_no_fault_of_the_config(tmp_path: Path) -> None:
    environment = os.environ | QUICK | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FULL], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout) - 2.302585) < 1e-5
    assert not list(tmp_path.rglob("*.nbc"))


def test_numbas_settings_in_the_current_folder_are_not_read_while_a_kernel_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".numba_config.yaml").write_text(f"cache_dir: {tmp_path / 'theirs'}\ndisable_jit: 1\n")
    name = numba.config._config_fname
    assert answer() == 42
    assert numba.config.DISABLE_JIT == 0
    assert not (tmp_path / "theirs").exists()
    assert numba.config._config_fname == name
