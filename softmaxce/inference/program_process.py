"""A torch.export file, run in a fresh process."""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..argument_types import Depth
from ..data.arrays import Pixels
from . import program_worker
from .graph import ExportError

WAIT = 10.0  # seconds for the process to end once it has nothing more to do


class ProgramProcess:
    """A process of its own that has loaded a torch.export file; it ends with the `with` block.

    Args:
        file: the torch.export file.
        shape: (C, H, W) of its images.
        classes: K.
        depth: the type of its images.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int], classes: int, depth: Depth = "uint8") -> None:
        self._classes = classes
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-P", program_worker.__file__, str(file), *map(str, (*shape, classes)), depth]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def __enter__(self) -> "ProgramProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            if kind is not None:
                self._process.kill()
            self._process.wait(WAIT)
        except (OSError, subprocess.TimeoutExpired):  # a process that has died, or does not end by itself
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()
            self._errors.close()

    def timed(self, images: Pixels) -> tuple[NDArray[np.float32], float]:
        """Images [N, C, H, W] -> [N, K] probabilities, and the seconds that the program took.

        Raises: ExportError if the process has failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        size = 8 + len(images) * self._classes * 4
        try:
            self._process.stdin.write(struct.pack("<q", len(images)) + np.ascontiguousarray(images).tobytes())
            self._process.stdin.flush()
            answer = self._process.stdout.read(size)
        except BrokenPipeError:  # reported below
            answer = b""
        if len(answer) != size:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit status {self._process.returncode}"
            raise ExportError(f"the exported program cannot be run in a process of its own: {reason}")
        (seconds,) = struct.unpack("<d", answer[:8])
        return np.frombuffer(bytearray(answer[8:]), np.float32).reshape(len(images), self._classes), seconds
