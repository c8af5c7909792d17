"""Augmentations with random numbers of each image's own, against torchvision's on the same draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from softmaxce.config.reader import from_dict
from softmaxce.data.keyed_augment import AugMix, AutoAugment, RandomErasing, RandomResizedCrop
from softmaxce.errors import ConfigError
from softmaxce.runtime.random_state import own_random_numbers

CPU = torch.device("cpu")


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("size", [(100, 400), (400, 100), (33, 31), (3, 5)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": (0.5, 1.0), "ratio": (1.0, 1.0), "interpolation": "bicubic"},
        {"scale": (0.9, 1.0), "ratio": (0.9, 1.1), "interpolation": "nearest"},  # fits no oblong image: the center
    ],
)
def test_a_resized_crop_is_torchvisions_on_the_same_draws(size: tuple[int, int], arguments: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    named = {**arguments, "interpolation": InterpolationMode(arguments.get("interpolation", "bilinear"))}
    theirs, ours = v2.RandomResizedCrop((20, 24), **named), RandomResizedCrop(**arguments)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels[:, :, 0])):
        for key in range(25):
            torch.manual_seed(key)
            expected = np.asarray(theirs(image))
            assert np.array_equal(ours.from_whole(image, (20, 24), torch.Generator().manual_seed(key)), expected)


@pytest.mark.parametrize("arguments", [{}, {"p": 1.0, "scale": (0.5, 1.0), "ratio": (0.1, 10.0)}])
def test_erasing_is_torchvisions_on_the_same_draws(arguments: dict[str, Any]) -> None:
    batch, keys = images(40, 15, 18), list(range(40))
    erased = RandomErasing(**arguments, fill="black")(batch, keys)
    for image, key, result in zip(batch, keys, erased, strict=True):
        torch.manual_seed(key)
        assert result.equal(v2.RandomErasing(**arguments, value=0)(image))
    for fill in ("mean", "noise"):
        filled = RandomErasing(**arguments, fill=fill)(batch, keys)
        outside = (erased != 0) & (batch != 0)
        assert filled[outside].equal(batch[outside])
        assert (filled[erased == 0] > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AutoAugment(), v2.AutoAugment()),
        (AutoAugment("svhn"), v2.AutoAugment(AutoAugmentPolicy.SVHN)),
        (AugMix(), v2.AugMix()),
        (AugMix(8, 2, 3, 0.5, False), v2.AugMix(8, 2, 3, 0.5, False)),
    ],
    ids=["imagenet", "svhn", "augmix", "augmix strong"],
)
def test_torchvisions_policies_are_drawn_for_each_image_and_leave_the_generators_alone(
    ours: Callable[..., Tensor], theirs: Callable[[Tensor], Tensor]
) -> None:
    batch, keys = images(12, 16, 17), [7 * i for i in range(12)]
    before = torch.get_rng_state()
    results = ours(batch, keys)
    assert torch.get_rng_state().equal(before)
    for image, key, result in zip(batch, keys, results, strict=True):
        with own_random_numbers((key,), CPU):
            expected = theirs((image * 255).round().to(torch.uint8))
        assert (result * 255).round().to(torch.uint8).equal(expected)
    assert ours(batch[3:5], keys[3:5]).equal(results[3:5])


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"name": "random_resized_crop", "scale": [0.5, 0.1]}, "scale must be [smallest, largest], above 0"),
        ({"name": "random_resized_crop", "scale": [0, 1]}, "scale must be [smallest, largest], above 0"),
        ({"name": "random_erasing", "ratio": [3, 0.3]}, "ratio must be [smallest, largest]"),
        ({"name": "aug_mix", "severity": 11}, "severity must be a whole number in [1, 10]"),
        ({"name": "auto_augment", "policy": "mnist"}, "policy must be one of imagenet, cifar10, svhn"),
        ("random_resized_crop", "random_resized_crop cuts from whole images, so it must be the first"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_read(augmentation: Any, message: str) -> None:
    data = {"name": "digits", "augment": ["random_crop", augmentation]}
    with pytest.raises(ConfigError) as caught:
        from_dict({"epochs": 1, "data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}})
    assert any(message in problem.message for problem in caught.value.problems), caught.value
