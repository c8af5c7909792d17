"""An exported ONNX file in ONNX Runtime, on the CPU. Needs no torch."""

import importlib.util
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..argument_types import Depth
from ..data.arrays import Pixels
from ..errors import ConfigError, MemoryRanOutError, Problem, RunError, in_one_line, ran_out_of_memory
from ..runtime.processors import processors
from .export_metadata import INPUT, OUTPUT

ERRORS_ONLY = 3  # ONNX Runtime's level of severity
MAX_TEXT = 400  # characters of its messages


def require_packages(names: Sequence[str], purpose: str, extra: str = "export") -> None:
    """Raises: ConfigError, naming the extra, unless these packages of it are installed.

    Args:
        names: as they are imported.
        purpose: what needs them, for the message.
        extra: the one that installs them.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        message = f"needs {' and '.join(missing)}; install with: pip install 'softmaxce[{extra}]'"
        raise ConfigError([Problem(purpose, message)])


class OnnxSession:
    """An ONNX file that `softmaxce export` wrote, loaded for the CPU.

    Args:
        file: the ONNX file.
        shape: (C, H, W) of its images.
        classes: K.
        depth: the type of its images.
    Raises: ConfigError if ONNX Runtime is not installed; RunError if it cannot load the file, or the graph has another
        input or output than the file's metadata says.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int], classes: int, depth: Depth = "uint8") -> None:
        require_packages(["onnxruntime"], str(file))
        import onnxruntime

        self.file = file
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = processors()
        options.log_severity_level = ERRORS_ONLY
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no base class of their own
            raise _refusal(file, "loaded", error, memory=ran_out_of_memory(error)) from None
        ends = [(end.name, end.type, list(end.shape)[1:]) for end in (*session.get_inputs(), *session.get_outputs())]
        kind = "float" if depth == "float32" else depth
        if ends != [(INPUT, f"tensor({kind})", list(shape)), (OUTPUT, "tensor(float)", [classes])]:
            raise RunError(f"{file}: is damaged: its graph does not turn {list(shape)} into {classes} probabilities")
        self._session: Any = session

    def probabilities(self, images: Pixels) -> NDArray[np.float32]:
        """Images [N, C, H, W] -> [N, K]. Raises: RunError if the graph cannot be run."""
        return self.timed(images)[0]

    def timed(self, images: Pixels) -> tuple[NDArray[np.float32], float]:
        """As `probabilities`, and the seconds it took."""
        began = time.perf_counter()
        try:
            (result,) = self._session.run([OUTPUT], {INPUT: images})
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no base class of their own
            raise _refusal(self.file, "run", error, memory=ran_out_of_memory(error)) from None
        return result, time.perf_counter() - began


def _refusal(file: Path, what: str, error: Exception, *, memory: bool) -> Exception:
    text = re.sub(r"^(\w+: )?\[ONNXRuntimeError\] : \d+ : \w+ : ", "", in_one_line(error))[:MAX_TEXT]
    if memory or "allocate" in text:
        return MemoryRanOutError(f"{file}: memory ran out in ONNX Runtime: {text}")
    return RunError(f"{file}: cannot be {what} by ONNX Runtime: {text}")
