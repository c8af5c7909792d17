"""What a path holds: a run, which PyTorch evaluates, or an exported model, which ONNX Runtime does. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.class_selection import names_before_merging
from ..data.resizing import Resizing
from ..errors import RunError
from ..runs.header import find_checkpoint, read_header, resizing_of
from .export_metadata import read_metadata

if TYPE_CHECKING:
    from .exported_model import ExportedModel
    from .trained_model import TrainedModel


def is_exported(path: Path) -> bool:
    """Whether a path is an exported model, by its name. Raises: RunError if it is one that softmaxce does not run."""
    if path.suffix.lower() == ".pt2" and not path.is_dir():
        raise RunError(
            f"{path}: softmaxce runs no torch.export files; load it with torch.export.load, or use the ONNX format"
        )
    return path.suffix.lower() == ".onnx" and not path.is_dir()


def model_type(path: Path) -> "type[TrainedModel] | type[ExportedModel]":
    """What opens a path: TrainedModel, which imports torch, or ExportedModel; both are used in the same way."""
    if is_exported(path):
        from .exported_model import ExportedModel

        return ExportedModel
    from .trained_model import TrainedModel

    return TrainedModel


def class_folders(path: Path) -> list[str]:
    """What class folders for a model may be called: as its classes, or as those that its run has merged."""
    config = read_metadata(path).config if is_exported(path) else read_header(find_checkpoint(path))["config"]
    section = config.get("data")
    merged = names_before_merging(section.get("classes")) if isinstance(section, dict) else []
    return [*classes_and_images(path)[0], *merged]


def classes_and_images(path: Path) -> tuple[list[str], tuple[int, int, int], Resizing]:
    """The class names, the images' shape (C, H, W) and their resizing of a model, from its file's header alone.

    Raises: RunError.
    """
    if is_exported(path):
        metadata = read_metadata(path)
        return list(metadata.classes), metadata.shape, metadata.resizing
    header = read_header(find_checkpoint(path))
    channels, height, width = header["preprocessing"]["shape"]
    return header["classes"], (channels, height, width), resizing_of(header)
