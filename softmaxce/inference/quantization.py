"""An exported ONNX file with weights and activations of 8 bits, by ONNX Runtime's static quantization."""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.arrays import Pixels
from ..errors import in_one_line, ran_out_of_memory
from .export_metadata import INPUT, ExportMetadata
from .graph import ExportError, file_bytes

# What computes on 8 bits. Softmax is not among them: 8 bits of a probability are too few.
OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"]


def quantized(content: bytes, metadata: ExportMetadata, batches: Iterator[Pixels]) -> bytes:
    """A file of 8-bit weights, one scale per channel, and 8-bit activations.

    Args:
        content: the file in float32.
        metadata: of the new one.
        batches: training images [N, C, H, W], on which the ranges of the activations are measured.
    Raises: ExportError if ONNX Runtime cannot quantize the model.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, _silent():
        before, prepared, after = (Path(folder) / f"{name}.onnx" for name in ("before", "prepared", "after"))
        before.write_bytes(content)
        try:
            quant_pre_process(before, prepared, skip_symbolic_shape=True)  # merges batch norms into convolutions
            quantization.quantize_static(
                prepared, after, Images(), per_channel=True, op_types_to_quantize=OPERATORS, calibration_providers=None
            )
        except Exception as error:  # ONNX Runtime raises in many ways
            if ran_out_of_memory(error):
                raise
            raise ExportError(f"ONNX Runtime cannot quantize this model: {in_one_line(error)}") from error
        model = onnx.load(after)
    return file_bytes(model, metadata)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the advice that ONNX Runtime's quantization logs."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
