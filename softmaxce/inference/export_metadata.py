"""What an exported model says of itself: class names, how images are decoded, what is inside the graph, its origin.

In an ONNX file these are metadata properties, each a JSON text; in a torch.export file they are metadata.json. They are
read without torch, onnx and ONNX Runtime.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..argument_types import TEMPERATURES
from ..data.arrays import FULL_SCALE
from ..data.resizing import DEFAULT as DEFAULT_RESIZING
from ..data.resizing import Resizing
from ..errors import RunError
from ..files import open_file, parse_json
from ..runs.header import check_header, resizing_of
from ..runtime.memory import total_memory

FORMAT = 1
MARK = "softmaxce_export"  # the key of the format's number
INPUT, OUTPUT = "images", "probabilities"  # the names of the graph's input and output
MAX_METADATA = 16 << 20  # bytes, as of a checkpoint's header
TO_SRGB = "convert it by its ICC profile to sRGB, with perceptual intent: PIL.ImageCms.profileToProfile"
TTA = ("none", "flip", "crops", "flip_crops")
CHECKSUM = "checksum"  # the key of the SHA-256 of an ONNX file in which these digits are BLANK
BLANK = "0" * 64


@dataclass(frozen=True)
class ExportMetadata:
    """An exported model's metadata.

    Attributes:
        classes: K names, in the order of the probabilities.
        class_counts: the training images of each class.
        shape: (C, H, W) of the images.
        mean: C numbers, of pixels in [0, 1], or of floating-point ones as they are; the graph subtracts them.
        std: C numbers, likewise; the graph divides by them.
        tta: the test-time augmentation inside the graph.
        temperature: what the graph divides the logits by.
        run: the run folder's last two names, such as mnist/1.
        recipe: the name of its config.
        epoch: that of the weights.
        weights: the checkpoint's name.
        weights_sha256: of the checkpoint, as sha256sum prints it.
        config: what the run was trained with.
        images: the fingerprints of the splits it was trained with, by split.
        versions: of softmaxce and the libraries that wrote the file.
        quantization: none or int8.
        resizing: how images are decoded and brought to the shape.
    """

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tta: str
    temperature: float
    run: str
    recipe: str
    epoch: int
    weights: str
    weights_sha256: str
    config: Mapping[str, Any]
    images: Mapping[str, str]
    versions: Mapping[str, str]
    quantization: str = "none"
    resizing: Resizing = DEFAULT_RESIZING

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, with what a program in any language needs to prepare images for the graph."""
        channels, height, width = self.shape
        return {
            MARK: FORMAT,
            "classes": list(self.classes),
            "input": {
                "name": INPUT,
                "type": self.resizing.depth,
                "layout": "N, channels, height, width",
                "shape": ["N", channels, height, width],
                "range": None if self.resizing.depth == "float32" else [0, FULL_SCALE[self.resizing.depth]],
            },
            "output": {"name": OUTPUT, "type": "float32", "shape": ["N", len(self.classes)]},
            "decode": decoding_steps(self.shape, self.resizing),
            "resizing": self.resizing.to_dict(),
            "inside": {
                "normalization": {"mean": list(self.mean), "std": list(self.std)},
                "tta": self.tta,
                "temperature": self.temperature,
                "softmax": True,
                "quantization": self.quantization,
            },
            "run": {
                "name": self.run,
                "recipe": self.recipe,
                "epoch": self.epoch,
                "weights": self.weights,
                "weights_sha256": self.weights_sha256,
            },
            "class_counts": list(self.class_counts),
            "config": dict(self.config),
            "images": dict(self.images),
            "versions": dict(self.versions),
        }

    def to_properties(self) -> dict[str, str]:
        """As an ONNX file's metadata properties: the same keys, each value a JSON text."""
        return {key: json.dumps(value) for key, value in self.to_dict().items()}


def decoding_steps(shape: tuple[int, int, int], resizing: Resizing) -> list[str]:
    """How an image file becomes the graph's input of shape (C, H, W): what data.decode does, in order."""
    channels, height, width = shape
    method = f"({width}, {height}), Resampling.{resizing.interpolation.upper()}"
    resize = {
        "crop": f"scale and center-crop: ImageOps.fit(image, {method})",
        "pad": f"scale and pad with black: ImageOps.pad(image, {method})",
        "stretch": f"scale: image.resize({method})",
    }
    antialiased = "" if resizing.interpolation == "nearest" else ", antialiased"
    if channels not in (1, 3) or resizing.depth != "uint8":
        return _array_steps(channels, resizing, resize[resizing.fit])
    convert = {1: "convert it to L (gray): ITU-R 601 luma", 3: "convert it to RGB"}
    side = 2 * max(height, width)
    reduced = f"a JPEG file: decode it at 1/2, 1/4 or 1/8 of its size where it can: image.draft(None, ({side}, {side}))"
    return [
        *([reduced] if resizing.decode == "reduced" else []),
        "turn it upright by its EXIF orientation; of several pages or frames, take the first",
        "16-bit integers: shift right by 8; 32-bit integers, 0 to 65535, and floating-point, 0 to 1: scale to 0 to 255",
        *([TO_SRGB] if resizing.icc == "srgb" else []),
        "an alpha channel or a palette's transparent color: compose it over white",
        convert[channels],
        resize[resizing.fit].replace(":", f", {resizing.interpolation}{antialiased}:", 1),
        "arrange the bytes as [channels, height, width]; do not normalize, the graph does",
    ]


