"""The named data sets, read from files in their publishers' formats: real ones where there are, else made here."""

import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from sklearn.datasets import load_digits

from softmaxce.build import build_run, load_source
from softmaxce.config.reader import from_dict, load, parse_override
from softmaxce.data import datasets as sources
from softmaxce.data import torchvision_sets
from softmaxce.data.datasets import FASHION, KANA
from softmaxce.data.idx import AGAIN, read_idx
from softmaxce.data.splits import Dataset, InMemory
from softmaxce.errors import DataError, SoftmaxceError

TEN = tuple(map(str, range(10)))


def write_idx(file: Path, array: np.ndarray, *, packed: bool) -> None:
    """The MNIST family's format: magic number, dimensions, bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = (0x0800 + array.ndim).to_bytes(4) + b"".join(side.to_bytes(4) for side in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    file.write_bytes(gzip.compress(data) if packed else data)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_digits_are_scikit_learns_with_every_fifth_as_the_test() -> None:
    source = sources.digits()
    assert isinstance(source.train, InMemory)
    assert isinstance(source.test, InMemory)
    assert (len(source.train), len(source.test)) == (1437, 360)
    original = load_digits()
    tested = np.arange(1797) % 5 == 0
    for split, mask in ((source.train, ~tested), (source.test, tested)):
        levels = split.images.squeeze(1).double() / 255 * 16
        np.testing.assert_allclose(levels.numpy(), original.images[mask], atol=0.04)  # 255 / 16 is rounded
        np.testing.assert_array_equal(split.labels.numpy(), original.target[mask])


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_the_mnist_family_is_read_from_its_idx_files(name: str, folder: str, tmp_path: Path) -> None:
    images, labels = pixels(20, 28, 28), np.arange(20) % 10
    for part, count in (("train", 20), ("t10k", 8)):
        write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", images[:count], packed=False)
        write_idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", labels[:count], packed=False)
    source: Dataset = getattr(sources, name)(root=str(tmp_path), download=False)
    assert isinstance(source.train, InMemory)
    np.testing.assert_array_equal(source.train.images.numpy(), images[:, None])
    np.testing.assert_array_equal(source.train.labels.numpy(), labels)
    assert source.test is not None
    assert len(source.test) == 8
    assert len(source.classes) == 10


def test_real_mnist_has_its_published_counts(real_data: Path) -> None:
    source = sources.mnist(root=str(real_data), download=False)
    assert torch.bincount(source.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert source.test is not None
    assert torch.bincount(source.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_emnist_is_upright_and_its_letters_are_counted_from_0(tmp_path: Path) -> None:
    images, labels = pixels(26, 28, 28), np.arange(1, 27)
    for part in ("train", "test"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            write_idx(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-{kind}-ubyte", array, packed=False)
    source = sources.emnist("letters", root=str(tmp_path), download=False)
    assert isinstance(source.train, InMemory)
    np.testing.assert_array_equal(source.train.images.numpy()[:, 0], images.transpose(0, 2, 1))
    assert source.train.labels.tolist() == list(range(26))
    assert source.classes == tuple("abcdefghijklmnopqrstuvwxyz")


def cifar(folder: Path, batches: dict[str, int], key: str, meta: tuple[str, str, list[str]]) -> np.ndarray:
    """CIFAR's python version, as its site describes it: rows of 3072 bytes, red then green then blue."""
    folder.mkdir(parents=True)
    rows = pixels(sum(batches.values()), 3072)
    start = 0
    for name, count in batches.items():
        entry = {"data": rows[start : start + count], key: [i % 10 for i in range(start, start + count)]}
        (folder / name).write_bytes(pickle.dumps(entry))
        start += count
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: meta[2]}))
    return rows


