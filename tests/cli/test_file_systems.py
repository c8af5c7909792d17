"""File systems that are small, read-only, or lack what others have: each has a way on, or one line."""

import functools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..helpers import SMALL

COMMAND = shlex.quote(str(Path(sys.executable).parent / "softmaxce"))


@functools.cache
def _no_mounts() -> str:
    """Why no file system can be mounted here, in a mount namespace of its own; empty if one can."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "mounting needs root"


needs_mounts = pytest.mark.skipif(bool(_no_mounts()), reason=_no_mounts())


def mounted(options: str, where: str, script: str, folder: Path, timeout: int) -> subprocess.CompletedProcess[str]:
    """A shell script, run where a tmpfs with `options` is mounted on `where`, which nobody else sees."""
    line = f"mount -t tmpfs -o {options} tmpfs {where} && {script}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


# -- shared memory ----------------------------------------------------------------------------------------------------

ON_DISK = """\
epochs: 1
data: {name: image_folder, root: images, size: 96, in_memory: false, batch_size: 16, workers: 2}
model: linear
optimizer: {name: sgd, lr: 0.001}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config of images on disk, and the last line of metrics of its training."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "disk.yaml").write_text(ON_DISK)
    (folder / "small.yaml").write_text(SMALL)
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(60):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.png")
    done = subprocess.run(["sh", "-c", f"{COMMAND} train disk.yaml --output usual -q"], cwd=folder, check=False)
    assert done.returncode == 0
    return folder


SHARED_MEMORY = {  # options of /dev/shm -> whether the training process has to decode
    "size=600k": False,  # one batch of the eight that are prepared has 442 kB
    "size=4k": True,
    "ro": True,
}


@needs_mounts
@pytest.mark.parametrize("options", SHARED_MEMORY)
def test_training_on_files_neither_hangs_nor_differs_where_shared_memory_is_small(options: str, images: Path) -> None:
    script = f"{COMMAND} train disk.yaml --output {options} -q"
    done = mounted(options, "/dev/shm", script, images, 60)
    assert done.returncode == 0, done.stderr
    if SHARED_MEMORY[options]:
        (line,) = done.stderr.splitlines()
        assert line.startswith("warning: images are decoded in the training process, as worker processes need shared ")
    else:
        assert done.stderr == ""
    lines = [(images / run / "metrics.jsonl").read_text().partition('"images_per')[0] for run in ("usual", options)]
    assert lines[0] == lines[1]
