"""Files decoded ahead, against the same files decoded one after the other."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from softmaxce.data.decode import SMALL_FILE, Decode
from softmaxce.data.paths import Unreadable
from softmaxce.data.prefetch import PrefetchingDecoder, decode_to
from softmaxce.data.resizing import DEFAULT

DECODE = Decode(3, (24, 24))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of very different sizes, so that those decoded side by side do not end in the order they began in."""
    folder = tmp_path_factory.mktemp("ahead")
    random = np.random.default_rng(3)
    for i in range(120):
        side = 400 if i % 7 == 0 else 30
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    found = sorted(map(str, folder.iterdir()))
    assert Path(found[0]).stat().st_size > SMALL_FILE  # by which more threads than one are taken
    return found


@dataclass(frozen=True)
class Noted(Decode):
    """Decodes, and records the files that were requested."""

    requested: list[str] = field(default_factory=list)

    def array(self, file: str) -> NDArray[np.uint8]:
        self.requested.append(file)
        return super().array(file)


def test_decoded_in_threads_the_order_is_that_of_the_paths_and_the_pixels_are_the_same(files: list[str]) -> None:
    with PrefetchingDecoder(files, DECODE, 64) as ahead:
        found = list(ahead)
    assert [item[0] for item in found if not isinstance(item, Unreadable)] == files
    for item in found:
        assert not isinstance(item, Unreadable)
        np.testing.assert_array_equal(item[1], DECODE.array(item[0]))


def test_a_bad_file_in_the_middle_is_reported_at_its_position(files: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    gone = Unreadable("gone*", "matches no file")
    with PrefetchingDecoder([*files[:50], str(bad), gone, *files[50:]], DECODE, 64) as ahead:
        found = list(ahead)
    assert found[50] == Unreadable(str(bad), "it is not an image")
    assert found[51] == gone
    assert [item[0] for item in found if not isinstance(item, Unreadable)] == files


@pytest.mark.parametrize("most", [1, 8, 64])
def test_no_more_files_are_read_ahead_than_requested(files: list[str], most: int) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield files[1]

    with PrefetchingDecoder(endless(), DECODE, most) as ahead:
        assert taken == most
        items = iter(ahead)
        for given in range(1, 30):
            next(items)
            assert taken <= given + 2 * most


def test_decoding_starts_before_the_first_image_is_requested(files: list[str]) -> None:
    decode = Noted(3, (24, 24))
    with PrefetchingDecoder(files, decode, len(files)):
        while len(decode.requested) < len(files):
            time.sleep(0.001)
    assert sorted(decode.requested) == files


def test_a_closed_decoder_starts_no_further_files(files: list[str]) -> None:
    decode = Noted(3, (24, 24))
    with PrefetchingDecoder(files * 20, decode, len(files) * 20):
        pass
    requested = len(decode.requested)
    time.sleep(0.05)
    assert len(decode.requested) == requested < len(files) * 20


def test_no_files_are_no_images() -> None:
    with PrefetchingDecoder([], decode_to((1, 8, 8), DEFAULT), 16) as ahead:
        assert list(ahead) == []


def test_a_checkpoints_header_is_read_and_files_are_decoded_without_torch() -> None:
    code = "import sys, softmaxce.runs.header, softmaxce.data.prefetch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
