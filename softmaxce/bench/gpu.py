"""`bench gpu`: the parts of a check of one GPU, each in a process of its own that ends within its share of the time.

So a part that fails, that spoils its CUDA context or that hangs ends alone, and what it had measured by then counts.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from ..errors import RunError, in_one_line, ran_out_of_memory

TESTS, LOSS, TRAINING, CIFAR10, PROCESSES = "tests", "loss", "training", "cifar10", "processes"
LIMITS = {TESTS: 100.0, LOSS: 70.0, TRAINING: 50.0, CIFAR10: 40.0, PROCESSES: 30.0}  # seconds; 290 in all
DONE, LEFT_OUT, FAILED, INTERRUPTED = "done", "left out", "failed", "interrupted"  # the status of a part

CHECKOUT = Path(__file__).parents[2]  # where the tests are, if this is one
SHAPES = ((1024, 10), (65536, 1000), (8192, 32000), (8192, 128256))  # N x C of the logits
STAND_INS = (  # images of the same shape, and as many, where a data set is not here
    ("mnist_fast", ["data.size=28", "data.channels=1", "data.train=60000", "data.test=10000"]),
    ("cifar10", ["data.size=32", "data.channels=3", "data.train=50000", "data.test=10000"]),
)

Arguments = Mapping[str, dict[str, Any]]  # of the parts, by name; see gpu_part.PARTS


@dataclass(frozen=True)
class Part:
    """What one part has measured.

    Attributes:
        name: a key of LIMITS.
        status: DONE, LEFT_OUT, FAILED or INTERRUPTED.
        seconds: of its process.
        rows: its results; each part describes its own.
        notes: lines about how it was measured, and what was left out and why.
        failures: lines, each about something that failed.
    """

    name: str
    status: str
    seconds: float
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]


class Report(logging.Handler):
    """Writes a part's results, in its process, as JSON lines: those of a process that is ended count. See `Part`.

    Warnings that are logged become notes.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.WARNING)
        self.stream = stream

    def _write(self, **line: Any) -> None:
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()

    def row(self, **values: Any) -> None:
        """A result."""
        self._write(row=values)

    def note(self, text: str) -> None:
        """A line on how something was measured."""
        self._write(note=text)

    def left_out(self, why: str) -> None:
        """The whole part is left out."""
        self._write(note=why, left_out=True)

    def failed(self, text: str) -> None:
        """A line on something that failed."""
        self._write(failed=text)

    @contextlib.contextmanager
    def errors_of(self, what: str) -> Iterator[None]:
        """A block whose error is a line of the results, so that what comes after it is measured."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - compilers, drivers and other packages may raise anything
            memory = "memory ran out: " if ran_out_of_memory(error) else ""
            self.failed(f"{what}: {memory}{in_one_line(error)}")

    def emit(self, record: logging.LogRecord) -> None:
        """A warning."""
        self.note(record.getMessage())


def arguments(airbench: Path | None = None) -> dict[str, dict[str, Any]]:
    """The arguments of every part, as on a GPU; `airbench` is the file of the public program, if it is to run too."""
    return {
        TESTS: {"root": str(CHECKOUT)},
        LOSS: {"device": "cuda:0", "shapes": SHAPES, "dtypes": ["bfloat16", "float32"], "rounds": 10},
        TRAINING: {
            "recipes": {name: {"overrides": ["device=cuda"], "stand_in": stand_in} for name, stand_in in STAND_INS},
            "rounds": 3,
            "plain_batches": 20,
        },
        CIFAR10: {
            "recipe": "cifar10",
            "overrides": ["device=cuda"],
            "target": 0.94,
            "runs": 3,
            "airbench": None if airbench is None else str(airbench.absolute()),
        },
        PROCESSES: {"device": "cuda", "counts": [1, 2], "images": 2048, "epochs": 3},
    }


def card() -> dict[str, Any]:
    """The first GPU, its driver, versions of packages beside torch, and the date. Raises: RunError without a GPU."""
    import torch

    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds none"
        raise RunError(f"bench gpu needs an NVIDIA GPU, and {why}")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "triton": _version("triton"),
        "liger_kernel": _version("liger_kernel"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str | None:
    """The driver's version, as nvidia-smi prints it; None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # the driver works without the program
        return None
    return done.stdout.strip().split("\n")[0] or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # it is optional
        return None


def measure(
    arguments: Arguments, started: Callable[[str], None], limits: Mapping[str, float] = LIMITS
) -> Iterator[Part]:
    """Run the parts one after the other; each may also use the time that earlier ones have left.

    Args:
        arguments: of the parts to run, by name.
        started: called with the name of each.
        limits: seconds of each.
    Raises: KeyboardInterrupt, after the part that was interrupted.
    """
    began, allowed = time.monotonic(), 0.0
    for name, options in arguments.items():
        allowed += limits[name]
        started(name)
        part, interruption = _run(name, options, began + allowed - time.monotonic())
        yield part
        if interruption is not None:
            raise interruption


def _run(name: str, options: dict[str, Any], limit: float) -> tuple[Part, KeyboardInterrupt | None]:
    began = time.monotonic()
    options = {**options, "deadline": time.time() + limit} if name == CIFAR10 else options
    command = [sys.executable, "-m", "softmaxce.bench.gpu_part", name, json.dumps(options)]
    interruption = None
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder, "results"), Path(folder, "stderr")
        with results.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=_environment(), start_new_session=True
            )
            try:
                process.wait(max(0.0, limit))
                end = None
            except subprocess.TimeoutExpired:  # its results so far count
                end = f"it was ended after {limit:.0f} s, its share of the time; what it had measured by then counts"
            except KeyboardInterrupt as error:  # SIGTERM too
                interruption, end = error, None
            finally:
                stopped = _end(process)
        if not stopped and process.returncode:
            end = _why(process.returncode, errors.read_text("utf-8", errors="replace"))
        part = part_of(name, results.read_text("utf-8"), time.monotonic() - began, end)
    return part if interruption is None else replace(part, status=INTERRUPTED), interruption


def part_of(name: str, written: str, seconds: float, end: str | None = None) -> Part:
    """A part by what its Report has written; `end` says why its process has ended early."""
    lines = [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith("\n")]
    failures = [line["failed"] for line in lines if "failed" in line] + ([end] if end else [])
    return Part(
        name,
        FAILED if failures else LEFT_OUT if any("left_out" in line for line in lines) else DONE,
        round(seconds, 1),
        tuple(line["row"] for line in lines if "row" in line),
        tuple(line["note"] for line in lines if "note" in line),
        tuple(failures),
    )


def _environment() -> dict[str, str]:
    """For a part: it sees the first GPU alone, so that two processes share it."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return os.environ | {"CUDA_VISIBLE_DEVICES": first or "0", "PYTHONUNBUFFERED": "1"}


def _end(process: "subprocess.Popen[bytes]") -> bool:
    """End a part's process and those that it has started, if it still runs. Returns: whether it did."""
    if process.poll() is not None:
        return False
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
    else:  # Windows
        process.kill()
    process.wait()
    return True


def _why(status: int, errors: str) -> str:
    """Why a part's process ended with an exit status that is not 0."""
    last = ([line.strip() for line in errors.splitlines() if line.strip()] or ["without a message"])[-1]
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"its process ended with {how}: {last}"
