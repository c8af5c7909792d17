"""The cache of decoded images: used if and only if the files are unchanged, and safe with several processes."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softmaxce.data import cache
from softmaxce.data.folder import image_folder
from softmaxce.data.splits import InMemory
from softmaxce.errors import DataError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, empty at first."""
    monkeypatch.setenv("SOFTMAXCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, four images each, every one of its own colour."""
    for label, name in enumerate(("cat", "dog")):
        for index in range(4):
            paint(tmp_path / "photos" / name / f"{index}.png", (20 * index, 100 * label, 0))
    return tmp_path / "photos"


def paint(file: Path, colour: tuple[int, int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), colour).save(file)


def images(photos: Path, **options: object) -> Tensor:
    split = image_folder(test_fraction=0.0, root=str(photos), **options).train  # type: ignore[arg-type]
    assert isinstance(split, InMemory)
    return split.images


def entries(cache_folder: Path) -> list[Path]:
    return sorted(cache_folder.iterdir()) if cache_folder.exists() else []


def test_the_second_time_the_images_come_from_the_cache(photos: Path, cache_folder: Path) -> None:
    first = images(photos)
    (file,) = entries(cache_folder)
    assert images(photos).equal(first)
    # pixels that differ from those in the files, with a valid checksum
    other = bytes(255 - value for value in first.numpy().tobytes())
    file.write_bytes(hashlib.sha256(other).digest() + other)
    assert images(photos).equal(255 - first)
    assert images(photos, cache=False).equal(first)


def test_reading_the_images_again_leaves_the_cache_unchanged(photos: Path, cache_folder: Path) -> None:
    images(photos)
    (file,) = entries(cache_folder)
    before = file.stat().st_ino
    images(photos)
    assert [entry.stat().st_ino for entry in entries(cache_folder)] == [before]


def swap_colours(photos: Path) -> None:
    """Another image of the same size in bytes, with the times of the old one."""
    file = photos / "cat" / "1.png"
    size, times = file.stat().st_size, (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    paint(file, (21, 0, 0))
    assert file.stat().st_size == size
    os.utime(file, ns=times)


@pytest.mark.parametrize(
    "change",
    [
        lambda photos: paint(photos / "cat" / "1.png", (9, 9, 9)),
        swap_colours,
        lambda photos: paint(photos / "cat" / "7.png", (9, 9, 9)),
        lambda photos: (photos / "cat" / "1.png").unlink(),
        lambda photos: (photos / "cat" / "1.png").rename(photos / "dog" / "9.png"),
        lambda photos: (photos / "cat" / "1.png").replace(photos / "cat" / "2.png"),
    ],
    ids=["changed", "changed, same size and time", "added", "removed", "moved", "replaced"],
)
def test_a_file_that_is_not_as_it_was_is_noticed(change: Callable[[Path], object], photos: Path) -> None:
    images(photos)
    change(photos)
    expected = images(photos, cache=False)
    assert images(photos).equal(expected)
    assert images(photos).equal(expected)


def test_another_size_and_other_channels_are_other_images(photos: Path) -> None:
    for options in (
        {},
        {"size": 4},
        {"size": [4, 3]},
        {"channels": 1},
        {"size": 4, "channels": 1},
        {"size": [4, 3], "fit": "pad"},
    ):
        for _ in range(2):
            assert images(photos, **options).equal(images(photos, **options, cache=False))


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "flipped", "checksum"])
def test_a_damaged_entry_is_not_used_and_is_replaced(damage: str, photos: Path, cache_folder: Path) -> None:
    expected = images(photos)
    (file,) = entries(cache_folder)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "longer": whole + b"\0",
            "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
            "checksum": bytes(cache.DIGEST) + whole[cache.DIGEST :],
        }[damage]
    )
    assert images(photos).equal(expected)
    assert file.read_bytes() == whole


READER = """
import sys
from softmaxce.data.folder import image_folder
print(image_folder(test_fraction=0.0, root=sys.argv[1]).train.images.numpy().tobytes().hex())
"""


def test_processes_that_read_a_folder_at_once_all_get_its_images(photos: Path, cache_folder: Path) -> None:
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(photos)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = {reader.communicate()[0].strip() for reader in readers}
    assert results == {images(photos, cache=False).numpy().tobytes().hex()}
    assert [file.suffix for file in entries(cache_folder)] == [".images"]