def _array_steps(channels: int, resizing: Resizing, resize: str) -> list[str]:
    """decoding_steps of images that are not gray or RGB of 8 bits."""
    values = {
        "uint8": "8 bits; a file with more is refused",
        "uint16": "16 bits; 8 bits times 257",
        "float32": "floating-point numbers as they are; 8 bits divided by 255, 16 bits by 65535",
    }
    colors = {1: "gray", 3: "RGB", 4: "RGBA, opaque where a file has no alpha"}
    return [
        "turn it upright by its EXIF or TIFF orientation",
        *([TO_SRGB] if resizing.icc == "srgb" else []),
        f"{channels} channels" + (f"; photographs: {colors[channels]}" if channels in colors else ""),
        f"{resizing.depth}: {values[resizing.depth]}",
        f"{resize}; each channel by itself, of 16 bits as floating-point numbers, which are then rounded",
        "arrange the values as [channels, height, width]; do not normalize, the graph does",
    ]


# -- reading ----------------------------------------------------------------------------------------------------------


def read_metadata(file: Path) -> ExportMetadata:
    """The metadata of an exported ONNX file. Raises: RunError if it is none, or not softmaxce's, or damaged."""
    properties = read_properties(file)
    if MARK not in properties:
        raise RunError(
            f"{file}: has no metadata of softmaxce, so that its classes and the decoding of images are not known; "
            "a file that has it is written by: softmaxce export RUN"
        )
    try:
        data = {key: parse_json(properties[key]) for key in properties if key in KEYS}
    except ValueError as error:
        raise RunError(f"{file}: is damaged: its metadata is not JSON: {error}") from None
    if data[MARK] != FORMAT:
        raise RunError(f"{file}: was not written by this version of softmaxce")
    return from_dict(data, file)


def with_checksum(content: bytes) -> bytes:
    """An ONNX file whose property CHECKSUM is BLANK -> the same file with its checksum."""
    blank = _encoded_checksum(BLANK)
    if content.count(blank) != 1:
        raise AssertionError("an exported file has one checksum")
    return content.replace(blank, _encoded_checksum(hashlib.sha256(content).hexdigest()))


def check_intact(file: Path) -> None:
    """Raises: RunError if an exported ONNX file is not what was written; one without a checksum is not checked."""
    properties = read_properties(file)
    if CHECKSUM not in properties:  # written by an earlier version, or by a program that changed it on purpose
        return
    recorded = properties[CHECKSUM].strip('"')
    with open_file(file) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        encoded = _encoded_checksum(recorded)
        begin = content.find(encoded) if len(recorded) == len(BLANK) else -1
        digest = hashlib.sha256()
        with memoryview(content) as view:
            digest.update(view[:begin])
            digest.update(_encoded_checksum(BLANK))
            digest.update(view[begin + len(encoded) :])
    if begin < 0 or digest.hexdigest() != recorded:
        raise RunError(
            f"{file}: its checksum is wrong: it was changed or damaged after it was exported; export it again "
            f"(a program that changes it on purpose also removes its metadata's '{CHECKSUM}')"
        )


def _encoded_checksum(digits: str) -> bytes:
    """The property CHECKSUM as it lies in an ONNX file: the key, then the field of the value with its length."""
    value = json.dumps(digits).encode()
    return CHECKSUM.encode() + bytes([VALUE << 3 | BYTES, len(value)]) + value


KEYS = (MARK, "classes", "input", "inside", "run", "class_counts", "config", "images", "versions", "resizing")


