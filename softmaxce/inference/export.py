"""`softmaxce export`: a trained model as one file for other programs, written only once it was run and compared."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..data.arrays import Pixels
from ..errors import ConfigError, Problem, RunError
from ..files import check_output, flush_folder, read_json, sha256_of, stage, writable
from ..runs.folder import SPLITS
from ..runs.header import find_checkpoint
from ..runs.resume import recorded_images
from ..runtime.version import softmaxce_version
from .certificate import Certificate, ExportedGraph, certify
from .export_metadata import ExportMetadata
from .graph import ExportError, onnx_bytes, program_bytes, trace
from .onnx_session import OnnxSession, require_packages
from .program_process import ProgramProcess
from .quantization import quantized
from .trained_model import TrainedModel

Format = Literal["onnx", "torch_export"]
Quantization = Literal["none", "int8"]
CALIBRATION, CALIBRATION_BATCH = 1000, 50  # training images that the ranges of 8-bit activations are measured on
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
PACKAGES: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
MAX_JSON = 32 << 20  # bytes of the certificate's file


@dataclass(frozen=True)
class Export:
    """An exported model and its certificate.

    Attributes:
        file: the model.
        certificate_file: the certificate and the metadata as JSON, beside it.
        format: onnx or torch_export.
        sha256: of the file.
        bytes: its size.
        runtime: what ran it for the certificate.
        metadata: what the file says of itself.
        certificate: how it compares with the run.
        unquantized_bytes: of a quantized file, the size before; else None.
    """

    file: Path
    certificate_file: Path
    format: Format
    sha256: str
    bytes: int
    runtime: str
    metadata: ExportMetadata
    certificate: Certificate
    unquantized_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the certificate's file holds it, and as --json prints it."""
        return {
            "file": self.file.name,
            "format": self.format,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "unquantized_bytes": self.unquantized_bytes,
            "runtime": self.runtime,
            "certificate": self.certificate.to_dict(),
            "metadata": self.metadata.to_dict(),
        }


