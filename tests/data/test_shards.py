"""`data: {name: shards}` and `softmaxce data pack`, against the webdataset library and against the same folder."""

import contextlib
import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from braceexpand import braceexpand
from PIL import Image

from softmaxce.data.batches import Batches
from softmaxce.data.folder import image_folder
from softmaxce.data.order import SHARDS_AT_A_TIME
from softmaxce.data.pack import pack
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.resizing import Resizing
from softmaxce.data.shard_index import make_index, read_index
from softmaxce.data.shards import expand_braces, read_shard, shards
from softmaxce.data.splits import Dataset, InMemory, Split
from softmaxce.errors import DataError

from ..helpers import COLORS, Softmaxce

PER_CLASS = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes; one file has a dot in its stem, and two differ by their extension only."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir()
        for number in range(PER_CLASS):
            pixels = np.clip(color + generator.normal(0, 30, (9, 8 + number % 3, 3)), 0, 255).astype(np.uint8)
            stem = {0: "1", 2: "a.b"}.get(number, str(number))
            Image.fromarray(pixels).save(folder / name / f"{stem}.{'jpg' if number % 2 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "packed"
    assert pack(photos, folder, 6_000).shards > SHARDS_AT_A_TIME
    return folder


def contents(photos: Path) -> list[tuple[bytes, int]]:
    """The bytes and the class of every file, sorted."""
    return sorted(
        (file.read_bytes(), label) for label, name in enumerate(sorted(COLORS)) for file in (photos / name).iterdir()
    )


def pixels(split: Split) -> list[tuple[bytes, int]]:
    """The pixels and the class of every image, sorted."""
    assert isinstance(split, InMemory)
    return sorted(zip((image.numpy().tobytes() for image in split.images), split.labels.tolist(), strict=True))


def both(data: Dataset) -> list[tuple[bytes, int]]:
    assert data.test is not None
    return sorted(pixels(data.train) + pixels(data.test))


def test_the_webdataset_library_reads_what_was_packed(photos: Path, packed: Path) -> None:
    urls = [str(file) for file in sorted(packed.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    read = [(sample.get("jpg") or sample["png"], int(sample["cls"])) for sample in samples]
    assert sorted(read) == contents(photos)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    assert [sample[1] for sample in read] != sorted(sample[1] for sample in read)  # the classes are mixed


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_what_the_webdataset_library_wrote_is_read_with_the_same_images_and_labels(
    photos: Path, tmp_path: Path, kind: str
) -> None:
    with webdataset.ShardWriter(str(tmp_path / "x-%04d.tar"), maxcount=13, verbose=0) as writer:
        for number, (content, label) in enumerate(contents(photos)):
            labelled = {"cls": label} if kind == "cls" else {"json": {"label": sorted(COLORS)[label], "other": [1]}}
            extension = "png" if content.startswith(b"\x89PNG") else "jpg"
            writer.write({"__key__": f"some.folder/{number:03}", extension: content, "txt": "ignored", **labelled})
    read = shards(urls="x-{0000..0004}.tar", root=str(tmp_path), size=8)
    assert read.classes == (("0", "1", "2") if kind == "cls" else tuple(sorted(COLORS)))
    assert both(read) == both(image_folder(root=str(photos), size=8))


def test_shards_hold_the_images_classes_and_splits_of_their_folder(photos: Path, packed: Path) -> None:
    folder, read = image_folder(root=str(photos), size=8), shards(urls="train-*.tar", root=str(packed), size=8)
    assert read.classes == folder.classes
    assert both(read) == both(folder)
    assert read.test is not None
    assert folder.test is not None
    assert isinstance(read.test, InMemory)
    assert isinstance(folder.test, InMemory)
    renamed = {"1.png", "1.jpg", "a.b.png"}  # by pack, as their keys would not be unique, or end at the dot
    ours, theirs = (
        {name for name in data.names or () if "-" not in name and name.rpartition("/")[2] not in renamed}
        for data in (read.test, folder.test)
    )
    assert len(ours & theirs) >= len(theirs) - len(COLORS)  # a class's count may take or give one for those


def test_streamed_and_kept_shards_give_the_same_batches_and_shards_are_read_a_few_at_a_time(packed: Path) -> None:
    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)

    def order(in_memory: bool, shuffle: str, epoch: int, start: int = 0) -> tuple[list[str], torch.Tensor]:
        data = shards(urls="train-*.tar", root=str(packed), size=8, in_memory=in_memory, workers=0, shuffle=shuffle)  # type: ignore[arg-type]
        batches = Batches(data.train, preprocessing, batch_size=7, device=torch.device("cpu"), shuffle_seed=3)
        images = torch.cat([images for images, _ in batches.epoch(epoch, start)])
        batches.labels = torch.arange(len(data.train))  # so that the batches say which images they hold
        files = data.train.files
        assert files is not None
        return [files[i] for _, ids in batches.epoch(epoch, start) for i in ids.tolist()], images

    for shuffle in ("images", "shards"):
        (names, kept), (streamed_names, streamed) = order(True, shuffle, 1), order(False, shuffle, 1)
        assert names == streamed_names
        assert torch.equal(kept, streamed)
        assert len(set(names)) == len(names)
        assert order(False, shuffle, 1, 2)[0] == names[14:]  # resumed after two batches
        assert order(True, shuffle, 2)[0] != names
    of = [name.rpartition(".tar/")[0] for name in names]
    first = sorted({shard: of.index(shard) for shard in of}.values())
    last = {shard: len(of) - 1 - of[::-1].index(shard) for shard in of}
    assert max(last[shard] for shard in of[: first[SHARDS_AT_A_TIME]]) < min(first[SHARDS_AT_A_TIME:])


def test_a_shard_trains_is_evaluated_and_explained_by_the_command(
    softmaxce: Softmaxce, photos: Path, tmp_path: Path
) -> None:
    done = softmaxce("data", "pack", str(photos), "shards")
    assert done.returncode == 0, done.stderr
    assert "60 images of 3 classes in 1 shard" in done.stderr
    settings = "  size: 8\n  batch_size: 8\n  in_memory: false\n  workers: 0\n"
    (tmp_path / "c.yaml").write_text(
        f"{done.stdout}{settings}epochs: 1\nmodel: linear\noptimizer: {{name: sgd, lr: 0.01}}\n"
    )
    done = softmaxce("train", "c.yaml", "--output", "run")
    assert done.returncode == 0, done.stderr
    where = "60 images, 11.2 KiB decoded: read from the files in every epoch (data.in_memory: false)"
    assert where in done.stderr.splitlines()
    done = softmaxce("explain", "run", "--split", "test", "--index", "0")
    assert "(shards/train-000000.tar/" in done.stdout, done.stderr
    done = softmaxce("eval", "run", "--data", "shards/train-000000.tar", "--json")
    assert json.loads(done.stdout)["images"] == 3 * PER_CLASS, done.stderr
    again = softmaxce("data", "pack", str(photos), "shards")
    assert again.returncode == 2
    assert again.stderr.splitlines() == [
        "error: shards: the folder is not empty and is left as it is; choose another for the shards"
    ]


# -- what is refused --------------------------------------------------------------------------------------------------


def image(color: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (color, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tar(*members: tuple[str, bytes | str | None]) -> bytes:
    """A tar file; a member with a text is a link to it, one with None a named pipe."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = (tarfile.SYMTYPE, content) if content else (tarfile.FIFOTYPE, "")
                archive.addfile(info)
    return stream.getvalue()


SOUND = [("a/1.png", image(1)), ("a/1.cls", b"0"), ("b/2.png", image(2)), ("b/2.cls", b"1")]


def long_header(size: int) -> bytes:
    """A tar file whose first header says that so many bytes of attributes follow."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT) + tar(*SOUND)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(tar(*SOUND)), "s.tar: is compressed with gzip"),
        (tar(("a/1.png", "/etc/passwd"), ("a/1.cls", b"0")), "s.tar: its member 'a/1.png' is a link"),
        (tar(("a/1.png", None)), "s.tar: its member 'a/1.png' is no regular file"),
        (tar(*SOUND)[: 512 + 40], "s.tar: its member 'a/1.png' is cut off"),
        (tar(*SOUND)[: 4 * 512], "s.tar: the member after 'a/1.cls' is missing: the file is cut off"),
        (tar(*SOUND)[: 4 * 512] + b"x" * 512, "s.tar: the member after 'a/1.cls' is damaged"),
        (b"not a tar file" * 100, "s.tar: its first member is damaged or cut off"),
        (long_header(1 << 40), "s.tar: its first member is damaged or cut off (a header of 1,099,511,627,776 bytes)"),
        (tar(*SOUND[:1], *SOUND[2:]), "s.tar: the sample 'a/1' has no label"),
        (tar(("a/1.png", image()), ("a/1.jpg", image())), "are images of one sample, 'a/1'"),
        (tar(("a/1.png", image()), ("a/1.cls", b"-1\x1b")), "s.tar: the label in 'a/1.cls' must be a class id"),
        (tar(("a/1.png", image()), ("a/1.cls", b"1" * 2000)), "s.tar: its member 'a/1.cls' has more than 1,024 bytes"),
        (tar(("a/1.png", image()), ("a/1.json", b"[" * 9999)), "s.tar: its member 'a/1.json' is no JSON"),
        (tar(("a/1.cls", b"0")), "s.tar: no sample has an image that can be read"),
        (tar(*SOUND[:2]), "s.tar: there is only one class, '0'"),
        (tar(*SOUND, ("c/3.png", b"no image"), ("c/3.cls", b"1")), "s.tar/c/3.png: it is not an image"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_unsound_shard_is_refused_by_its_name_and_the_members(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(DataError) as error:
        shards(urls="s.tar", root=str(tmp_path), test_fraction=0)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("urls", "message"),
    [("x-{0..3}.tar", "x-0.tar', nor 3 more"), ("https://example.org/a.tar", "are read from local files"),
     ("x-{5..1}.tar", "must go from a number to one that is not less"), ("*.none", "matches no file"),
     ([], "names no shard"),
     ("{0..99999}{0..99999}.tar", "stands for more than"), (["s.tar", "s.tar"], "twice")],
)  # fmt: skip
def test_a_mistake_in_urls_is_refused(urls: str | list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(*SOUND))
    with pytest.raises(DataError) as error:
        shards(urls=urls, root=str(tmp_path))
    assert message in str(error.value)


def test_no_damage_to_a_shard_hangs_or_raises_anything_but_a_line(tmp_path: Path) -> None:
    sound = tar(*SOUND)[:4096]
    generator = random.Random(0)
    file = tmp_path / "s.tar"

    def damaged() -> bytes:
        content = bytearray(sound)
        for _ in range(generator.randint(1, 8)):
            at = (
                generator.randrange(len(content))
                if generator.random() < 0.3
                else generator.choice([0, 1024, 2048]) + generator.randrange(512)
            )
            content[at] = generator.choice([0, 0x30, 0x37, 0x80, 0xFF, generator.randrange(256)])
        for start in range(0, len(content) - 511, 512):  # headers whose checksums are right
            if generator.random() < 0.7:
                header = content[start : start + 148] + b" " * 8 + content[start + 156 : start + 512]
                content[start + 148 : start + 156] = b"%06o\0 " % sum(header)
        return bytes(content[: generator.randrange(len(content))] if generator.random() < 0.2 else content)

    for _ in range(500):
        file.write_bytes(damaged())
        with contextlib.suppress(DataError):  # all else fails the test
            make_index(file)


def test_the_index_is_made_once_for_a_shard_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "s.tar"
    file.write_bytes(tar(*SOUND))
    assert read_index(file) == make_index(file)
    assert read_index(file) == make_index(file)
    file.write_bytes(tar(*SOUND[2:], *SOUND[:2]))
    assert [sample.name for sample in read_index(file).samples] == ["b/2.png", "a/1.png"]


@pytest.mark.parametrize(
    "pattern",
    ["{a,b}-{08..11}.tar", "{8..10}", "{x}.tar", "{0..12}", "{1..010}", "{01..3}", "{00..12}", "{0..0}"],
)
def test_braces_are_expanded_as_by_the_package_that_webdataset_uses(pattern: str) -> None:
    assert expand_braces(pattern) == list(braceexpand(pattern))


def test_a_pattern_below_a_folder_whose_name_has_brackets_matches_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "photos [2024]"
    folder.mkdir()
    (folder / "s-0.tar").write_bytes(tar(*SOUND))
    assert len(shards(urls="s-*.tar", root=str(folder), test_fraction=0).train) == 2


def test_a_shard_is_in_one_split_only(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tar").write_bytes(tar(*SOUND))
    with pytest.raises(DataError, match=r"data\.test_urls: names the shard '.*b\.tar', which data\.urls names too"):
        shards(urls="*.tar", test_urls="b.tar", root=str(tmp_path))


def test_images_of_a_single_class_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("a/1.png", image()), ("a/1.cls", b"dog")))
    assert read_shard(tmp_path / "s.tar", ("cat", "dog"), (3, 4, 4), Resizing()).labels.tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"cat\n\ndog\n", b"cat\ncat\n", b"\xe9\n"])
def test_class_names_that_are_not_one_in_each_line_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(*SOUND))
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"classes\.txt: (must have a class's name in each line|cannot be read)"):
        shards(urls="s.tar", root=str(tmp_path))


def test_a_classs_name_may_hold_any_character_but_the_end_of_a_line(tmp_path: Path) -> None:
    for name in ("a\u2028b", "c d", "é"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(image(number))
    pack(tmp_path / "photos", tmp_path / "packed", 1_000_000)
    names = tmp_path / "packed" / "classes.txt"
    for content in (names.read_bytes(), b"\xef\xbb\xbf" + names.read_bytes().replace(b"\n", b"\r\n")):  # by Notepad
        names.write_bytes(content)
        assert shards(urls="*.tar", root=str(tmp_path / "packed")).classes == ("a\u2028b", "c d", "é")