def test_files_that_are_not_the_official_ones_are_not_taken_for_cifar(tmp_path: Path) -> None:
    batches = {f"data_batch_{i}": 4 for i in range(1, 6)} | {"test_batch": 4}
    cifar(tmp_path / "cifar-10-batches-py", batches, "labels", ("batches.meta", "label_names", list("abcdefghij")))
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*expected in .*: cifar-10-python.tar.gz.*download: true"):
        sources.cifar10(root=str(tmp_path), download=False)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_pixels_come_out_as_channels_rows_columns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchvision knows the official files by their checksums, so the class that reads them gets the checksums of ours
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    files = [entry[0] for entry in (*reader.train_list, *reader.test_list)]
    key = "labels" if name == "cifar10" else "fine_labels"
    names = [f"thing{i}" for i in range(10)]
    meta = (reader.meta["filename"], reader.meta["key"], names)
    rows = cifar(tmp_path / reader.base_folder, dict.fromkeys(files, 4), key, meta)
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(reader, attribute, [(file, None) for file, _ in getattr(reader, attribute)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})
    source: Dataset = getattr(sources, name)(root=str(tmp_path), download=False)
    assert isinstance(source.train, InMemory)
    assert source.classes == tuple(names)
    np.testing.assert_array_equal(source.train.images.numpy(), rows[: len(source.train)].reshape(-1, 3, 32, 32))
    assert source.train.labels.tolist() == [i % 10 for i in range(len(source.train))]


def test_svhn_is_read_from_its_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    images, labels = pixels(6, 32, 32, 3), np.array([1, 2, 9, 10, 5, 10])
    split_list = {}
    for split in ("train", "test", "extra"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
        split_list[split] = [datasets.SVHN.split_list[split][0], f"{split}_32x32.mat", None]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    source = sources.svhn(root=str(tmp_path), download=False)
    assert isinstance(source.train, InMemory)
    np.testing.assert_array_equal(source.train.images.numpy(), images.transpose(0, 3, 1, 2))
    assert source.train.labels.tolist() == [1, 2, 9, 0, 5, 0]  # the files call zero 10
    assert len(sources.svhn(extra=True, root=str(tmp_path), download=False).train) == 12


def test_synthetic_images_depend_on_their_own_seed_and_not_on_the_runs() -> None:
    data = {"name": "synthetic", "classes": 3, "train": 9, "test": 6}
    others = {"epochs": 1, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}}
    first, again, other = (
        load_source(from_dict({"seed": seed, "data": {**data, "image_seed": image_seed}, **others}))
        for seed, image_seed in ((1, 0), (2, 0), (1, 1))
    )
    assert isinstance(first.train, InMemory)
    assert isinstance(again.train, InMemory)
    assert isinstance(other.train, InMemory)
    assert first.train.images.equal(again.train.images)
    assert not first.train.images.equal(other.train.images)
    assert first.train.labels.tolist() == [0, 1, 2] * 3


# -- what is missing or broken ----------------------------------------------------------------------------------------


FILES = {
    "mnist": "train-images-idx3-ubyte.gz",
    "fashion_mnist": "train-images-idx3-ubyte.gz",
    "kmnist": "train-images-idx3-ubyte.gz",
    "emnist": "gzip.zip",
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "svhn": "train_32x32.mat",
}


@pytest.mark.parametrize("name", FILES)
def test_missing_data_is_reported_with_the_folder_and_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        getattr(sources, name)(root=str(tmp_path), download=False)
    message = str(caught.value)
    assert FILES[name] in message
    assert f"expected in {tmp_path}" in message
    assert "data.download: true" in message


@pytest.mark.parametrize("name", FILES)
def test_a_failed_download_names_files_folder_and_the_addresses_tried(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nothing listens there, so there is no network
    with pytest.raises(DataError) as caught:
        getattr(sources, name)(root=str(tmp_path), download=True)
    message = str(caught.value)
    assert "could not be downloaded" in message
    assert f"{FILES[name]} into {tmp_path}" in message or f"{FILES[name]}, " in message
    assert "tried: http" in message


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            file = tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"not idx")
    with pytest.raises(
        DataError, match=r"MNIST/raw/.*-ubyte cannot be read .*delete its files and download them again"
    ):
        sources.mnist(root=str(tmp_path), download=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08\x03",
        b"\0\0\x08\x03" + b"\xff" * 12,  # a header that claims 2^96 pixels
        b"\0\0\x08\x03" + (2).to_bytes(4) + (28).to_bytes(4) * 2 + bytes(28 * 28),  # half of the images
        b"\0\0\x0d\x03" + (1).to_bytes(4) + (28).to_bytes(4) * 2 + bytes(28 * 28 * 4),  # floats
        b"\0\0\x08\x03" + (20).to_bytes(4) + (0).to_bytes(4) * 2,  # images of no size
        b"\0\0\x08\x03" + (3).to_bytes(4) + (28).to_bytes(4) * 2 + bytes(3 * 28 * 28),  # fewer images than labels
    ],
    ids=["empty", "cut", "huge", "half", "floats", "no size", "fewer"],
)
def test_an_idx_file_that_lies_is_named(content: bytes, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels(20, 28, 28), packed=False)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20) % 10, packed=False)
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte .* {AGAIN}") as caught:
        sources.mnist(root=str(tmp_path), download=False)
    assert str(tmp_path) in str(caught.value)


