"""Packs a folder of images into WebDataset shards, which `data: {name: shards}` and the webdataset library read."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ..errors import DataError, RunError
from ..files import read_file, replace_file, replaced, writable
from ..waiting import Counting
from .decode import MAX_BYTES
from .folder_layout import images_below, refuse_single_class, splits_in, sub_folders, warn_of_unread
from .shards import CLASSES

URLS = {"train": "urls", "validation": "validation_urls", "test": "test_urls"}
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        folder: of the shards.
        urls: the key of data and its value, for each split.
        images: how many, of all splits.
        classes: how many.
        shards: how many.
        size: of all shards, in bytes.
    """

    folder: Path
    urls: dict[str, str]
    images: int
    classes: int
    shards: int
    size: int


@dataclass(frozen=True)
class _Image:
    file: str
    key: str
    suffix: str
    label: int
    size: int


def pack(folder: Path, output: Path, shard_size: int) -> Packed:
    """Write shards of a folder's images, whose bytes are copied, in an order that mixes the classes.

    Args:
        folder: FOLDER/CLASS/*, or FOLDER/train/CLASS/* and so on, as image_folder reads it.
        output: a new or empty folder.
        shard_size: bytes of a shard, at most, unless one image has more.
    Raises: DataError if there are no images, or one cannot be read; RunError if the output cannot be written.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'")
    parts = splits_in(folder) or {"train": folder}
    classes = [entry.name for entry in sub_folders(parts["train"])]
    refuse_single_class(folder, parts.get("train") if parts["train"] != folder else None)
    images = {name: _mixed(_images(part, classes)) for name, part in parts.items()}
    with writable(output):
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise RunError(f"{output}: the folder is not empty and is left as it is; choose another for the shards")
    urls: dict[str, str] = {}
    shards = size = 0
    with Counting("packing images", sum(map(len, images.values()))) as counting:
        for name, part in images.items():
            count = 0
            for count, group in enumerate(_groups(part, shard_size), 1):
                file = output / f"{name}-{count - 1:06}.tar"
                _write(file, group, counting)
                size += file.stat().st_size
            urls[URLS[name]] = f"{name}-{{000000..{count - 1:06}}}.tar" if count > 1 else f"{name}-000000.tar"
            shards += count
    text = "".join(f"{name}\n" for name in classes)
    with writable(output / CLASSES):  # last: without it, packing was interrupted
        replace_file(output / CLASSES, text.encode())
    return Packed(output, urls, sum(map(len, images.values())), len(classes), shards, size)


def _images(folder: Path, classes: Sequence[str]) -> list[_Image]:
    """The images of a split. Their keys are their paths without the extension, unless that has a dot or is taken."""
    images: list[_Image] = []
    keys: set[str] = set()
    for entry in sub_folders(folder):
        if entry.name not in classes:
            raise DataError(f"{entry}: the class '{entry.name}' is not among those of the training images")
        files, unread = images_below(entry)
        warn_of_unread(entry, unread)
        files = files or images_below(entry, npy=True)[0]  # beside photographs, .npy files are something else
        for file in files:
            path = Path(file)
            stem, suffix = path.stem, path.suffix.lower()
            key = path.relative_to(folder).with_name(stem).as_posix()
            if "." in stem or key in keys:  # a key ends at the first dot
                digest = blake2b(path.name.encode(errors="surrogateescape"), digest_size=4).hexdigest()
                key = path.relative_to(folder).with_name(f"{stem.replace('.', '_')}-{digest}").as_posix()
            keys.add(key)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{file}: {error.strerror}") from None
            images.append(_Image(file, key, suffix, classes.index(entry.name), size))
    if not images:
        raise DataError(f"{folder}: holds no images")
    return images


def _mixed(images: list[_Image]) -> list[_Image]:
    """In an order that depends on the names alone and mixes the classes, so that a few shards hold all of them."""
    return sorted(images, key=lambda image: blake2b(image.key.encode(errors="surrogateescape")).digest())


def _groups(images: Sequence[_Image], shard_size: int) -> Iterator[list[_Image]]:
    group: list[_Image] = []
    filled = 0
    for image in images:
        size = -(-image.size // BLOCK) * BLOCK + 3 * BLOCK  # with its header, and its label's
        if group and filled + size > shard_size:
            yield group
            group, filled = [], 0
        group.append(image)
        filled += size
    yield group


def _write(file: Path, images: Sequence[_Image], counting: Counting) -> None:
    with (
        writable(file),
        replaced(file) as stream,
        tarfile.open(fileobj=stream, mode="w", errors="surrogateescape") as tar,
    ):
        for image in images:
            try:
                content = read_file(image.file, MAX_BYTES)
            except OSError as error:
                raise DataError(f"{image.file}: {error.strerror}") from None
            _add(tar, f"{image.key}{image.suffix}", content)
            _add(tar, f"{image.key}.cls", str(image.label).encode())
            counting.advance()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without times and owners: the same images give the same shards
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
