"""A cache of decoded images on disk, shared by all runs; used only while the image files are unchanged."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs
from numpy.typing import NDArray
from PIL import features

from .member import status_of

LIMIT = 10 << 30  # bytes that all cached images may take; beyond it, the least recently used are removed
SPARE = 1 << 30  # bytes of the disk that are left free
ABANDONED = 86400  # seconds after which the writer of an incomplete file is taken to be dead
SUFFIX = ".images"
INDEX = ".index"  # of a shard
DIGEST = 32  # bytes of the checksum of all that follows it


def folder() -> Path:
    """The cache's folder: $SOFTMAXCE_CACHE, else one in the user's cache folder."""
    return Path(os.environ.get("SOFTMAXCE_CACHE") or Path(platformdirs.user_cache_dir("softmaxce"), "decoded"))


def key_of(files: Sequence[str], *decoding: object) -> str | None:
    """A hash, 40 hexadecimal digits, of everything that decoded images depend on.

    Args:
        files: hashed by absolute path, size, inode, and the times of the last change of their content (mtime, which a
            copy may preserve) and of their metadata (ctime, which cannot be set back). Their content is not read.
        decoding: whatever else the pixels depend on; Pillow's versions are always included.
    Returns: None if a file is missing.
    """
    about = (decoding, PIL.__version__, features.version("jpg"), features.version("webp"), sys.byteorder)
    digest = hashlib.blake2b(repr(about).encode(), digest_size=20)
    for file in files:
        try:
            identity = status_of(file)
        except OSError:  # a file is missing: nothing is cached, and decoding it raises the error
            return None
        digest.update(f"{os.path.abspath(file)}\0{identity}\n".encode("utf-8", "surrogateescape"))  # noqa: PTH100
    return digest.hexdigest()


def read(key: str, shape: tuple[int, ...] | None, dtype: str = "uint8") -> tuple[NDArray[Any], dict[int, str]] | None:
    """The images [N, C, H, W] cached under a key, and why some could not be decoded, by index.

    Args:
        key: from key_of.
        shape: of the images; None for all bytes that were written, where no reasons were.
        dtype: of the images.
    Returns: None if there are none, or the checksum is wrong.
    """
    file = folder() / (key + SUFFIX)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size - DIGEST
            shape = (max(size, 0),) if shape is None else shape
            if size < math.prod(shape) * np.dtype(dtype).itemsize:
                return None
            checksum, images = stream.read(DIGEST), np.empty(shape, dtype)
            complete = stream.readinto(images.data.cast("B")) == images.nbytes
            reasons = stream.read()
    except OSError:  # not cached; the images are decoded
        return None
    if not complete or checksum != _checksum([images], reasons):
        return None
    with contextlib.suppress(OSError):  # the time of last use only decides what is removed first
        os.utime(file)
    return images, {int(index): reason for index, reason in json.loads(reasons or "{}").items()}


def write(key: str, *parts: NDArray[Any], reasons: Mapping[int, str] | None = None) -> None:
    """Cache images under a key, atomically, and remove the least recently used ones.

    Args:
        key: from key_of.
        parts: images [N, C, H, W], or any bytes; they are written one after the other.
        reasons: why some files could not be decoded, by index. They follow the pixels, as JSON, if there are any.
    Raises: OSError if that fails. Images larger than LIMIT, or than the free space of the disk allows, are not cached.
    """
    directory = folder()
    directory.mkdir(parents=True, exist_ok=True)
    size = sum(part.nbytes for part in parts)
    _make_room(directory, size)
    if size > LIMIT or size + SPARE > shutil.disk_usage(directory).free:
        return
    after = json.dumps(reasons).encode() if reasons else b""
    descriptor, staged = tempfile.mkstemp(dir=directory, prefix=key, suffix=".tmp")  # no other process writes to it
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(_checksum(parts, after))
            for part in parts:
                stream.write(part.data.cast("B"))
            stream.write(after)
        Path(staged).replace(directory / (key + SUFFIX))
    except BaseException:
        with contextlib.suppress(OSError):  # removes an incomplete file; the error that left it so is raised
            Path(staged).unlink()
        raise


def cannot_be_written(error: OSError) -> str:
    """The warning where `write` failed."""
    return (
        f"{folder()}: the cache of decoded images cannot be written ({error.strerror or error}); set "
        "SOFTMAXCE_CACHE to another folder, or data.cache: false"
    )


@contextlib.contextmanager
def one_process(key: str) -> Iterator[None]:
    """Lets one process at a time decode the images of a key: those that waited find them in the cache."""
    try:
        import fcntl

        directory = folder()
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{key}.lock"
        stream = file.open("w")
    except (ImportError, OSError):  # Windows, or a cache that cannot be written: each process decodes
        yield
        return
    with stream:
        with contextlib.suppress(OSError):  # a file system without locks: likewise
            fcntl.lockf(stream, fcntl.LOCK_EX)
        yield
        file.unlink(missing_ok=True)


def _make_room(directory: Path, size: int) -> None:
    """Remove abandoned files, and the least recently used images until `size` more bytes are within LIMIT."""
    entries = []
    for file in directory.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            status = file.stat()
            if file.suffix in (SUFFIX, INDEX):
                entries.append((status.st_mtime, status.st_size, file))
            elif file.suffix == ".tmp" and time.time() - status.st_mtime > ABANDONED:
                file.unlink()
    total = sum(bytes_ for _, bytes_, _ in entries)
    for _, bytes_, file in sorted(entries):
        if total + size <= LIMIT:
            break
        with contextlib.suppress(OSError):  # another process has just removed it
            file.unlink()
        total -= bytes_


def _checksum(parts: Sequence[NDArray[Any]], reasons: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.data.cast("B"))
    digest.update(reasons)
    return digest.digest()
