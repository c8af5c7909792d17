"""The user's own images in WebDataset shards: uncompressed tar files with images and labels."""

import glob
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from .. import streams
from ..argument_types import (
    AtLeastOne,
    Classes,
    ColorProfiles,
    Decoding,
    Depth,
    Fit,
    Fraction,
    Interpolation,
    NonNegativeInt,
    PositiveInt,
)
from ..errors import DataError
from ..files import expanded, read_file
from ..waiting import Counting
from .class_selection import classes_of_model, select_classes
from .decode import Decode
from .folder import Listing, train_and_test
from .member import Member
from .resizing import Resizing
from .shard_index import Label, Sample, read_index
from .splits import Dataset, Split

CLASSES = "classes.txt"
MAX_SHARDS = 100_000
MAX_CLASSES_FILE = 16 << 20  # bytes
SHOWN = 10  # classes named in one message
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def shards(
    test_urls: str | list[str] | None = None,
    validation_urls: str | list[str] | None = None,
    size: PositiveInt | list[PositiveInt] | Literal["auto"] | None = None,
    channels: PositiveInt = 3,
    test_fraction: Fraction = 0.2,
    skip_bad: bool = False,
    in_memory: bool | None = None,
    workers: NonNegativeInt | None = None,
    cache: bool = True,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    cache_size: AtLeastOne | None = 2.0,
    decode: Decoding = "full",
    shuffle: Literal["images", "shards"] = "images",
    classes: Classes | None = None,
    depth: Depth = "uint8",
    icc: ColorProfiles = "ignore",
    *,
    urls: str | list[str],
    root: str,
) -> Dataset:
    """Your own images in WebDataset shards, local tar files: KEY.jpg (or png, ...) with KEY.cls, or KEY.json.

    The label is a class id from 0 or a class's name: the content of KEY.cls, or the entry `label` of KEY.json. The
    file classes.txt beside the training shards names the classes, a line each, in the order of their ids; without it
    the labels themselves are the names. `softmaxce data pack` makes shards of a folder.

    Args:
        test_urls: the shards of the test split; null makes one of test_fraction.
        validation_urls: the shards of the validation split; null for none, see data.validation.
        size: as of image_folder, like channels, skip_bad, in_memory, workers and cache.
        channels: 3 for color, 1 for gray, 4 for color and alpha, or another number, as of image_folder.
        test_fraction: of each class, for the test split, where test_urls is null; by a hash of CLASS and KEY.
        skip_bad: leave out, with a warning, what cannot be decoded.
        in_memory: keep all images decoded in memory; null decides by the memory that the process may use.
        workers: processes that decode images that do not fit in memory; null for one per thread of the training.
        cache: keep decoded images in the user's cache folder.
        fit: how images get the size: crop, pad or stretch, as of image_folder.
        interpolation: bilinear, bicubic or nearest.
        cache_size: how large whole images are kept, as of image_folder.
        decode: full or reduced, as of image_folder.
        shuffle: images, any order is as likely as any other; shards, for slow disks: each epoch shuffles the shards,
            and then the images of 8 shards at a time, which are read before the next 8.
        classes: the classes to read, in the order of their ids, and which are merged, as of image_folder.
        depth: of the pixels: uint8, uint16 or float32, as of image_folder.
        icc: ignore color profiles, or srgb, as of image_folder.
        urls: the training shards relative to data.root: train-{000..127}.tar, train-*.tar, or a list of such.
        root: the folder.
    Raises: DataError if a shard is missing, compressed, damaged or cut off, or an image cannot be used.
    """
    top = Path(root)
    named = {"train": urls, "validation": validation_urls, "test": test_urls}
    files = {name: shard_files(value, top, _key(name)) for name, value in named.items() if value is not None}
    _refuse_shared(files)
    resizing = Resizing(fit, interpolation, decode, depth, icc)
    npy = not Decode(channels, None, resizing).is_plain
    samples = {name: _read_all(paths, npy=npy) for name, paths in files.items()}
    existing, names = _classes(files["train"][0].parent / CLASSES, samples["train"])
    if len(existing) < 2:
        shard = files["train"][0]
        raise DataError(f"{shard}: there is only one class, '{existing[0]}', and a classifier needs at least two")
    selected = select_classes(existing, classes)
    listing = Listing(
        selected, size, channels, skip_bad, in_memory, workers, cache, resizing=resizing, cache_size=cache_size
    )
    by_shard = shuffle == "shards"
    train, shape = _split(listing, samples.pop("train"), names, None, by_shard=by_shard)
    others = {name: _split(listing, part, names, shape)[0] for name, part in samples.items()}
    if "test" in others or not test_fraction:
        return Dataset(train, others.get("test"), selected.names, others.get("validation"), listing.unreadable)
    rest, tested = train_and_test(train, test_fraction)
    return Dataset(train.take(rest), train.take(tested), selected.names, others.get("validation"), listing.unreadable)


def _key(split: str) -> str:
    return "data.urls" if split == "train" else f"data.{split}_urls"


def shard_files(urls: str | Sequence[str], root: Path, key: str) -> list[Path]:
    """The tar files that a key names. Raises: DataError."""
    patterns = [urls] if isinstance(urls, str) else list(urls)
    files: list[Path] = []
    for pattern in patterns:
        if re.match(r"[a-z0-9]+:", pattern) and not Path(pattern).drive:
            raise DataError(f"{key}: {pattern}: shards are read from local files; copy them to data.root")
        for name in expand_braces(pattern, key):
            path = root / expanded(name)
            matches = [path]
            if glob.has_magic(name):  # the folder's own name may hold brackets
                escaped = Path(glob.escape(str(root)), expanded(name))
                matches = [Path(match) for match in sorted(glob.glob(str(escaped)))]  # noqa: PTH207
            if not matches:
                raise DataError(f"{key}: {path}: matches no file")
            files += matches
    if not files:
        raise DataError(f"{key}: names no shard; write train-{{000..127}}.tar, for example")
    if missing := [path for path in files if not path.is_file()]:
        more = f", nor {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(f"{key}: there is no shard '{missing[0]}'{more}")
    ((most_common, count),) = Counter(files).most_common(1)
    if count > 1:
        raise DataError(f"{key}: names the shard '{most_common}' twice")
    return files