class Evil:
    """A pickle that leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_instead_of_cifars_files_is_not_unpickled(name: str, tmp_path: Path) -> None:
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder, trace = tmp_path / reader.base_folder, tmp_path / "trace"
    folder.mkdir()
    for file in (*(entry[0] for entry in (*reader.train_list, *reader.test_list)), reader.meta["filename"]):
        (folder / file).write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(DataError, match="is not in"):
        getattr(sources, name)(root=str(tmp_path), download=False)
    assert not trace.exists()
    pickle.loads((folder / reader.meta["filename"]).read_bytes())
    assert trace.exists()  # the trap works


def test_a_pickle_instead_of_mnists_old_files_is_not_unpickled(tmp_path: Path) -> None:
    folder, trace = tmp_path / "MNIST" / "processed", tmp_path / "trace"
    folder.mkdir(parents=True)
    for file in ("training.pt", "test.pt"):
        torch.save(Evil(trace), folder / file)
    with pytest.raises(DataError, match=r"MNIST in .* cannot be read"):
        sources.mnist(root=str(tmp_path), download=False)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "device"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    entry = tarfile.TarInfo({"above": "../../outside", "absolute": str(tmp_path / "outside")}.get(kind, "entry"))
    if kind == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, "../../.."
    elif kind == "device":
        entry.type = tarfile.CHRTYPE
    file = tmp_path / "archive.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(entry, io.BytesIO(b""))
    monkeypatch.setattr(datasets.CIFAR10, "url", file.as_uri())  # an archive that has the official checksum
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.CIFAR10, "filename", file.name)
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    with pytest.raises(DataError, match=r"CIFAR10 could not be downloaded"):
        sources.cifar10(root=str(root), download=True)
    assert not (tmp_path / "outside").exists()
    assert [entry.name for entry in root.iterdir()] == ["archive.tar.gz"]


@pytest.mark.parametrize(("name", "file"), [("cifar10", "cifar-10-python.tar.gz"), ("svhn", "both")])
def test_files_that_are_packed_or_not_the_publishers_are_named_with_the_remedy(
    name: str, file: str, tmp_path: Path
) -> None:
    names = ["train_32x32.mat", "test_32x32.mat"] if file == "both" else [file]
    for each in names:
        (tmp_path / each).write_bytes(b"mine")
    remedy = "which is not the publisher's; delete it" if file == "both" else "unpack it there"
    with pytest.raises(DataError, match=f"{tmp_path} holds {' and '.join(names)}, {remedy}"):
        getattr(sources, name)(root=str(tmp_path), download=False)


# -- the files of the MNIST family, packed and not --------------------------------------------------------------------


IDX = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def write_mnist(root: Path, packed: tuple[bool, ...]) -> Path:
    """MNIST's four files, each packed or not. Returns: their folder."""
    raw = root / "MNIST" / "raw"
    for name, each in zip(IDX, packed, strict=True):
        count = 20 if name.startswith("train") else 8
        array = pixels(count, 28, 28) if "images" in name else np.arange(count) % 10
        write_idx(raw / (name + ".gz" * each), array, packed=each)
    return raw


@pytest.mark.parametrize("packed", [(True,) * 4, (True, False, False, True)])
def test_packed_files_are_read_as_the_unpacked_ones_are(packed: tuple[bool, ...], tmp_path: Path) -> None:
    write_mnist(tmp_path / "packed", packed)
    write_mnist(tmp_path / "plain", (False,) * 4)
    ours, plain = (sources.mnist(root=str(tmp_path / name), download=False) for name in ("packed", "plain"))
    for split, other in ((ours.train, plain.train), (ours.test, plain.test)):
        assert isinstance(split, InMemory)
        assert isinstance(other, InMemory)
        assert split.images.equal(other.images)
        assert split.labels.equal(other.labels)


