"""Compiled code and its cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOSS = "import torch, softmaxce; print(softmaxce.cross_entropy(torch.zeros(2, 10), torch.tensor([1, 2])).item())"


def loss(package: Path, cache: Path) -> float:
    """The loss of two uniform rows of ten classes, log 10, in a process of its own that imports this copy."""
    environment = os.environ | {"PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(cache)}
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
