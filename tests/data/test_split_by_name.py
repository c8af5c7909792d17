"""Splits by the images' names: an image keeps its side when others are added or removed."""

import json
import math
import shutil
import unicodedata
from dataclasses import replace as replaced
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from softmaxce.build import build_run, hold_out, load_source
from softmaxce.config import reader
from softmaxce.config.keys import Config
from softmaxce.data.folder import image_folder
from softmaxce.data.splits import Dataset, InMemory, split_by_name, stratified
from softmaxce.errors import ConfigError, DataError
from softmaxce.inference.trained_model import config_of
from softmaxce.runs import checkpoint

from ..helpers import Softmaxce

NAMES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 10**6)), min_size=2, max_size=120, unique=True
).filter(lambda pairs: max([label for label, _ in pairs].count(c) for c in "abcd") > 1)
FRACTIONS = st.floats(0.01, 0.95)

Pairs = list[tuple[str, int]]


def chosen_of(pairs: Pairs, size: float, salt: str = "test") -> set[str]:
    names = [f"{label}/{number}" for label, number in pairs]
    classes = sorted({label for label, _ in pairs})
    labels = torch.tensor([classes.index(label) for label, _ in pairs])
    rest, selected = split_by_name(names, labels, size, salt)
    assert torch.cat([rest, selected]).sort().values.equal(torch.arange(len(names)))
    return {names[index] for index in selected.tolist()}


def of_class(names: set[str], label: str) -> int:
    return sum(name.startswith(f"{label}/") for name in names)


@given(NAMES, st.sampled_from("abcde"), FRACTIONS)
def test_one_image_more_moves_at_most_one_other_and_that_of_its_own_class(
    pairs: Pairs, label: str, fraction: float
) -> None:
    before, after = chosen_of(pairs, fraction), chosen_of([*pairs, (label, -1)], fraction)
    moved = (before ^ after) - {f"{label}/-1"}
    assert len(moved) <= 1
    assert all(name.startswith(f"{label}/") for name in moved)


@given(NAMES, st.randoms(), FRACTIONS | st.just(1))
def test_the_order_of_the_images_does_not_matter(pairs: Pairs, random: Random, size: float) -> None:
    other = list(pairs)
    random.shuffle(other)
    assert chosen_of(other, size) == chosen_of(pairs, size)


@given(NAMES, FRACTIONS)
def test_a_class_has_its_share_to_within_a_quarter_or_an_image_and_one_on_each_side(
    pairs: Pairs, fraction: float
) -> None:
    selected = chosen_of(pairs, fraction)
    for label in {label for label, _ in pairs}:
        total = [each for each, _ in pairs].count(label)
        number, share = of_class(selected, label), fraction * total
        if total == 1:
            assert number == 0
        else:
            assert 1 <= number <= total - 1
            assert abs(number - share) <= max(share / 4, 1)


@given(NAMES, st.data())
def test_a_count_is_exact_and_leaves_each_class_one_image(pairs: Pairs, data: st.DataObject) -> None:
    sizes = {label: [each for each, _ in pairs].count(label) for label, _ in pairs}
    count = data.draw(st.integers(1, len(pairs) - len(sizes)))
    selected = chosen_of(pairs, count)
    assert len(selected) == count
    assert all(of_class(selected, label) < size for label, size in sizes.items())


def test_no_training_image_of_a_large_class_becomes_a_test_image_when_it_grows_by_half() -> None:
    before = [("a", number) for number in range(2000)]
    after = [*before, *(("a", number) for number in range(2000, 3000))]
    old, new = chosen_of(before, 0.2), chosen_of(after, 0.2)
    assert {name for name in new if int(name[2:]) < 2000} == old
    assert abs(len(new) - 600) < 4 * math.sqrt(3000 * 0.2 * 0.8)  # four deviations of a binomial count