@pytest.mark.parametrize("absent", [[0], [3], [1, 2]])
def test_exactly_the_missing_files_are_named(absent: list[int], tmp_path: Path) -> None:
    raw = write_mnist(tmp_path, (True, False, True, False))
    for index in absent:
        (next(raw.glob(IDX[index] + "*"))).unlink()
    with pytest.raises(DataError) as caught:
        sources.mnist(root=str(tmp_path), download=False)
    message = str(caught.value)
    assert f"missing in {raw}" in message
    assert [index for index, name in enumerate(IDX) if name in message] == absent
    assert "data.download: true" in message


def bomb() -> bytes:
    """A file of 1 kB whose header says 2 GB of pixels, and which unpacks to 1 MB."""
    return gzip.compress(b"\0\0\x08\x03" + (1 << 11).to_bytes(4) + (1 << 10).to_bytes(4) * 2 + bytes(1 << 20))


DAMAGED_GZ: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "without its checksum": lambda content: content[:-8],
    "a wrong checksum": lambda content: content[:-8] + bytes(8),
    "a wrong byte": lambda content: content[:99] + bytes([content[99] ^ 255]) + content[100:],
    "empty": lambda content: b"",
    "not packed": gzip.decompress,
    "more than its header says": lambda content: gzip.compress(gzip.decompress(content) + b"\0"),
    "a bomb": lambda content: bomb(),
}


@pytest.mark.parametrize("kind", DAMAGED_GZ)
def test_a_damaged_packed_file_is_one_line_with_its_name(kind: str, tmp_path: Path) -> None:
    raw = write_mnist(tmp_path, (True,) * 4)
    file = raw / f"{IDX[0]}.gz"
    file.write_bytes(DAMAGED_GZ[kind](file.read_bytes()))
    with pytest.raises(DataError) as caught:
        sources.mnist(root=str(tmp_path), download=False)
    message = str(caught.value)
    assert message.startswith(f"{file} cannot be read (")
    assert message.endswith(AGAIN)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_the_mnist_family_is_what_torchvision_reads(name: str, tmp_path: Path) -> None:
    for part, count in (("train", 12), ("t10k", 5)):
        write_idx(tmp_path / name / "raw" / f"{part}-images-idx3-ubyte", pixels(count, 28, 28), packed=False)
        write_idx(tmp_path / name / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10, packed=False)
    ours = torchvision_sets._mnist_family(
        name, str(tmp_path), False, {"FashionMNIST": FASHION, "KMNIST": KANA}.get(name, TEN)
    )
    theirs = torchvision_sets._two_splits(name, str(tmp_path), False)
    for split, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert isinstance(split, InMemory)
        assert isinstance(other, InMemory)
        assert torch.equal(split.images, other.images)
        assert torch.equal(split.labels, other.labels)
    if name != "MNIST":  # whose names have the digits' words behind them there
        assert ours.classes == theirs.classes


@pytest.mark.parametrize(
    "spoilt",
    [b"", b"\x00\x00\x08", b"\x00\x00\x09\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x01\x00\x00\x00\x02\x00",
     b"\x00\x00\x08\x01\xff\xff\xff\xff\x00"],
)  # fmt: skip
def test_an_idx_file_that_is_not_sound_is_not_read(spoilt: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(spoilt)
    with pytest.raises(ValueError, match=r"idx file|header"):
        read_idx(tmp_path / "labels", 1)
    (tmp_path / "labels").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x02\x07\x09")
    assert read_idx(tmp_path / "labels", 1).tolist() == [7, 9]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data={name: image_folder, root: nope}", "data.root: there is no folder 'nope'"),
        ("data.root=nope", "--set data.root=nope: there is no folder 'nope'"),
        (
            "data.normalize={mean: [0.5, 0.5], std: [1, 1]}",
            "--set data.normalize={mean: [0.5, 0.5], std: [1, 1]}: needs one",
        ),
        ("data.validation=1000000", "--set data.validation=1000000: "),
    ],
)
def test_a_mistake_detected_after_the_config_was_read_names_the_option_too(
    option: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    data = "{name: image_folder, root: x}" if "root" in option else "{name: digits}"
    file.write_text(f"epochs: 1\ndata: {data}\nmodel: linear\noptimizer: adam\n")
    with pytest.raises(SoftmaxceError) as caught:
        build_run(load(str(file), [parse_override(option)]))
    assert caught.value.command_text.startswith(message)