def _refuse_shared(files: Mapping[str, Sequence[Path]]) -> None:
    """Raises: DataError if two splits have a shard in common: a test image must not be a training image."""
    split_of: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            other = split_of.setdefault(path, split)
            if other != split:
                raise DataError(f"{_key(split)}: names the shard '{path}', which {_key(other)} names too")


def expand_braces(pattern: str, key: str = "data.urls") -> list[str]:
    """Expand `a-{00..02}.tar` and `{a,b}.tar` to names, as a shell does. Raises: DataError if there are too many."""
    names = [pattern]
    while any(BRACES.search(name) for name in names):
        chosen: list[str] = []
        for name in names:
            match = BRACES.search(name)
            for choice in _choices(match, key) if match else [""]:
                chosen.append(name[: match.start()] + choice + name[match.end() :] if match else name)
                if len(chosen) > MAX_SHARDS:
                    raise DataError(f"{key}: {pattern} stands for more than {MAX_SHARDS:,} shards")
        names = chosen
    return names


def _choices(match: re.Match[str], key: str) -> list[str]:
    first, last, names = match.groups()
    if names is not None:
        return [name.strip() for name in names.split(",")]
    if len(first) > 12 or len(last) > 12 or not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise DataError(f"{key}: {match[0]} must go from a number to one that is not less, at most {MAX_SHARDS:,} on")
    is_padded = any(end.startswith("0") and end != "0" for end in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


Located = tuple[Path, int, Sample]  # a shard, its window, and one of its samples


def _read_all(paths: Sequence[Path], *, npy: bool) -> list[Located]:
    """The samples of several shards; .npy files are images where `npy` is set. Raises: DataError."""
    located: list[Located] = []
    without = 0
    with Counting("indexing shards", len(paths)) as counting:
        for number, path in enumerate(paths):
            index = read_index(path, npy=npy)
            located += [(path, number + 1, sample) for sample in index.samples]
            without += index.without_image
            counting.advance()
    shown = f"{paths[0]}" + (f" and {len(paths) - 1:,} more" if len(paths) > 1 else "")
    if not located:
        raise DataError(f"{shown}: no sample has an image that can be read, such as KEY.jpg or KEY.png")
    if without:
        streams.warning(f"{shown}: {without:,} samples without an image that can be read are left out")
    return located


def _classes(file: Path, samples: Sequence[Located]) -> tuple[tuple[str, ...], dict[Label, str]]:
    """The class names in the order of their ids, and the name of every label. Raises: DataError."""
    labels = {sample.label for _, _, sample in samples}
    if file.is_file():
        try:
            text = read_file(file, MAX_CLASSES_FILE).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None
        # Not str.splitlines: the name of a class may hold U+2028, for example.
        names = tuple(line.removesuffix("\n") for line in io.StringIO(text, newline=None))
        if len(set(names)) < len(names) or not names or not all(names):
            raise DataError(f"{file}: must have a class's name in each line, each once")
        of_label: dict[Label, str] = dict(enumerate(names)) | {name: name for name in names}
    else:
        order = sorted(labels, key=lambda label: (isinstance(label, str), label))
        names = tuple(dict.fromkeys(map(str, order)))
        of_label = {label: str(label) for label in order}
    return names, of_label


def _split(
    listing: Listing,
    samples: Sequence[Located],
    names_of: dict[Label, str],
    shape: tuple[int, int, int] | None,
    *,
    by_shard: bool = False,
) -> tuple[Split, tuple[int, int, int]]:
    """The split of the samples, and the (C, H, W) of its images. Raises: DataError of an unknown label."""
    files: list[str] = []
    names: list[str] = []
    labels: list[int] = []
    for shard, window, sample in samples:
        member = Member(sample.name, str(shard), sample.offset, sample.size, window if by_shard else 0)
        name = names_of.get(sample.label)
        if name is None or name not in listing.classes.ids:
            known = list(listing.classes.ids)
            shown = ", ".join(known[:SHOWN])
            raise DataError(f"{member}: its label {sample.label!r} is none of the {len(known)} classes ({shown})")
        label = listing.classes.ids[name]
        if label is None:
            continue
        folder = f"{name}/"
        files.append(member)
        labels.append(label)
        names.append(sample.name if sample.name.startswith(folder) else folder + sample.name)
    if not files:
        raise DataError(f"{samples[0][0]}: holds none of the classes that data.classes names")
    return listing.read_files(files, labels, tuple(names), shape)


def read_shard(
    path: Path,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    resizing: Resizing,
    requested: Classes | None = None,
) -> Split:
    """One shard's images, as a model trained on `classes` and `shape` (C, H, W), resized so, takes them.

    `requested` is the run's key `classes`. Raises: DataError.
    """
    samples = _read_all([path], npy=not Decode(shape[0], None, resizing).is_plain)
    _, names = _classes(path.parent / CLASSES, samples)
    present = {names[sample.label] for _, _, sample in samples if sample.label in names}
    known = classes_of_model(classes, requested, present, path)
    listing = Listing(known, list(shape[1:]), shape[0], False, None, 2, resizing=resizing)
    return _split(listing, samples, names, shape)[0]
