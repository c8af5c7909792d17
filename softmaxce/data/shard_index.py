"""The samples of a WebDataset shard: an uncompressed tar file whose members of one key are a sample. Needs no torch.

A member `cat/0001.jpg` has the key `cat/0001`, all before the first dot of its last part, and the extension `jpg`. Of a
sample the image is read, and its label: `0001.cls`, a number or a name, or the entry `label` of `0001.json`.

A tar file may come from anyone. Nothing is extracted, and no name in it is opened. A shard is read once to find where
its images are; then an image is read by its location.
"""

import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError
from ..files import open_file, parse_json, read_file, replace_file
from . import cache
from .decode import formats, has_image_suffix
from .member import status_of

KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # as the webdataset library divides a name
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_HEADER = 1 << 16  # bytes of a long name, or of a header with more attributes
MAX_NAME = 4096  # characters of a member's name
MAX_CLS = 1 << 10  # bytes of a .cls
MAX_JSON = 1 << 20  # bytes of a .json
MAX_INDEX = 1 << 30  # bytes of a cached index
MAX_LABEL = 200  # characters of a class's name

Label = int | str


@dataclass(frozen=True)
class Sample:
    """An image of a shard.

    Attributes:
        name: of the member with the image.
        offset: of its first byte in the shard.
        size: in bytes.
        label: a class id, or the name of a class.
    """

    name: str
    offset: int
    size: int
    label: Label


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard, and how many were left out because they have no image that can be read."""

    samples: tuple[Sample, ...]
    without_image: int


def read_index(shard: Path, *, npy: bool = False) -> ShardIndex:
    """The index of a shard, from the cache if the shard is unchanged since. Arguments and errors as of make_index."""
    try:
        status = status_of(str(shard))
        about = repr((os.path.abspath(shard), status, _program(), formats(), npy))  # noqa: PTH100 - as cache.key_of
    except OSError as error:
        raise DataError(f"{shard}: {'there is no such shard' if not shard.exists() else error.strerror}") from None
    file = cache.folder() / f"{blake2b(about.encode('utf-8', 'surrogateescape'), digest_size=20).hexdigest()}.index"
    if (cached := _cached(file)) is not None:
        return cached
    index = make_index(shard, npy=npy)
    rows = [(each.name, each.offset, each.size, each.label) for each in index.samples]
    try:
        cache.folder().mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps({"samples": rows, "without_image": index.without_image}).encode())
    except OSError:  # the next start reads the shard again
        pass
    return index


@functools.cache
def _program() -> str:
    return blake2b(Path(__file__).read_bytes()).hexdigest()


def _cached(file: Path) -> ShardIndex | None:
    try:
        data = json.loads(read_file(file, MAX_INDEX))
        return ShardIndex(tuple(Sample(*row) for row in data["samples"]), int(data["without_image"]))
    except (OSError, ValueError, TypeError, KeyError):  # not cached, or damaged: it is made again
        return None


def make_index(shard: Path, *, npy: bool = False) -> ShardIndex:
    """The index of a shard, by reading its headers and labels. Raises: DataError with the shard and the member.

    `npy`: .npy files are images.
    """
    samples: list[Sample] = []
    without_image = 0
    try:
        with open_file(shard) as stream:
            _refuse_compressed(shard, stream)
            for key, members in _by_key(_members(shard, stream)):
                sample = _sample(shard, stream, key, members, npy=npy)
                if sample is None:
                    without_image += 1
                else:
                    samples.append(sample)
    except OSError as error:
        raise DataError(f"{shard}: {error.strerror or error}") from None
    return ShardIndex(tuple(samples), without_image)


def _refuse_compressed(shard: Path, stream: BinaryIO) -> None:
    start = stream.read(6)
    stream.seek(0)
    for magic, program in MAGIC.items():
        if start.startswith(magic):
            raise DataError(
                f"{shard}: is compressed with {program}, so that no image can be read by itself; unpack it to a .tar "
                "(images are compressed already)"
            )


class _Headers:
    """A file from which Python's tarfile reads headers of MAX_HEADER bytes at most, whatever size a header declares."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _members(shard: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The regular files in a tar file, in their order, each whole. Raises: DataError."""
    total = os.fstat(stream.fileno()).st_size
    at = -1
    last = "its first member"
    try:
        with tarfile.open(fileobj=_Headers(stream), mode="r:", errors="surrogateescape") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # else it keeps all of them
                last = f"the member after {member.name[:MAX_NAME]!r}"
                _check_member(shard, member, total)
                if member.offset_data <= at:
                    raise tarfile.ReadError("its members overlap")
                at = member.offset_data
                if member.isreg():
                    yield member
            end = os.pread(stream.fileno(), tarfile.BLOCKSIZE, tar.offset)
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shard}: {last} is damaged or cut off ({error})") from None
    if end != bytes(tarfile.BLOCKSIZE):
        what = "is damaged" if len(end) == tarfile.BLOCKSIZE else "is missing: the file is cut off"
        raise DataError(f"{shard}: {last} {what}, at byte {tar.offset:,}; copy it again")