def test_a_cache_that_cannot_be_written_is_a_warning_and_training_continues(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SOFTMAXCE_CACHE", str(tmp_path / "file" / "below"))
    assert images(photos).equal(images(photos, cache=False))
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "the cache of decoded images cannot be written" in errors
    assert "data.cache: false" in errors


def test_nothing_is_cached_if_the_cache_is_off(photos: Path, cache_folder: Path) -> None:
    images(photos, cache=False)
    assert entries(cache_folder) == []


@pytest.mark.parametrize("number", [1, 2])
def test_files_that_cannot_be_decoded_leave_the_cache_of_the_others_in_use_and_are_named_each_time(
    number: int, photos: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "bad.png").write_bytes(b"nothing")
    whole = (photos / "dog" / "1.png").read_bytes()
    if number == 2:
        (photos / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    uncached = image_folder(test_fraction=0.0, root=str(photos), skip_bad=True, cache=False).train
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {number} of 9 files cannot be decoded and are left out:\n")
    first = images(photos, skip_bad=True)
    assert capsys.readouterr().err == warning
    (file,) = entries(cache_folder)
    content = file.read_bytes()
    pixels, reasons = content[cache.DIGEST : cache.DIGEST + 9 * 108], content[cache.DIGEST + 9 * 108 :]
    other = bytes(255 - value for value in pixels)  # that are not the files', with a valid checksum
    file.write_bytes(hashlib.sha256(other + reasons).digest() + other + reasons)
    again = image_folder(test_fraction=0.0, root=str(photos), skip_bad=True).train
    assert isinstance(again, InMemory)
    assert again.images.equal(255 - first)
    assert capsys.readouterr().err == warning
    assert (again.names, again.files) == (uncached.names, uncached.files)
    assert again.labels.equal(uncached.labels)
    assert first.equal(uncached.images)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=f"{number} of 9 files cannot be decoded; repair"):
        images(photos)
    (photos / "dog" / "1.png").write_bytes(whole)
    (photos / "cat" / "bad.png").unlink()
    assert images(photos).equal(images(photos, cache=False))


def test_a_file_that_the_system_did_not_read_is_not_cached_as_bad(photos: Path, cache_folder: Path) -> None:
    if sys.platform == "linux":
        (photos / "cat" / "1.png").unlink()
        (photos / "cat" / "1.png").symlink_to("/proc/self/mem")  # address 0: an input/output error
        file = str(photos / "cat" / "1.png")
        assert cache.key_of([file]) == cache.key_of([file])
        assert len(images(photos, skip_bad=True)) == 7
    assert entries(cache_folder) == []


@pytest.mark.parametrize("size", [None, 4])
def test_where_no_file_can_be_decoded_skip_bad_is_an_error_each_time(size: int | None, photos: Path) -> None:
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"none of 8 files can be decoded; the first: .*0.png: the file is empty"):
            images(photos, size=size, skip_bad=True)


def test_a_full_cache_drops_the_least_recently_used_entries(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIMIT", 3 * (cache.DIGEST + 100))
    pixels = np.zeros((1, 1, 10, 10), np.uint8)
    for age, key in enumerate(("a", "b", "c")):
        cache.write(key, pixels)
        os.utime(cache_folder / f"{key}.images", (1000 + age, 1000 + age))
    assert cache.read("a", pixels.shape) is not None  # of use just now
    cache.write("d", pixels)
    assert [file.stem for file in entries(cache_folder)] == ["a", "c", "d"]
    cache.write("e", np.zeros((1, 1, 30, 30), np.uint8))  # larger than all there may be
    assert "e" not in [file.stem for file in entries(cache_folder)]


def test_unfinished_entries_of_a_dead_process_are_removed_and_of_a_live_one_are_not(cache_folder: Path) -> None:
    cache_folder.mkdir()
    for name, age in (("dead.tmp", 2 * cache.ABANDONED), ("living.tmp", 1.0)):
        (cache_folder / name).write_bytes(b"half")
        os.utime(cache_folder / name, (time.time() - age,) * 2)
    cache.write("key", np.zeros((1, 1, 2, 2), np.uint8))
    assert [file.name for file in entries(cache_folder)] == ["key.images", "living.tmp"]


def test_a_file_that_is_gone_has_no_key(photos: Path) -> None:
    file = str(photos / "cat" / "1.png")
    assert cache.key_of([file]) is not None
    assert cache.key_of([file, file + "x"]) is None


def test_the_folder_is_the_environments_else_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_folder: Path
) -> None:
    assert cache.folder() == cache_folder
    monkeypatch.delenv("SOFTMAXCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache.folder() == tmp_path / "softmaxce" / "decoded"


def test_images_from_the_cache_can_be_written_to_as_others_can(photos: Path) -> None:
    images(photos)
    again = images(photos)
    again.fill_(7)
    assert torch.equal(again, torch.full_like(again, 7))
