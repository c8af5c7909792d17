"""Choosing images so that each class keeps its share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softmaxce.data.splits import Dataset, stratified

LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(torch.tensor)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(LABELS, st.data())
def test_both_parts_together_are_everything_once_and_the_second_has_the_count(
    labels: Tensor, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(labels) - 1))
    rest, selected = stratified(labels, count, drawn(data.draw(st.integers(0, 99))))
    assert len(selected) == count
    assert torch.cat([rest, selected]).sort().values.equal(torch.arange(len(labels)))


@given(LABELS, st.data())
def test_every_class_gets_its_exact_share_to_within_one_image(labels: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels) - 1))
    _, selected = stratified(labels, count, drawn(0))
    seats = torch.bincount(labels[selected], minlength=7)
    exact = torch.bincount(labels, minlength=7) * count / len(labels)
    assert ((seats - exact).abs() < 1).all()


def test_the_same_seed_chooses_the_same_and_another_does_not() -> None:
    labels = torch.arange(1000) % 10
    first, again, other = (stratified(labels, 100, drawn(seed))[1] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("count", [0, 10, 11])
def test_a_count_that_leaves_one_part_empty_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {count} of 10 images; choose between 1 and 9"):
        stratified(torch.zeros(10, dtype=torch.int64), count, drawn(0))


def test_the_old_name_of_a_dataset_is_the_dataset_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match=r"splits\.Source has been renamed: import Dataset"):
        from softmaxce.data.splits import Source
    assert Source is Dataset