def _check_member(shard: Path, member: tarfile.TarInfo, total: int) -> None:
    name = f"{shard}: its member {member.name[:MAX_NAME]!r}"
    if member.issym() or member.islnk():
        raise DataError(f"{name} is a link; pack the file itself")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise DataError(f"{name} is no regular file; pack images and labels only")
    if len(member.name) > MAX_NAME:
        raise DataError(f"{name} has a name of more than {MAX_NAME:,} characters")
    if member.size < 0 or member.offset_data + member.size > total:
        raise DataError(f"{name} is cut off: the file ends before its {member.size:,} bytes do; copy it again")


def _by_key(members: Iterator[tarfile.TarInfo]) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """The members of each sample, which follow each other, with their extensions. Those without one are left out."""
    key, group = "", list[tuple[str, tarfile.TarInfo]]()
    for member in members:
        match = KEY.fullmatch(member.name)
        if match is None:
            continue
        if group and match[1] != key:
            yield key, group
            group = []
        key = match[1]
        group.append((match[2].lower(), member))
    if group:
        yield key, group


def _sample(
    shard: Path, stream: BinaryIO, key: str, members: list[tuple[str, tarfile.TarInfo]], *, npy: bool
) -> Sample | None:
    """A sample, None if it has no image that can be read. Raises: DataError."""
    images = [member for extension, member in members if has_image_suffix(f".{extension}", npy=npy)]
    if len(images) > 1:
        names = " and ".join(repr(image.name) for image in images[:3])
        raise DataError(f"{shard}: the members {names} are images of one sample, '{key}'; a sample has one image")
    if not images:
        return None
    label = None
    for extension, member in members:
        if extension == "cls":
            label = _label(shard, member.name, _read(shard, stream, member, MAX_CLS).decode(errors="replace").strip())
        elif extension == "json" and label is None:
            label = _label(shard, member.name, _entry(shard, member, _read(shard, stream, member, MAX_JSON)))
    if label is None:
        raise DataError(f"{shard}: the sample '{key}' has no label: neither {key}.cls nor a label in {key}.json")
    (image,) = images
    return Sample(image.name, image.offset_data, image.size, label)


def _read(shard: Path, stream: BinaryIO, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.size > limit:
        raise DataError(f"{shard}: its member {member.name!r} has more than {limit:,} bytes, and should hold a label")
    return os.pread(stream.fileno(), member.size, member.offset_data)


def _entry(shard: Path, member: tarfile.TarInfo, content: bytes) -> Any:
    """The label in a .json; None if there is none."""
    try:
        data = parse_json(content)
    except ValueError as error:
        raise DataError(f"{shard}: its member {member.name!r} is no JSON: {error}") from None
    return data.get("label") if isinstance(data, dict) else None


def _label(shard: Path, name: str, value: Any) -> Label | None:
    """A class id or a class's name; None if it is left out. Raises: DataError if it is neither."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31):
        return value
    if isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable():
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else value
    shown = repr(value)[:60]
    raise DataError(f"{shard}: the label in {name!r} must be a class id from 0 or a class's name, got {shown}")
