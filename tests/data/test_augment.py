"""The augmentations on batches, against torchvision's on one image and against what they promise."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from softmaxce.config.registry import AUGMENTATIONS, FROM_WHOLE
from softmaxce.data.augment import (
    ColorJitter,
    Cutout,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    TrivialAugment,
    affine,
)
from softmaxce.data.keyed_augment import AugMix, AutoAugment, RandomErasing

Augmentation = Callable[..., Tensor]


def photographs(batch: int = 6, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


EVERY: list[Augmentation] = [
    RandomCrop(),
    RandomHorizontalFlip(),
    RandomHorizontalFlip(alternate=True),
    RandomAffine(15, [0.1, 0.2], [0.8, 1.2]),
    Cutout(4),
    ColorJitter(0.3, 0.3, 0.3, 0.1),
    RandAugment(),
    TrivialAugment(),
    RandomErasing(),
    AutoAugment(),
    AugMix(),
]


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda augmentation: type(augmentation).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range_are_preserved_and_a_seed_repeats_the_result(augmentation: Augmentation, channels: int) -> None:
    images = photographs(channels=channels)
    before = images.clone()
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(augmentation(images))
    assert results[0].shape == images.shape
    assert results[0].dtype == torch.float32
    assert results[0].min() >= 0
    assert results[0].max() <= 1
    assert results[0].equal(results[1])
    assert images.equal(before)


def test_every_name_on_the_menu_is_tested_here_or_cuts_from_whole_images() -> None:
    of_batches = {target.rpartition(":")[2] for name, target in AUGMENTATIONS.items() if name not in FROM_WHOLE}
    assert of_batches == {type(a).__name__ for a in EVERY}


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda augmentation: type(augmentation).__name__)
def test_each_image_of_a_batch_draws_its_own(augmentation: Augmentation) -> None:
    images = photographs(1).expand(64, -1, -1, -1).contiguous()
    torch.manual_seed(0)
    changed = augmentation(images)
    assert len({image.numpy().tobytes() for image in changed}) >= 2


# -- against torchvision ----------------------------------------------------------------------------------------------


@given(
    degrees=st.floats(-45, 45),
    across=st.integers(-5, 5),
    down=st.integers(-5, 5),
    factor=st.floats(0.5, 2),
    size=st.tuples(st.integers(4, 17), st.integers(4, 17)),
)
def test_affine_is_torchvisions(degrees: float, across: int, down: int, factor: float, size: tuple[int, int]) -> None:
    images = photographs(2, 3, *size)
    ones = torch.ones(2)
    ours = affine(images, math.radians(degrees) * ones, across * ones, down * ones, factor * ones)
    theirs = tv.affine(images, degrees, [across, down], factor, [0.0, 0.0], InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def test_random_affine_stays_within_its_arguments() -> None:
    images = torch.zeros(500, 1, 21, 21)
    images[:, :, 10, 10] = 1  # a dot at the centre shows the shift
    torch.manual_seed(0)
    moved = RandomAffine(0, [0.2, 0.1])(images)
    rows, columns = moved[:, 0].flatten(1).argmax(1) // 21 - 10, moved[:, 0].flatten(1).argmax(1) % 21 - 10
    assert columns.abs().max() == 4  # 0.2 of 21 pixels
    assert rows.abs().max() == 2
    assert (moved.amax((1, 2, 3)) > 0.999).all()  # whole pixels: nothing is blurred


def test_a_crop_is_torchvisions_crop_of_the_padded_image() -> None:
    images = photographs(40)
    torch.manual_seed(0)
    cropped = RandomCrop(3, "reflect")(images)
    padded = tv.pad(images, [3], padding_mode="reflect")
    shifts = set()
    for image, whole in zip(cropped, padded, strict=True):
        places = [
            (top, left) for top in range(7) for left in range(7) if tv.crop(whole, top, left, 12, 10).equal(image)
        ]
        assert places
        shifts.add(places[0])
    assert len(shifts) > 20


def test_a_flip_mirrors_about_half_of_the_images_and_p_decides() -> None:
    images = photographs(400, 1, 3, 3)
    torch.manual_seed(0)
    flipped = RandomHorizontalFlip()(images)
    mirrored = [f.equal(tv.horizontal_flip(i)) for f, i in zip(flipped, images, strict=True)]
    kept = [f.equal(i) for f, i in zip(flipped, images, strict=True)]
    assert sum(mirrored) + sum(kept) == 400
    assert 150 < sum(mirrored) < 250
    assert RandomHorizontalFlip(1.0)(images).equal(tv.horizontal_flip(images))
    assert RandomHorizontalFlip(0.0)(images).equal(images)


def test_an_alternating_flip_mirrors_half_of_the_images_and_in_the_next_epoch_the_others() -> None:
    augmentation = RandomHorizontalFlip(alternate=True)
    chosen = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))
    images = torch.zeros(10_000, 1, 1, 2)
    images[..., 1] = 1  # a mirrored one has its 1 on the left
    seen = []
    for epoch in (1, 2, 3):
        left = torch.empty(10_000)
        for batch in chosen.split(700):
            left[batch] = augmentation(images[: len(batch)], indices=batch, epoch=epoch)[:, 0, 0, 0]
        seen.append(left)
    first, second, third = seen
    assert (first + second).equal(torch.ones(10_000))
    assert third.equal(first)
    assert abs(first.mean().item() - 0.5) < 4 * 0.5 / 100  # four standard deviations of fair coins
    alike = (first[1:] == first[:-1]).double().mean().item()  # neighbours know nothing of each other
    assert abs(alike - 0.5) < 4 * 0.5 / 100


def test_an_alternating_flip_has_no_other_p() -> None:
    with pytest.raises(ValueError, match=r"p must be 0\.5, got 0\.2"):
        RandomHorizontalFlip(0.2, alternate=True)


def test_cutout_blanks_a_square_with_the_images_own_mean_and_nothing_else() -> None:
    images = photographs(200, 3, 20, 20)
    torch.manual_seed(0)
    cut = Cutout(6)(images)
    means = images.mean((2, 3), keepdim=True).expand_as(images)
    hole = cut != images
    assert cut[hole].equal(means[hole])
    area = hole.all(1).sum((1, 2))
    assert area.max() == 36
    assert area.min() >= 9  # a corner: a quarter of the square


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ColorJitter(brightness=0.5), tv.adjust_brightness),
        (ColorJitter(contrast=0.5), tv.adjust_contrast),
        (ColorJitter(saturation=0.5), tv.adjust_saturation),
    ],
)
def test_color_jitter_is_torchvisions_with_a_factor_an_image(
    ours: Augmentation, theirs: Callable[[Tensor, float], Tensor]
) -> None:
    images = photographs()
    torch.manual_seed(2)
    changed = ours(images)
    torch.manual_seed(2)
    factors = 0.5 + torch.rand(len(images), 1, 1, 1).flatten()
    for image, result, factor in zip(images, changed, factors.tolist(), strict=True):
        torch.testing.assert_close(result, theirs(image, factor), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomAffine(10, [0.1]), "translate must be two fractions"),
        (lambda: RandomAffine(10, scale=[1.2, 0.8]), r"scale must be \[smallest, largest\]"),
        (lambda: ColorJitter(hue=0.7), r"hue must be in \[0, 0.5\], got 0.7"),
    ],
)
def test_impossible_arguments_are_refused_with_the_rule(make: Callable[[], Augmentation], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