def export(
    path: Path,
    format: Format = "onnx",
    output: Path | None = None,
    *,
    tta: str | None = None,
    quantize: Quantization = "none",
    force: bool = False,
    data_root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Export:
    """Write a trained model as a file for other programs, and its certificate beside it.

    Args:
        path: a run folder or a checkpoint.
        format: onnx, for ONNX Runtime; torch_export, for PyTorch without softmaxce.
        output: the file; None for model.onnx, model.int8.onnx or model.pt2 in the run folder.
        tta: the test-time augmentation inside the graph; None for the run's own.
        quantize: int8 for weights and activations of 8 bits, only with onnx; the limit applies to the file before it.
        force: replace a file that is no exported model.
        data_root: where the data set is now, as in TrainedModel.open.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: compare on images other than those of the training.
    Raises: RunError, ConfigError, DataError as TrainedModel.open; ExportError if the model cannot be exported, or the
        file gives other probabilities than the run. Nothing is written then.
    """
    if quantize != "none" and format != "onnx":
        raise ConfigError([Problem(f"--quantize {quantize}", "is for --format onnx")])
    require_packages(PACKAGES[format], f"--format {format}")
    file = _output_file(path, format, quantize, output, force=force)
    opened = partial(
        TrainedModel.open,
        path,
        tta=tta,
        data_root=data_root,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    own = opened()
    reference = own if own.device.type == "cpu" else opened(device="cpu")
    split = next(name for name in ("test", "validation", "train") if getattr(reference.dataset, name) is not None)
    reference.split(split)  # refused before anything is exported
    metadata = _metadata(reference, format)
    certified = partial(certify, reference, own, split)
    try:
        if quantize == "none":
            return _write(file, format, metadata, certified, reference.model)
        batches = calibration_images(reference)
        return _write_quantized(file, replace(metadata, quantization=quantize), certified, reference.model, batches)
    except ExportError as error:
        raise ExportError(f"{path}: {error.command_text}; nothing was written") from error.__cause__


def _write(
    file: Path,
    format: Format,
    metadata: ExportMetadata,
    compare: Callable[[ExportedGraph], Certificate],
    model: nn.Module,
) -> Export:
    """Export a model, compare the file with its run, and give the file its name. Raises: ExportError."""
    program = trace(model, metadata)
    if format == "onnx":
        content = onnx_bytes(program, metadata)
    else:
        content = program_bytes(program, json.dumps(metadata.to_dict()))
    del program  # it holds a copy of the weights
    with _staged(file, content) as staged:
        with _loaded(staged, format, metadata) as graph:
            certificate = compare(graph)
        digest = hashlib.sha256(content).hexdigest()
        beside = certificate_file(file)
        exported = Export(file, beside, format, digest, len(content), _runtime(format), metadata, certificate)
        _commit(exported, staged)
    return exported


def _write_quantized(
    file: Path,
    metadata: ExportMetadata,
    compare: Callable[[ExportedGraph, ExportedGraph], Certificate],
    model: nn.Module,
    batches: Iterator[Pixels],
) -> Export:
    """Export a model, quantize the file, compare both with the run, and name the second. Raises: ExportError."""
    before = onnx_bytes(trace(model, metadata), metadata)
    content = quantized(before, metadata, batches)
    with _staged(file, before) as unquantized, _staged(file, content) as staged:
        with _loaded(unquantized, "onnx", metadata) as first, _loaded(staged, "onnx", metadata) as second:
            certificate = compare(second, first)
        digest, beside = hashlib.sha256(content).hexdigest(), certificate_file(file)
        sizes = (len(content), len(before))
        exported = Export(file, beside, "onnx", digest, sizes[0], _runtime("onnx"), metadata, certificate, sizes[1])
        _commit(exported, staged)
    return exported


def calibration_images(model: TrainedModel) -> Iterator[Pixels]:
    """Batches of training images, evenly spaced in the split. Raises: as TrainedModel.split."""
    train = model.split("train")
    count = min(CALIBRATION, len(train))
    chosen = train.take(torch.arange(count) * len(train) // count)  # files are sorted by class
    for pixels in model.batches(chosen).pixels():
        for images in pixels.split(CALIBRATION_BATCH):
            yield images.numpy()


def certificate_file(file: Path) -> Path:
    """Where the certificate of an exported file is: model.onnx.json beside model.onnx."""
    return file.with_name(f"{file.name}.json")


def _output_file(path: Path, format: Format, quantize: Quantization, output: Path | None, *, force: bool) -> Path:
    """The file to write, which may be written. Raises: RunError, ConfigError."""
    suffix = SUFFIXES[format]
    name = f"model{suffix}" if quantize == "none" else f"model.{quantize}{suffix}"
    file = find_checkpoint(path).parent / name if output is None else output
    if file.suffix.lower() != suffix and not file.is_dir():
        raise ConfigError([Problem(f"--output {file}", f"the name of a file of --format {format} ends in {suffix}")])

    beside = certificate_file(file)

    def recorded_digest() -> object:
        try:
            recorded = read_json(beside, MAX_JSON)
        except (OSError, ValueError):  # it is no certificate
            return None
        return recorded.get("sha256") if isinstance(recorded, dict) and "certificate" in recorded else None

    def is_ours() -> bool:
        try:
            return sha256_of(file) == recorded_digest()
        except OSError:  # it cannot be read
            return False

    check_output(file, "--output", "exported model", name, is_ours, force=force)
    check_output(beside, "--output", "certificate", f"{name}.json", lambda: recorded_digest() is not None, force=force)
    return file


def _metadata(model: TrainedModel, format: Format) -> ExportMetadata:
    packages = ["torch", *(("onnx", "onnxscript") if format == "onnx" else ())]
    images = recorded_images(model.record)
    return ExportMetadata(
        classes=model.classes,
        class_counts=tuple(model.class_counts),
        shape=model.preprocessing.shape,
        mean=model.preprocessing.mean,
        std=model.preprocessing.std,
        resizing=model.preprocessing.resizing,
        tta=model.tta,
        temperature=model.temperature,
        run="/".join(model.checkpoint.resolve().parent.parts[-2:]),
        recipe=model.config.recipe,
        epoch=model.epoch,
        weights=model.checkpoint.name,
        weights_sha256=sha256_of(model.checkpoint),
        config=model.config.to_dict(),
        images={name: images[name] for name in SPLITS if name in images},
        versions={"softmaxce": softmaxce_version(), **{name: _version(name) for name in packages}},
    )


@contextlib.contextmanager
def _staged(file: Path, content: bytes) -> Iterator[Path]:
    """The content in a temporary file beside `file`, which is removed at the end unless it was renamed."""
    with writable(file):
        staged = stage(file, content)
    try:
        yield staged
    finally:
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def _loaded(file: Path, format: Format, metadata: ExportMetadata) -> Iterator[ExportedGraph]:
    """The file in the program that will run it: ONNX Runtime, or PyTorch in a process of its own."""
    if format == "onnx":
        try:
            session = OnnxSession(file, metadata.shape, len(metadata.classes), metadata.resizing.depth)
        except RunError as error:
            raise ExportError(error.command_text.replace(str(file), "the exported file")) from error
        yield session
    else:
        depth = metadata.resizing.depth
        with ProgramProcess(file, metadata.shape, len(metadata.classes), depth) as process:
            yield process


def _runtime(format: Format) -> str:
    name = "onnxruntime" if format == "onnx" else "torch"
    return f"{name} {_version(name)}, CPU"


def _version(module: str) -> str:
    return str(import_module(module).__version__)


def _commit(exported: Export, staged: Path) -> None:
    """Give the certificate and the model their names, the model last: it never lies there without a certificate."""
    text = json.dumps(exported.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with _staged(exported.certificate_file, text.encode()) as certificate, writable(exported.file):
        certificate.replace(exported.certificate_file)
        staged.replace(exported.file)
        flush_folder(exported.file.parent)