def from_dict(data: Mapping[str, Any], file: Path) -> ExportMetadata:
    """What to_dict gave, checked. Raises: RunError, with the entry that is wrong.

    Args:
        data: JSON data.
        file: for the message.
    """
    entry = _Entries(data, file)
    tta, temperature = entry.text("inside", "tta"), entry.number("inside", "temperature")
    shape = entry.list("input", "shape")[1:]
    header = {
        "epoch": entry.value("run", "epoch"),
        "recipe": entry.text("run", "recipe"),
        "config": entry.value("config"),
        "classes": entry.list("classes"),
        "class_counts": entry.list("class_counts"),
        "preprocessing": {"shape": shape, **entry.mapping("inside", "normalization")},
    }
    if "resizing" in data:  # the first version had none
        header["preprocessing"]["resizing"] = entry.mapping("resizing")
    check_header(header, file)
    if tta not in TTA:
        entry.refuse("inside.tta")
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        entry.refuse("inside.temperature")
    channels, height, width = shape
    normalization = header["preprocessing"]
    return ExportMetadata(
        classes=tuple(header["classes"]),
        class_counts=tuple(header["class_counts"]),
        shape=(channels, height, width),
        mean=tuple(map(float, normalization["mean"])),
        std=tuple(map(float, normalization["std"])),
        tta=tta,
        temperature=temperature,
        run=entry.text("run", "name"),
        recipe=header["recipe"],
        epoch=header["epoch"],
        weights=entry.text("run", "weights"),
        weights_sha256=entry.text("run", "weights_sha256"),
        config=header["config"],
        images=entry.texts("images"),
        versions=entry.texts("versions"),
        quantization=str(entry.mapping("inside").get("quantization", "none")),  # the first version had none
        resizing=resizing_of(header),
    )


@dataclass(frozen=True)
class _Entries:
    """JSON data from outside, whose entries are of the expected types or refused."""

    data: Mapping[str, Any]
    file: Path

    def refuse(self, name: str) -> NoReturn:
        raise RunError(f"{self.file}: is damaged: its metadata's '{name}' is missing or wrong")

    def value(self, *path: str) -> Any:
        value: Any = self.data
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                self.refuse(".".join(path))
            value = value[key]
        return value

    def _typed(self, kind: type | tuple[type, ...], path: tuple[str, ...]) -> Any:
        value = self.value(*path)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.refuse(".".join(path))
        return value

    def text(self, *path: str) -> str:
        return str(self._typed(str, path))

    def number(self, *path: str) -> float:
        return float(self._typed((int, float), path))

    def list(self, *path: str) -> list[Any]:
        return [*self._typed(list, path)]

    def mapping(self, *path: str) -> dict[str, Any]:
        return dict(self._typed(dict, path))

    def texts(self, *path: str) -> dict[str, str]:
        entries = self.mapping(*path)
        if not all(isinstance(value, str) for value in entries.values()):
            self.refuse(".".join(path))
        return entries


# -- the metadata of an ONNX file -------------------------------------------------------------------------------------

METADATA_PROPS = 14  # the field of a ModelProto, in onnx.proto; KEY and VALUE are those of a StringStringEntryProto
KEY, VALUE = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_properties(file: Path) -> dict[str, str]:
    """The metadata properties of an ONNX file, without its weights. Raises: RunError if it is no ONNX file.

    ONNX Runtime gives the same, but only once it has read the whole file into memory; here nothing larger than
    MAX_METADATA is read. https://protobuf.dev/programming-guides/encoding/
    """
    try:
        with open_file(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > (total_memory() or 1 << 40):
                raise ValueError("it is larger than this machine's memory")
            entries = list(_fields(stream, size, METADATA_PROPS))
        return {_text(entry, KEY): _text(entry, VALUE) for entry in entries}
    except FileNotFoundError:
        raise RunError(f"{file}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"{file}: is not a readable ONNX file: {reason}") from None


def _fields(stream: BinaryIO, end: int, wanted: int) -> Iterator[bytes]:
    """The contents of one length-delimited field of a message; the others are skipped. Raises: ValueError."""
    total = 0
    while stream.tell() < end:
        number, kind = divmod(_varint(stream), 8)
        if kind == VARINT:
            _varint(stream)
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(kind, -1) if kind != BYTES else _varint(stream)
        if not 0 <= length <= end - stream.tell() or not number:
            raise ValueError("it is no ONNX file, or it was cut off")
        if number != wanted:
            stream.seek(length, os.SEEK_CUR)
            continue
        total += length
        if total > MAX_METADATA:
            raise ValueError(f"its metadata has more than {MAX_METADATA:,} bytes")
        yield stream.read(length)


def _text(entry: bytes, number: int) -> str:
    """The last field of this number in a StringStringEntryProto. Raises: ValueError."""
    content = b""
    for content in _fields(BytesIO(entry), len(entry), number):  # noqa: B007 - the last one counts
        pass
    return content.decode()


def _varint(stream: BinaryIO) -> int:
    """A number of protocol buffers: seven bits a byte, the lowest first. Raises: ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it is no ONNX file, or it was cut off")
