"""Batches in shared memory that is used again: never while anything refers to them, and always the right pixels."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softmaxce.data.decode import Decode
from softmaxce.data.loading import FileLoader, Files
from softmaxce.data.resizing import Resizing
from softmaxce.data.shared_batches import SHARED, SharedBatches
from softmaxce.data.splits import OnDisk
from softmaxce.errors import DataError

pytestmark = pytest.mark.skipif(not Path(SHARED).is_dir(), reason=f"there is no {SHARED}")

ROOT = Path(__file__).parents[2]
BATCHES = [list(range(at, at + 3)) for at in range(0, 36, 3)]  # twice as many as the slots of two workers


def folder(path: Path, depth: str = "uint8", channels: int = 3) -> OnDisk:
    """36 images of 5x4 pixels of random numbers, in files without loss."""
    rng = np.random.default_rng(0)
    files = []
    for index in range(36):
        pixels = rng.random((4, 5, channels))
        if depth == "uint8":
            files.append(str(path / f"{index:02}.png"))
            Image.fromarray((pixels * 255).astype(np.uint8).squeeze()).save(files[-1])
        else:
            files.append(str(path / f"{index:02}.npy"))
            np.save(files[-1], (pixels * (1 if depth == "float32" else 65535)).astype(depth))
    decode = Decode(channels, None, Resizing(depth=depth))
    return OnDisk(tuple(files), torch.zeros(36, dtype=torch.int64), (channels, 4, 5), decode, workers=2)


def expected(split: OnDisk, batch: list[int]) -> Tensor:
    return torch.stack([split.decode(split.files[index]) for index in batch])


def loader(split: OnDisk) -> FileLoader:
    return FileLoader(Files(split), keep=True, pin_memory=False)


def filled(shared: SharedBatches, value: int) -> tuple[int, Tensor]:
    """A slot and its batch of three images, all of this value."""
    slot = shared.take(3)
    assert slot is not None
    shared.pixels(slot)[:] = value
    return slot, shared.batch(slot, 3)


def test_a_slot_is_taken_again_only_when_nothing_refers_to_its_batch() -> None:
    shared = SharedBatches(2, (4, 2, 5, 3), torch.uint8)
    first_slot, first = filled(shared, 1)
    second_slot, second = filled(shared, 2)
    assert first.shape == (3, 3, 2, 5)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert shared.take(1) is None
    view = first[2].permute(1, 2, 0).numpy()[0]
    del first
    gc.collect()
    assert shared.take(1) is None  # there is a view of it
    assert (view == 1).all()
    del view
    assert shared.take(3) == first_slot
    shared.give_back(first_slot)
    weight = torch.ones(3, 3, 2, 5, requires_grad=True)
    product = weight * second.float().mul_(2) + weight * second  # autograd refers to it
    del second
    assert shared.take(3) == first_slot
    assert shared.take(3) is None
    product.sum().backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 6))
    del product
    assert shared.take(3) == second_slot


def test_a_batch_of_more_images_than_a_slot_has_takes_none() -> None:
    shared = SharedBatches(1, (4, 2, 5, 3), torch.uint8)
    assert shared.take(5) is None
    assert shared.take(4) == 0


@pytest.mark.parametrize(
    ("depth", "channels"), [("uint8", 3), ("uint8", 1), ("uint8", 4), ("uint16", 2), ("float32", 3)]
)
def test_images_loaded_into_memory_that_is_used_again_are_those_of_the_files(
    depth: str, channels: int, tmp_path: Path
) -> None:
    split = folder(tmp_path, depth, channels)
    load = loader(split)
    for _ in range(2):  # epochs
        addresses = set()
        for images, batch in zip(load(BATCHES), BATCHES, strict=True):
            assert images.equal(expected(split, batch))
            assert images.dtype is getattr(torch, depth)
            addresses.add(images.data_ptr())
        assert len(addresses) <= 6  # two batches for each of two processes, the one in use and the one that follows it
    for kept, batch in zip(list(load(BATCHES)), BATCHES, strict=True):  # all are in use, so none is written to again
        assert kept.equal(expected(split, batch))
    larger = [list(range(18)), list(range(18, 36))]  # than those that the memory was made for
    for images, batch in zip(load(larger), larger, strict=True):
        assert images.equal(expected(split, batch))


def test_the_epoch_after_one_with_a_damaged_file_has_the_right_images(tmp_path: Path) -> None:
    split = folder(tmp_path)
    content = Path(split.files[16]).read_bytes()
    load = loader(split)
    Path(split.files[16]).write_bytes(content[:40])
    with pytest.raises(DataError, match=r"16\.png"):
        list(load(BATCHES))
    Path(split.files[16]).write_bytes(content)
    for images, batch in zip(load(BATCHES), BATCHES, strict=True):
        assert images.equal(expected(split, batch))


SPAWNED = """\
import multiprocessing, sys
from pathlib import Path
from tests.data.test_shared_batches import BATCHES, expected, folder, loader

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    split = folder(Path(sys.argv[2]))
    seen = [(images.data_ptr(), images.equal(expected(split, batch)))
            for images, batch in zip(loader(split)(BATCHES), BATCHES, strict=True)]
    print(len({address for address, _ in seen}) <= 6, all(equal for _, equal in seen), len(seen))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_not_forked_write_to_the_same_memory(method: str, tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-c", SPAWNED, method, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"True True {len(BATCHES)}\n", "")
