"""Decoded images kept from one run to the next, in the user's cache; only what is surely the same is used."""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
import platformdirs
from numpy.typing import NDArray
from PIL import features

LIMIT = 10 << 30  # bytes that all kept images may take; beyond, those longest unused go
SPARE = 1 << 30  # bytes of the disk that are left to others
ABANDONED = 86400  # seconds after which a half-written file has no writer any more
SUFFIX = ".images"
DIGEST = 32  # bytes of the checksum before the pixels


def folder() -> Path:
    """Where decoded images are kept: $SOFTMAXCE_CACHE, else a folder in the user's cache."""
    return Path(os.environ.get("SOFTMAXCE_CACHE") or Path(platformdirs.user_cache_dir("softmaxce"), "decoded"))


def key_of(files: Sequence[str], *decoding: object) -> str | None:
    """What decoded images are made from, in 40 hexadecimal digits: another key, other images.

    Args:
        files: their absolute paths, sizes, inodes, and times of the last change (of the content, which a copy may
            carry over, and of anything about them, which nobody can set back) go in. What is in them is not read.
        decoding: whatever else decides the pixels; Pillow's versions go in by themselves.
    Returns: None if a file is gone.
    """
    about = (decoding, PIL.__version__, features.version("jpg"), features.version("webp"), sys.byteorder)
    digest = hashlib.blake2b(repr(about).encode(), digest_size=20)
    for file in files:
        try:
            found = os.stat(file)  # noqa: PTH116 - of many thousand files
        except OSError:  # a file is gone: nothing is kept, and reading it tells
            return None
        changed = (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(f"{os.path.abspath(file)}\0{changed}\n".encode("utf-8", "surrogateescape"))  # noqa: PTH100
    return digest.hexdigest()


def read(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The images [N, C, H, W] kept under a key; None if there are none, or they are not what was written."""
    file = folder() / (key + SUFFIX)
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != DIGEST + int(np.prod(shape)):
                return None
            checksum, images = stream.read(DIGEST), np.empty(shape, np.uint8)
            complete = stream.readinto(images.data.cast("B")) == images.nbytes
    except OSError:  # nothing is kept; the images are decoded
        return None
    if not complete or checksum != _checksum(images):
        return None
    with contextlib.suppress(OSError):  # nothing is kept; the images are decoded
        os.utime(file)  # it was of use just now
    return images


def write(key: str, images: NDArray[np.uint8]) -> None:
    """Keep images under a key, at once or not at all, and let go of what has been unused longest.

    Raises: OSError if that fails. Images that are too many, or for which the disk has no room to spare, are not kept.
    """
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    _make_room(place, images.nbytes)
    if images.nbytes > LIMIT or images.nbytes + SPARE > shutil.disk_usage(place).free:
        return
    descriptor, staged = tempfile.mkstemp(dir=place, prefix=key, suffix=".tmp")  # a name of this process's own
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(_checksum(images))
            stream.write(images.data.cast("B"))
        Path(staged).replace(place / (key + SUFFIX))
    except BaseException:
        with contextlib.suppress(OSError):  # removing what is half written; the error that left it so is raised
            Path(staged).unlink()
        raise


def _make_room(place: Path, size: int) -> None:
    """Remove what others left half-written, and the longest unused images until `size` more bytes are within LIMIT."""
    kept = []
    for file in place.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            found = file.stat()
            if file.suffix == SUFFIX:
                kept.append((found.st_mtime, found.st_size, file))
            elif file.suffix == ".tmp" and time.time() - found.st_mtime > ABANDONED:
                file.unlink()
    total = sum(bytes_ for _, bytes_, _ in kept)
    for _, bytes_, file in sorted(kept):
        if total + size <= LIMIT:
            break
        with contextlib.suppress(OSError):  # another process has removed it in this moment
            file.unlink()
        total -= bytes_


def _checksum(images: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(images.data.cast("B")).digest()
