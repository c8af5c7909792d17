"""data.folds: laws of the division, its quality beside scikit-learn's, and what a run with a fold trains on."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from softmaxce.build import load_source
from softmaxce.config.keys import Config
from softmaxce.data.folds import assign_folds
from softmaxce.data.held_out import hold_out
from softmaxce.data.splits import Dataset, InMemory
from softmaxce.errors import ConfigError

from ..helpers import config

FOLDS = st.integers(2, 6)
TABLES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=6, max_size=80)  # (group, class) of a row


def split(labels: list[int], names: list[str] | None = None, groups: list[str] | None = None) -> InMemory:
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).to(torch.uint8)
    texts = tuple(names) if names else None, None, tuple(groups) if groups else None
    return InMemory(images, torch.tensor(labels), *texts)


@settings(max_examples=50)
@given(TABLES, FOLDS, st.randoms())
def test_without_groups_folds_and_each_class_in_them_differ_by_one_image_and_images_may_come_in_any_order(
    table: list[tuple[int, int]], folds: int, random: Random
) -> None:
    def by_name(rows: list[tuple[str, int]]) -> dict[str, int]:
        names = [name for name, _ in rows]
        assigned = assign_folds(split([label for _, label in rows], names), folds)
        return dict(zip(names, assigned.tolist(), strict=True))

    rows = [(f"{label}/{index}", label) for index, (_, label) in enumerate(table)]
    first = by_name(rows)
    for label in (*set(dict(rows).values()), None):
        images = [first[name] for name, other in rows if label in (None, other)]
        counts = np.bincount(images, minlength=folds)
        assert counts.sum() == len(images)
        assert counts.max() - counts.min() <= 1
    random.shuffle(rows)
    assert by_name(rows) == first


@settings(max_examples=100)
@given(TABLES, FOLDS)
def test_no_group_is_in_two_folds_and_no_fold_is_empty(table: list[tuple[int, int]], folds: int) -> None:
    groups, labels = [f"g{group}" for group, _ in table], [label for _, label in table]
    if len(set(groups)) < folds:
        with pytest.raises(ValueError, match=rf"{len(set(groups))} groups cannot be divided into {folds} folds"):
            assign_folds(split(labels, groups=groups), folds)
        return
    assigned = assign_folds(split(labels, groups=groups), folds).tolist()
    assert set(assigned) == set(range(folds))
    assert len(set(zip(groups, assigned, strict=True))) == len(set(groups))


@settings(max_examples=50)
@given(TABLES, FOLDS)
def test_groups_of_one_image_are_stratified_as_images_without_groups(table: list[tuple[int, int]], folds: int) -> None:
    labels = [label for _, label in table]
    assigned = assign_folds(split(labels, groups=[f"g{index}" for index in range(len(table))]), folds).numpy()
    for label in set(labels):
        counts = np.bincount(assigned[np.array(labels) == label], minlength=folds)
        assert counts.max() - counts.min() <= 1


def imbalance(labels: np.ndarray, assigned: np.ndarray, folds: int) -> float:
    """The standard deviation of a class's share between folds, averaged over classes: what scikit-learn minimizes."""
    counts = [np.bincount(assigned[labels == label], minlength=folds) for label in set(labels)]
    return float(np.mean([count.std() / count.sum() for count in counts]))


@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")
@pytest.mark.parametrize("grouped", [False, True])
def test_folds_are_as_stratified_as_those_of_scikit_learn(grouped: bool) -> None:
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(60, 400))
        labels = rng.choice(4, count, p=(0.55, 0.3, 0.1, 0.05))
        # patients of 1 to 12 images, which prefer one class
        groups = np.repeat(np.arange(count), rng.integers(1, 13, count))[:count]
        labels = np.where(rng.random(count) < 0.6, labels[groups], labels) if grouped else labels
        made = StratifiedGroupKFold(5) if grouped else StratifiedKFold(5, shuffle=True, random_state=0)
        reference = np.zeros(count, int)
        for fold, (_, selected) in enumerate(made.split(labels, labels, groups if grouped else None)):
            reference[selected] = fold
        part = split(labels.tolist(), groups=[f"p{group}" for group in groups] if grouped else None)
        ours.append(imbalance(labels, assign_folds(part, 5).numpy(), 5))
        theirs.append(imbalance(labels, reference, 5))
    assert np.mean(ours) <= np.mean(theirs) * 1.02


def with_fold(fold: int, **changes: object) -> Config:
    return config(data__folds=4, data__fold=fold, **changes)


def test_each_image_is_in_the_test_split_of_one_fold_whatever_the_seed_and_validation_comes_from_the_others() -> None:
    names = [f"{label}/{index}" for index, label in enumerate([0, 1, 1, 2] * 10)]
    source = Dataset(split([int(name[0]) for name in names], names), None, ("a", "b", "c"))
    seen: list[str] = []
    for fold in range(1, 5):
        held = hold_out(source, with_fold(fold))
        assert held.test is not None
        assert held.validation is not None
        parts = [each.names or () for each in (held.train, held.validation, held.test)]
        assert sorted(name for part in parts for name in part) == sorted(names)
        seen += parts[2]
        assert hold_out(source, with_fold(fold, seed=7)).test.names == parts[2]  # type: ignore[union-attr]
    assert sorted(seen) == sorted(names)


def test_a_data_set_of_ones_own_images_holds_out_no_others_and_its_own_test_split_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(12):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    section = {"name": "image_folder", "root": str(tmp_path), "test_fraction": 0.5, "folds": 4, "fold": 2}
    requested = config(data=section)
    held = hold_out(load_source(requested), requested)
    assert [len(held.train), len(held.test or ())] == [9, 3]
    assert not capsys.readouterr().err
    hold_out(Dataset(split([0, 1] * 8), split([0] * 7), ("a", "b")), with_fold(1))
    assert "own test split of 7 images is not used: the test split is fold 1 of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 1, 1], None, "3 images cannot be divided into 4 folds"),
        ([0, 1, 1, 1, 1], None, "all images of the class 'a' are in fold 1, .* a class needs two images or more"),
        ([0, 0, 1, 1, 1, 1], ["p", "p", *"qrst"], "all images of the class 'a' .* needs two groups or more"),
    ],
)
def test_too_few_images_of_a_class_are_one_line(labels: list[int], groups: list[str] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=f"data.folds: {message}"):
        hold_out(Dataset(split(labels, groups=groups), None, ("a", "b")), with_fold(1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data__folds": 4}, "small.yaml:.*: which is the test split\\? set fold to one of 1 to 4, or train all"),
        ({"data__fold": 2}, "small.yaml:.*: needs folds"),
        ({"data__folds": 4, "data__fold": 5}, "small.yaml:.*: fold must be one of 1 to 4, got 5"),
    ],
)
def test_folds_and_fold_belong_together(keys: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**keys)
