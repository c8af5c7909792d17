"""A checkpoint's metadata, read and checked. Needs torch only to read the tensors."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from ..argument_types import NonNegativeInt, PositiveFloat, PositiveInt
from ..data.resizing import DEFAULT as DEFAULT_RESIZING
from ..data.resizing import Resizing
from ..errors import RunError
from ..files import open_file, parse_json
from ..runtime.memory import total_memory
from .folder import BEST, LAST

FORMAT = 2
MAX_HEADER = 16 << 20  # bytes of a checkpoint's JSON
MAX_VALUES = 1 << 26  # per image: it is allocated before anything else in the file can be checked

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class _Preprocessing:
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    mean: list[Finite]
    std: list[PositiveFloat]
    resizing: Resizing = DEFAULT_RESIZING  # earlier versions had no other


@dataclass(frozen=True)
class _Header:
    epoch: NonNegativeInt
    recipe: str
    config: dict[str, Any]
    classes: Annotated[list[str], Field(min_length=2)]
    class_counts: list[NonNegativeInt]
    preprocessing: _Preprocessing


HEADER = TypeAdapter(_Header)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint of a path: the file itself, or a run folder's best checkpoint, else its last.

    Raises: RunError if there is none.
    """
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).is_file():
                return path / name
        raise RunError(f"{path}: there is no checkpoint in this folder ({BEST} or {LAST})")
    if not path.exists():
        raise RunError(f"{path}: there is no such run folder or checkpoint")
    return path


def read_header(file: Path) -> dict[str, Any]:
    """A checkpoint's metadata, as checkpoint.header_of wrote it.

    Raises: RunError if it is missing, is no safetensors file, was not written by softmaxce, or is damaged.
    """
    return read(file, "numpy", with_tensors=False)[0]


def read(
    file: Path, framework: Literal["numpy", "pt"], *, with_tensors: bool
) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """A checkpoint's header, its tensors by name, its checksum (not verified), and the header's JSON text.

    Raises: RunError, as read_header.
    """
    if file.suffix.lower() == ".onnx":
        raise RunError(f"{file}: is an exported model, which only eval, predict and compare take; name its run folder")
    try:
        _check_size(file)
        with safe_open(file, framework=framework) as stream:
            sha256, _, text = (stream.metadata() or {}).get("softmaxce", " null").partition(" ")
            header = parse_json(text)
            names = stream.keys() if with_tensors else ()
            tensors = {name: stream.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise RunError(f"{file}: there is no such checkpoint") from None
    except (SafetensorError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"{file}: is not a readable checkpoint: {reason}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunError(f"{file}: was not written by this version of softmaxce")
    check_header(header, file)
    return header, tensors, sha256, text


def _check_size(file: Path) -> None:
    """Refuse what is no regular file, or could not be read in bounded time and memory. Raises: OSError, ValueError."""
    with open_file(file) as stream:
        size = int.from_bytes(stream.read(8), "little")  # of the JSON that follows
        if size > MAX_HEADER:
            raise ValueError(f"its header has {size:,} bytes, more than {MAX_HEADER:,}")
        if os.fstat(stream.fileno()).st_size > (total_memory() or 1 << 40):
            raise ValueError("it is larger than this machine's memory")


def resizing_of(header: Mapping[str, Any]) -> Resizing:
    """How a model's images are brought to its shape, by a header that was checked."""
    entries = header["preprocessing"].get("resizing", {})
    return Resizing(**{name: entries[name] for name in Resizing.__dataclass_fields__ if name in entries})


def check_header(header: Mapping[str, Any], file: Path) -> None:
    """Check a checkpoint's metadata. Raises: RunError, with the entry that is wrong.

    Args:
        header: epoch, recipe, config, classes, class_counts, preprocessing; other entries are ignored.
        file: the checkpoint, for the message.
    """
    known = {name: header[name] for name in _Header.__dataclass_fields__ if name in header}
    try:
        read = HEADER.validate_python(known, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{file}: is damaged: its header's '{where[:100]}' is wrong: {first['msg']}") from None
    channels, height, width = read.preprocessing.shape
    wrong = ""
    if len(set(read.classes)) != len(read.classes) or len(read.class_counts) != len(read.classes):
        wrong = f"{len(read.classes)} class names, some repeated or without their number of images"
    elif len(read.preprocessing.mean) != channels or len(read.preprocessing.std) != channels:
        wrong = f"no mean and std for each of {channels} channels"
    elif channels * height * width > MAX_VALUES:
        wrong = f"images of {channels}x{height}x{width} values, more than {MAX_VALUES:,}"
    if wrong:
        raise RunError(f"{file}: is damaged: its header has {wrong}")
