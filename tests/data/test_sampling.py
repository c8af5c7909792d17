"""data.sampler: which images an epoch consists of where classes are unequal."""

from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softmaxce.build import build_run
from softmaxce.data.batches import Batches
from softmaxce.data.keyed_augment import RandomErasing
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.sampling import ClassSampler
from softmaxce.data.splits import InMemory
from softmaxce.report.training import unequal_classes
from softmaxce.runtime.process_group import ProcessGroup

from ..helpers import config

CPU = torch.device("cpu")
UNEQUAL = [60, 9, 3]  # images of each class


def split(counts: list[int], size: int = 6) -> InMemory:
    """Images whose pixels are all their index."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size)
    return InMemory(images.contiguous(), labels)


def batches(counts: list[int] = UNEQUAL, power: float = 1.0, **changes: Any) -> Batches:
    part = split(counts)
    preprocessing = Preprocessing(part.shape, (0.0,), (1 / 255,))  # a batch's pixels are those of the split
    arguments = {"batch_size": 10, "device": CPU, "shuffle_seed": 4, "sampler": ClassSampler(power)} | changes
    return Batches(part, preprocessing, **arguments)


def images_of(made: Batches, epoch: int = 1, start: int = 0) -> list[tuple[int, int]]:
    """The index and the label of each image of an epoch, in its order."""
    pairs = []
    for images, labels in made.epoch(epoch, start):
        pairs += list(zip(images[:, 0, 0, 0].round().int().tolist(), labels.tolist(), strict=True))
    return pairs


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(any), st.floats(0, 1))
def test_a_class_of_m_images_has_its_share_of_m_to_the_power_rounded_and_the_sum_is_that_of_the_split(
    counts: list[int], power: float
) -> None:
    drawn = ClassSampler(power).counts(torch.tensor(counts))
    weights = [m ** (1 - power) if m else 0.0 for m in counts]
    exact = [sum(counts) * weight / sum(weights) for weight in weights]
    assert int(drawn.sum()) == sum(counts)
    assert all(abs(got - wanted) < 1 + 1e-9 for got, wanted in zip(drawn.tolist(), exact, strict=True))
    assert [got == 0 for m, got in zip(counts, drawn.tolist(), strict=True) if m == 0] == [True] * counts.count(0)


def test_a_balanced_epoch_has_as_many_images_of_each_class_and_repeats_none_before_all_of_its_class_have_come() -> None:
    made = batches()
    pairs = images_of(made)
    assert Counter(label for _, label in pairs) == {0: 24, 1: 24, 2: 24}
    assert all(made.split.labels[index] == label for index, label in pairs)
    times = Counter(index for index, _ in pairs)
    assert {times[index] for index in range(60)} == {0, 1}
    assert {times[index] for index in range(60, 69)} == {2, 3}
    assert {times[index] for index in range(69, 72)} == {8}


def test_power_zero_takes_each_image_once() -> None:
    assert sorted(index for index, _ in images_of(batches(power=0.0))) == list(range(72))


def test_epochs_differ_and_the_rest_of_an_epoch_is_that_of_the_whole() -> None:
    made = batches()
    whole = images_of(made, epoch=3)
    assert images_of(made, epoch=3, start=2) == whole[20:]
    assert images_of(made, epoch=4) != whole
    assert sorted(images_of(made, epoch=4)) != sorted(whole)  # other images of the frequent class


def test_three_processes_share_the_epoch_of_one() -> None:
    whole = images_of(batches(batch_size=12))
    shares = [images_of(batches(batch_size=12, group=ProcessGroup(rank, 3, rank, 3))) for rank in range(3)]
    assert sorted(chain.from_iterable(shares)) == sorted(whole)


def test_an_image_that_comes_twice_in_an_epoch_is_augmented_differently() -> None:
    erased: dict[int, set[bytes]] = {}
    made = batches([40, 1], augment=[RandomErasing(p=1.0, scale=(0.2, 0.3), ratio=(0.5, 2.0), fill="noise")])
    for images, labels in made.epoch(1):
        for image, label in zip(images, labels.tolist(), strict=True):
            if label == 1:
                erased.setdefault(label, set()).add(image.numpy().tobytes())
    assert len(erased[1]) == 20  # of one image that comes 20 times (41 images, the last batch of one is left out)


@pytest.mark.parametrize(
    ("counts", "sampler", "line"),
    [
        ([60, 31], None, None),  # less than twice as many
        ([60, 3, 9], None, "60 a, 9 c, 3 b"),
        ([60, 3, 9], ClassSampler(1.0), "60 a, 9 c, 3 b; data.sampler draws 24 of each in an epoch"),
        ([4, 1], ClassSampler(0.5), "4 a, 1 b; data.sampler draws 2 to 3 of each in an epoch"),  # 2 : 1 of 5
        ([5, 1, 4, 4, 4, 4, 4, 4, 4], None, "1 (b) to 5 (a), median 4"),
    ],
)
def test_the_start_lines_count_the_images_of_unequal_classes(
    counts: list[int], sampler: ClassSampler | None, line: str | None
) -> None:
    made = batches(counts, sampler=sampler)
    expected = [] if line is None else [f"training images of a class: {line}"]
    assert unequal_classes(made, "abcdefghi"[: len(counts)]) == expected


def labels_of(run: Any) -> Tensor:
    return torch.cat([labels for _, labels in run.train.epoch(1)])


@pytest.mark.parametrize(("sampler", "power"), [("balanced", 1.0), ({"power": 0.5}, 0.5), ("none", 0.0)])
def test_a_config_names_the_sampler(sampler: Any, power: float) -> None:
    run = build_run(config(data__sampler=sampler))
    labels = run.train.split.labels
    expected = ClassSampler(power).counts(labels.bincount())
    drawn = labels_of(run).bincount(minlength=len(expected))
    assert int((drawn - expected).abs().sum()) <= 1  # a last batch of one is left out
