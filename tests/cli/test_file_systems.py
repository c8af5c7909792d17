"""File systems that are small, read-only, or lack what others have: each has a way on, or one line."""

import errno
import functools
import json
import os
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
    "size=2m": False,  # two of the six batches that are prepared and in use, in memory that is used again
    "size=600k": False,  # a batch has 442 kB
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


# -- system calls that a file system does not have --------------------------------------------------------------------

SHIM = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(const char *call) { return getenv(call) ? (errno = atoi(getenv(call)), -1) : 0; }
static int is(int file, mode_t kind) { struct stat s; return !fstat(file, &s) && (s.st_mode & S_IFMT) == kind; }

int fsync(int file) {
    if (is(file, S_IFDIR) && refused("NO_FSYNC")) return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
int link(const char *old, const char *new) {
    return refused("NO_LINK") ? -1 : ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link"))(old, new);
}
int linkat(int a, const char *old, int b, const char *new, int flags) {
    if (refused("NO_LINK")) return -1;
    return ((int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat"))(a, old, b, new, flags);
}
ssize_t write(int file, const void *from, size_t size) {
    if (size > 2000 && is(file, S_IFREG) && refused("NO_WRITE")) return -1;
    return ((ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(file, from, size);
}
int fcntl64(int file, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    if ((command == F_SETLK || command == F_SETLKW) && refused("NO_LOCK")) return -1;
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, "fcntl64"))(file, command, argument);
}
"""
SHIM += SHIM[SHIM.index("int fcntl64") :].replace("fcntl64", "fcntl")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, preloaded, refuses the system calls that the environment names, each with an error's number."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("there is no C compiler, or no LD_PRELOAD")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "shim.so"


REFUSED = {
    "old CIFS": ({"NO_FSYNC": errno.EINVAL, "NO_LINK": errno.EPERM, "NO_LOCK": errno.ENOLCK}, "No locks available"),
    "FUSE": (
        {"NO_FSYNC": errno.EOPNOTSUPP, "NO_LINK": errno.EOPNOTSUPP, "NO_LOCK": errno.EOPNOTSUPP},
        "Operation not supported",
    ),
    "no system calls": ({"NO_FSYNC": errno.ENOSYS, "NO_LINK": errno.ENOSYS, "NO_LOCK": errno.ENOSYS}, "Function not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_is_trained_and_resumed_where_flushes_links_and_locks_are_refused(
    name: str, shim: Path, images: Path
) -> None:
    calls, reason = REFUSED[name]
    environment = os.environ | {"LD_PRELOAD": str(shim)} | {call: str(number) for call, number in calls.items()}
    output = shlex.quote(name)
    script = f"{COMMAND} train small.yaml --output {output} -q && {COMMAND} train --resume {output} --epochs 4 -q"
    done = subprocess.run(
        ["sh", "-c", script], cwd=images, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "learning rate" not in line]
    assert len(warnings) == (2 if reason else 0)
    for line in warnings:
        assert line.startswith(f"warning: {name}: cannot be locked ({reason}")
    checkpoints = {file.name for file in (images / name).iterdir() if file.suffix == ".safetensors"}
    assert {"last.safetensors", "last.1.safetensors", "best.safetensors"} <= checkpoints
    assert not list((images / name).glob("*.tmp"))
    assert len((images / name / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_quota_that_is_used_up_is_one_line_with_the_file_and_the_remedy(shim: Path, images: Path) -> None:
    environment = os.environ | {"LD_PRELOAD": str(shim), "NO_WRITE": str(errno.EDQUOT)}
    script = f"{COMMAND} train small.yaml --output quota -q"
    done = subprocess.run(
        ["sh", "-c", script], cwd=images, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: quota/")
    assert "Disk quota exceeded; make room in your quota and " in line


# -- a disk that is full or read-only ---------------------------------------------------------------------------------

DRIVER = """\
import json, subprocess, sys
from typer.testing import CliRunner
from softmaxce_cli.main import app
def run(*words):
    done = CliRunner().invoke(app, words)
    return [done.exit_code, done.stderr]
assert run("train", "small.yaml", "--output", "/mnt/run", "-q")[0] == 0
subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
print(json.dumps({line: run(*line.split()) for line in sys.argv[1:]}))
"""
READ = (
    *("eval /mnt/run", "compare /mnt/run /mnt/run", "explain /mnt/run --index 0", "predict /mnt/run images/a/0.png"),
)
WRITE = (
    "report /mnt/run",
    "train --resume /mnt/run -q",
    "calibrate /mnt/run",
    "train --resume /mnt/run --epochs 5 -q",
    "train small.yaml --output /mnt/x",
)


@needs_mounts
def test_a_run_on_a_read_only_disk_is_read_and_what_would_write_there_is_one_line_and_2(images: Path) -> None:
    words = " ".join(map(shlex.quote, (sys.executable, "-c", DRIVER, *READ, *WRITE)))
    done = mounted("size=64m", "/mnt", words, images, 200)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for line in READ:
        assert results[line][0] == 0, (line, results[line])
    for line in WRITE:
        status, message = results[line]
        errors = [each for each in message.splitlines() if each.startswith("error: ")]
        assert (status, len(errors)) == (2, 1), (line, message)
        assert "/mnt/" in errors[0]
        assert "--output" in line or "--output" not in errors[0]  # no option is blamed that the line has not
        assert "Read-only file system" in errors[0]


@needs_mounts
def test_a_disk_that_is_full_is_one_line_with_the_remedy(images: Path) -> None:
    done = mounted("size=24k", "/mnt", f"{COMMAND} train small.yaml --output /mnt/run -q", images, 120)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: /mnt/run/")
    assert "No space left on device; make room on that disk and " in line
