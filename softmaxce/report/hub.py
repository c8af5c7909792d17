"""A trained model as a folder for the Hugging Face Hub: weights, config, ONNX file, certificate and model card.

Nothing is uploaded, and huggingface_hub is not needed.
"""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..config import yamlfile
from ..errors import ConfigError, Problem, RunError
from ..files import flush_folder, replace_file, writable
from ..inference.export import Export, certificate_file, export
from ..runs import checkpoint
from ..runs.header import find_checkpoint
from .markdown import escape

WEIGHTS, CONFIG, MODEL, CARD = "model.safetensors", "config.yaml", "model.onnx", "README.md"
FOLDER = "hub"  # in the run folder, unless --output names another
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters["md"] = escape


def export_hub(
    path: Path, folder: Path | None = None, *, force: bool = False, quantize: str = "none", **options: Any
) -> tuple[Export, Path]:
    """Write a folder that `hf upload` takes as it is, whole or not at all.

    Args:
        path: a run folder or a checkpoint.
        folder: to be written; None for `hub` in the run folder.
        force: replace the files in a folder that has some.
        quantize: none; the folder has the model as it was trained.
        options: as of inference.export.export.
    Returns: the ONNX file and its certificate, and the folder.
    Raises: RunError if the folder is not empty or cannot be written; otherwise as inference.export.export.
    """
    if quantize != "none":
        raise ConfigError([Problem(f"--quantize {quantize}", "is for --format onnx")])
    file = find_checkpoint(path)
    folder = file.parent / FOLDER if folder is None else folder
    _check_folder(folder, force=force)
    with writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        exported = export(path, "onnx", staged / MODEL, **options)
        loaded = checkpoint.load(file)
        with writable(folder):
            replace_file(staged / WEIGHTS, checkpoint.serialized(loaded.weights, loaded.header)[0])
            replace_file(staged / CONFIG, yamlfile.dump(dict(exported.metadata.config)).encode())
            replace_file(staged / CARD, model_card(exported).encode())
            _move(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    final = folder / MODEL
    return dataclasses.replace(exported, file=final, certificate_file=certificate_file(final)), folder


def _check_folder(folder: Path, *, force: bool) -> None:
    """Raises: RunError if this is no folder, or one with files and without `force`."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise RunError(f"--output {folder}: is not a folder, which --format hub writes; choose another")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise RunError(f"--output {folder}: is not empty; choose another, or add --force to replace the files in it")


def _move(staged: Path, folder: Path) -> None:
    """Give the files their names, the card last. Raises: OSError."""
    staged.chmod(0o777 & ~_umask())  # mkdtemp's is the user's alone
    if not os.path.lexists(folder):
        staged.replace(folder)
        flush_folder(folder.parent)
        return
    for file in sorted(staged.iterdir(), key=lambda file: file.name == CARD):
        file.replace(folder / file.name)
    flush_folder(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def model_card(exported: Export) -> str:
    """README.md: YAML metadata as the Hub reads it, and text."""
    metadata, certificate = exported.metadata, exported.certificate
    data = metadata.config.get("data")
    dataset = str(data.get("name") if isinstance(data, dict) else data)
    model = metadata.config.get("model")
    measured = {name: getattr(certificate.exported, name) for name in ("accuracy", "nll", "ece")}
    front = {
        "library_name": "softmaxce",
        "pipeline_tag": "image-classification",
        "tags": ["softmaxce", "onnx", "safetensors"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": metadata.recipe,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": dataset, "type": dataset, "split": certificate.split},
                        "metrics": [{"type": name, "value": value} for name, value in measured.items()],
                    }
                ],
            }
        ],
    }
    return ENVIRONMENT.get_template("model_card.md").render(
        front=yamlfile.dump(front),
        metadata=metadata,
        certificate=certificate,
        dataset=dataset,
        model=str(model.get("name") if isinstance(model, dict) else model),
        runtime=exported.runtime,
        plain=metadata.shape[0] in (1, 3) and metadata.resizing.to_dict().keys().isdisjoint(("depth", "icc")),
    )
