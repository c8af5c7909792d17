"""Texts and members of tar files packed into arrays."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softmaxce.data.member import Member
from softmaxce.data.packed import PackedMembers, PackedTexts, packed
from softmaxce.data.splits import OnDisk

ANY_TEXT = st.text(st.characters())  # with lone surrogates, which stand for the bytes of names that are not UTF-8


def decode(file: str) -> torch.Tensor:
    """A user's own."""
    return torch.zeros(1, 2, 2, dtype=torch.uint8)


@given(st.lists(ANY_TEXT), st.slices(12))
def test_packed_texts_are_read_as_a_list_of_them_is(texts: list[str], part: slice) -> None:
    result = packed(texts)
    assert isinstance(result, PackedTexts)
    assert list(result) == texts
    assert list(pickle.loads(pickle.dumps(result))[part]) == texts[part]
    assert result == texts
    assert result != [*texts, ""]
    for index in range(-len(texts), len(texts)):
        assert result[index] == texts[index]
    for index in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            result[index]


def members(names: Sequence[str]) -> list[Member]:
    return [Member(name, f"train-{i % 3}.tar", 512 * i, i + 1, i // 2) for i, name in enumerate(names)]


@given(st.lists(ANY_TEXT, min_size=1), st.slices(12))
def test_packed_members_keep_their_shards_and_numbers(names: list[str], part: slice) -> None:
    given = members(names)
    result = packed(given)
    assert isinstance(result, PackedMembers)
    for one, other in zip([*result, *result[part]], [*given, *given[part]], strict=True):
        assert (str(one), one.name) == (str(other), other.name)
        for number in ("shard", "offset", "size", "window"):
            assert getattr(one, number) == getattr(other, number)


def test_a_split_on_disk_keeps_entries_of_a_users_own_type_as_they_are(tmp_path: Path) -> None:
    files = (tmp_path / "a", tmp_path / "b")
    split = OnDisk(files, torch.tensor([0, 1]), (1, 2, 2), decode)  # type: ignore[arg-type]
    assert split.take(torch.tensor([1, 0])).files == [tmp_path / "b", tmp_path / "a"]
