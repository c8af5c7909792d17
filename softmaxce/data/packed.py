"""Many short texts in one array of bytes.

A Python string takes some 50 bytes beside its characters. And each process that decodes images would copy all paths in
time: using a string changes its reference count, which is a write to memory that forked processes share
(https://github.com/pytorch/pytorch/issues/13246). An array of bytes is only read.
"""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .member import Member

ENCODING = "utf-8", "surrogatepass"  # also of names that are not UTF-8, which Python reads as surrogates


class PackedTexts(Sequence[str]):
    """N texts, immutable.

    Args:
        texts: in any order, repeated or empty.
    """

    __slots__ = ("_content", "_ends")

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(*ENCODING) for text in texts]
        self._ends: NDArray[np.int64] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._content = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedTexts": ...
    def __getitem__(self, index: int | slice) -> "str | PackedTexts":
        if isinstance(index, slice):
            return PackedTexts(self[i] for i in range(*index.indices(len(self))))
        position = range(len(self))[index]  # raises IndexError, and counts negative indices from the end
        return self._content[self._ends[position] : self._ends[position + 1]].decode(*ENCODING)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))


class PackedMembers(Sequence[Member]):
    """N members of tar files, immutable.

    Args:
        members: in any order.
    """

    __slots__ = ("_names", "_numbers", "_shards")

    def __init__(self, members: Sequence[Member]) -> None:
        self._shards = tuple(dict.fromkeys(member.shard for member in members))
        number_of = {shard: number for number, shard in enumerate(self._shards)}
        self._names = PackedTexts(member.name for member in members)
        rows = [(number_of[member.shard], member.offset, member.size, member.window) for member in members]
        self._numbers: NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedMembers": ...
    def __getitem__(self, index: int | slice) -> "Member | PackedMembers":
        if isinstance(index, slice):
            return PackedMembers([self[i] for i in range(*index.indices(len(self)))])
        shard, offset, size, window = self._numbers[index].tolist()
        return Member(self._names[index], self._shards[shard], offset, size, window)


def packed(texts: Sequence[str]) -> Sequence[str]:
    """The same texts or members, packed; a sequence of other things as it is."""
    if isinstance(texts, PackedTexts | PackedMembers):
        return texts
    if all(type(text) is str for text in texts):
        return PackedTexts(texts)
    members = [text for text in texts if isinstance(text, Member)]
    return PackedMembers(members) if len(members) == len(texts) else texts


def taken(texts: Sequence[str], indices: Tensor) -> list[str]:
    """The texts at `indices` ([M] int64), in that order."""
    return [texts[index] for index in indices.tolist()]