def test_another_salt_is_another_split_and_validation_is_not_test() -> None:
    pairs = [("a", number) for number in range(1000)]
    sides = [chosen_of(pairs, 0.2, salt) for salt in ("test", "data.validation 0", "data.validation 1")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 10 < len(sides[one] & sides[other]) < 80  # 40 by chance


def test_composed_and_decomposed_letters_are_one_name() -> None:
    names = [f"caf\u00e9/\u00fc{number}.png" for number in range(200)]
    labels = torch.zeros(200, dtype=torch.int64)
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert decomposed != names
    assert split_by_name(names, labels, 0.3, "x")[1].equal(split_by_name(decomposed, labels, 0.3, "x")[1])


def test_the_hash_is_blake2b_and_no_machine_splits_otherwise() -> None:
    # printf 'test\0a/6.png' | b2sum -l 64 is 042f..., with 2 it is 0a9c..., and the next is 9647...
    names = [f"a/{number}.png" for number in range(8)]
    _, selected = split_by_name(names, torch.zeros(8, dtype=torch.int64), 0.25, "test")
    assert selected.tolist() == [2, 6]


# -- classes are not lost, where images have no names -----------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=8, max_size=100).map(torch.tensor), st.data())
def test_no_class_loses_its_last_image_to_a_count_that_leaves_room(labels: Tensor, data: st.DataObject) -> None:
    classes = len(labels.unique())
    count = data.draw(st.integers(1, len(labels) - classes))
    rest, _ = stratified(labels, count, torch.Generator().manual_seed(0), ("rest",))
    assert len(labels[rest].unique()) == classes


@given(st.lists(st.integers(0, 5), min_size=8, max_size=100).map(torch.tensor), st.data())
def test_a_limit_of_enough_images_has_some_of_every_class(labels: Tensor, data: st.DataObject) -> None:
    classes = len(labels.unique())
    count = data.draw(st.integers(classes, len(labels) - 1))
    _, selected = stratified(labels, count, torch.Generator().manual_seed(0), ("selected",))
    assert len(selected) == count
    assert len(labels[selected].unique()) == classes


@pytest.mark.parametrize("change", ["data.validation=2", "data.validation=0.5", "data.train_limit=2"])
def test_training_has_every_class_of_a_data_set_without_names(change: str, tmp_path: Path) -> None:
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    source = Dataset(InMemory(images, torch.tensor([0, 1, 1, 1])), None, ("a", "b"))
    held = hold_out(source, load_with(tmp_path, change))
    assert held.train.labels.unique().tolist() == [0, 1]


# -- folders ----------------------------------------------------------------------------------------------------------


def paint(file: Path, number: int) -> None:
    """An image whose pixels encode its number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array([number >> 16, number >> 8 & 255, number & 255], np.uint8)
    Image.fromarray(np.broadcast_to(pixels, (2, 2, 3)).copy()).save(file)


def numbers(split: object) -> set[int]:
    """The numbers of a split's images."""
    assert isinstance(split, InMemory)
    red, green, blue = split.images[:, :, 0, 0].int().T
    return set((red * 65536 + green * 256 + blue).tolist())


def load_with(root: Path, *changes: str) -> Config:
    overrides = [f"data.root={json.dumps(str(root))}", "data.size=2", "model=linear", *changes]
    return reader.load("image_folder", [reader.parse_override(text) for text in [*overrides, "data.augment=[]"]])


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 images in four classes."""
    root = tmp_path_factory.mktemp("images") / "photos"
    for number in range(1000):
        paint(root / "abcd"[number % 4] / f"{number:04}.png", number)
    return root


@pytest.mark.parametrize("name", ["0000a.png", "zz.png", "0500-copy.png", "more/below.png"])
def test_of_a_thousand_images_no_more_than_one_changes_sides_for_one_added(
    name: str, thousand: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(thousand, grown)
    paint(grown / "b" / name, 5000)
    old, new = (hold_out(load_source(load_with(root)), load_with(root)) for root in (thousand, grown))
    old_test, new_test = numbers(old.test), numbers(new.test)
    assert 150 <= len(old_test) <= 250
    assert len((old_test ^ new_test) - {5000}) <= 1
    seen = numbers(old.train) | numbers(old.validation)
    assert len(seen & new_test) <= 1
    assert len((numbers(old.validation) ^ numbers(new.validation)) - {5000}) <= 2


def test_a_single_image_stays_in_training(tmp_path: Path) -> None:
    for number, name in enumerate(("a/0.png", "b/1.png", "b/2.png", "b/3.png")):
        paint(tmp_path / name, number)
    source = image_folder(test_fraction=0.5, root=str(tmp_path))
    assert source.train.labels.unique().tolist() == [0, 1]
    assert source.test is not None
    assert source.test.labels.unique().tolist() == [1]


def test_classes_of_one_image_each_have_none_for_a_test_and_the_message_says_so(tmp_path: Path) -> None:
    for number in range(3):
        paint(tmp_path / "abc"[number] / "0.png", number)
    with pytest.raises(DataError, match=r"data\.test_fraction: no class has two images.*set it to 0"):
        image_folder(root=str(tmp_path))


def test_a_validation_count_that_takes_a_class_whole_is_refused(tmp_path: Path) -> None:
    for number in range(8):
        paint(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", number)
    requested = load_with(tmp_path, "data.validation=7")
    with pytest.raises(ConfigError, match="7 of 8 images would leave a class without training images; 6 is the most"):
        hold_out(load_source(requested), requested)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_elsewhere_and_a_damaged_file_left_out_leave_the_others_where_they_were(
    in_memory: bool, thousand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "else where" / "x"
    for file in sorted(thousand.glob("*/*.png"), reverse=True):  # the file system lists them in another order
        (elsewhere / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, elsewhere / file.parent.name)
    (elsewhere / "a" / "0000a.png").write_bytes(b"nothing")
    monkeypatch.chdir(tmp_path)
    expected = image_folder(root=str(thousand)).test
    test = image_folder(root="else where/x", skip_bad=True, in_memory=in_memory).test
    assert expected is not None
    assert expected.names is not None
    assert test is not None
    assert test.names == expected.names
    assert all("\\" not in name and name.count("/") == 1 for name in test.names)


# -- runs of earlier versions -----------------------------------------------------------------------------------------


def by_shuffle(labels: Tensor, count: int, seed: int) -> Tensor:
    """Which images earlier versions chose: the first of each class in a permutation, as many as Hamilton deals it."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    exact = torch.bincount(labels).double() * count / len(labels)
    seats = exact.floor().long()
    seats[torch.argsort(exact - seats, descending=True, stable=True)[: count - int(seats.sum())]] += 1
    selected = [order[labels[order] == label][:seat] for label, seat in enumerate(seats.tolist())]
    return torch.cat(selected).sort().values


def test_split_by_shuffle_is_the_split_of_earlier_versions(thousand: Path) -> None:
    whole = image_folder(test_fraction=0.0, root=str(thousand)).train
    tested = by_shuffle(whole.labels, 200, 0)
    source = image_folder(split_by="shuffle", root=str(thousand))
    assert numbers(source.test) == numbers(whole.take(tested))
    requested = load_with(thousand, "data.split_by=shuffle", "seed=3")
    held = hold_out(source, requested)
    validated = by_shuffle(source.train.labels, 120, 3)
    assert numbers(held.validation) == numbers(source.train.take(validated))


def test_a_checkpoint_without_the_key_has_the_split_of_earlier_versions(thousand: Path, tmp_path: Path) -> None:
    run = build_run(load_with(thousand, "data.split_by=shuffle", "epochs=1"))
    checkpoint.save(run, tmp_path, best=False)
    loaded = checkpoint.load(tmp_path / "last.safetensors")
    earlier = json.loads(json.dumps(loaded.header))
    del earlier["config"]["data"]["split_by"]
    assert config_of(replaced(loaded, header=earlier)).source.arguments["split_by"] == "shuffle"
    assert "split_by" not in earlier["config"]["data"]


def test_a_run_is_resumed_and_evaluated_on_the_split_it_was_trained_with(
    softmaxce: Softmaxce, thousand: Path, tmp_path: Path
) -> None:
    sets = ("data.size=2", "data.augment=[]", "model=linear", f"data.root={thousand}")
    options = [word for text in sets for word in ("--set", text)]
    common = ("train", "--config", "image_folder", *options, "--output", "run", "--quiet")
    trained = softmaxce(*common, "--epochs", "1", "--set", "data.split_by=shuffle")
    assert trained.returncode == 0, trained.stderr
    written = tmp_path / "run" / "config.yaml"
    text = written.read_text()
    written.write_text(text.replace("  split_by: shuffle\n", ""))  # as earlier versions wrote it
    assert written.read_text() != text
    refused = softmaxce(*common, "--epochs", "2", "--resume", "auto")
    assert refused.returncode == 2
    assert "data.split_by was 'shuffle' and is now 'name'" in refused.stderr
    resumed = softmaxce("train", "--resume", "run", "--epochs", "2", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert "images" not in resumed.stderr  # the same ones
    evaluated = json.loads(softmaxce("eval", "run", "--json").stdout)
    assert evaluated["images"] == 200  # a shuffle's exact fifth
