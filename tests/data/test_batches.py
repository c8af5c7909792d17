"""Batches: every image once an epoch, an order that the seed and the epoch decide, the right numbers in the pixels."""

import gc
import multiprocessing
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from softmaxce.data.augment import RandomCrop, RandomHorizontalFlip
from softmaxce.data.batches import Batches
from softmaxce.data.decode import Decode
from softmaxce.data.mixup import mixing
from softmaxce.data.preprocessing import Preprocessing, mean_and_std
from softmaxce.data.share import Share
from softmaxce.data.splits import InMemory, OnDisk
from softmaxce.data.views import stacked
from softmaxce.kernels import numba_runtime
from softmaxce.kernels.gather_normalize import BatchGatherer
from softmaxce.kernels.normalize import Normalizer
from softmaxce.runtime.processors import processors

CPU = torch.device("cpu")
IMAGES = torch.randint(256, (50, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
SPLIT = InMemory(IMAGES, torch.arange(50))  # the label tells which image it is
PLAIN = Preprocessing((3, 6, 5), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def on_disk(tmp_path: Path) -> OnDisk:
    """The same images as files without loss."""
    files = []
    for index, image in enumerate(IMAGES):
        files.append(str(tmp_path / f"{index:02}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    return OnDisk(tuple(files), SPLIT.labels, (3, 6, 5), Decode(3, None), workers=1)


def labels_of(batches: Batches, epoch: int) -> Tensor:
    return torch.cat([labels for _, labels in batches.epoch(epoch)])


def test_an_epoch_holds_every_image_once_with_its_own_label() -> None:
    batches = Batches(SPLIT, PLAIN, batch_size=16, device=CPU, shuffle_seed=0)
    seen = []
    for images, labels in batches.epoch(1):
        torch.testing.assert_close(images, IMAGES[labels].float() / 255)
        seen.append(labels)
    assert len(seen) == len(batches) == 4
    assert torch.cat(seen).sort().values.equal(torch.arange(50))


def test_bytes_normalised_at_once_are_what_two_steps_make_of_them_to_a_millionth() -> None:
    preprocessing = Preprocessing((3, 6, 5), (0.49, 0.2, 0.0), (0.25, 0.1, 1.0))
    split = InMemory(torch.arange(256, dtype=torch.uint8).repeat(90)[: 50 * 90].view(50, 3, 6, 5), torch.arange(50))
    at_once = Batches(split, preprocessing, batch_size=16, device=CPU)
    stepwise = Batches(split, preprocessing, batch_size=16, device=CPU, augment=[lambda images: images])
    for (images, _), (reference, _) in zip(at_once.epoch(1), stepwise.epoch(1), strict=True):
        torch.testing.assert_close(images, reference, rtol=1e-6, atol=1e-6)
        assert images.stride() == reference.stride()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 3), (1, 1, 1)])
def test_one_pass_over_the_bytes_has_the_bits_of_pytorchs_operations(shape: tuple[int, int, int], threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (900, *shape), dtype=torch.uint8, generator=generator)
    mean, scale = torch.rand(2, 1, shape[0], 1, 1, generator=generator)
    chosen = torch.randint(900, (333,), generator=generator)
    gatherer = BatchGatherer(images, mean * 255, scale)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for taken, bytes_ in (
            (gatherer.normalized(chosen), images[chosen]),
            (gatherer.normalized(slice(40, 500)), images[40:500]),
            (gatherer.normalized(slice(800, 1000)), images[800:]),
        ):
            assert taken.equal(torch.sub(bytes_, mean * 255).mul_(scale))
            assert taken.is_contiguous(memory_format=torch.channels_last)
    finally:
        torch.set_num_threads(before)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    st.lists(st.floats(2**-20, 4, width=32), min_size=3, max_size=3),
)
def test_normalizing_every_byte_in_one_pass_has_the_bits_of_pytorchs_operations(
    mean: list[float], std: list[float]
) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    means, stds = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    for laid_out in (images, images.contiguous(memory_format=torch.channels_last), images.transpose(2, 3)):
        made = Normalizer(means, stds, (3, 16, 16), fractions=True)(laid_out)
        assert made.equal(laid_out.float().div_(255).sub_(means).div_(stds))
        assert made.is_contiguous(memory_format=torch.channels_last)
        made = Normalizer(means, stds, (3, 16, 16), fractions=False)(laid_out)
        assert made.equal(torch.sub(laid_out, means).mul_(stds))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 65, 33), (4, 65, 33), (2, 5, 3), (1, 1, 1)])
def test_normalizing_in_threads_misses_no_pixel_of_any_shape(shape: tuple[int, int, int], threads: int) -> None:
    images = torch.randint(256, (70, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mirrored = torch.rand(70, generator=torch.Generator().manual_seed(2)) < 0.5
    mean, std = torch.rand(2, 1, shape[0], 1, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        normalizer = Normalizer(mean, std, shape, fractions=True)
        for count in (70, 1, 0):
            expected = images[:count].float().div_(255).sub_(mean).div_(std)
            assert normalizer(images[:count]).equal(expected)
            expected = torch.where(mirrored[:count].view(-1, 1, 1, 1), expected.flip(3), expected)
            assert normalizer(images[:count], mirrored[:count]).equal(expected)
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="are normalized as"):
        normalizer(images.view(70, shape[0], shape[2], shape[1], 1))


def test_a_batchs_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    mean, std = torch.zeros(3), torch.ones(3)
    normalizer = Normalizer(mean, std, (3, 6, 5), fractions=True)
    first = normalizer(IMAGES[:8])
    address = first.data_ptr()
    view = first[3].permute(1, 2, 0)
    del first
    second = normalizer(IMAGES[8:16])
    assert second.data_ptr() != address  # of which there is a view
    assert view.permute(2, 0, 1).equal(IMAGES[3].float() / 255)
    del view
    weight = torch.ones((), requires_grad=True)
    third = normalizer(IMAGES[16:24])
    assert third.data_ptr() == address
    product = weight * third  # autograd refers to it
    del third
    normalizer(IMAGES[24:32])
    product.sum().backward()
    torch.testing.assert_close(weight.grad, (IMAGES[16:24].float() / 255).sum())
    assert second.equal(IMAGES[8:16].float() / 255)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
def test_the_memory_of_an_evaluations_batches_is_returned_at_its_end(tmp_path: Path) -> None:
    file = str(tmp_path / "image.png")
    Image.new("RGB", (256, 256)).save(file)
    split = OnDisk((file,) * 96, torch.zeros(96, dtype=torch.int64), (3, 256, 256), Decode(3, None), workers=0)
    plain = Preprocessing((3, 256, 256), (0.0,) * 3, (1.0,) * 3)
    batches = Batches(split, plain, batch_size=48, device=CPU, compiled=True)
    assert batches.normalizer is not None
    batches.normalizer(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))  # compiles

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for images, _ in batches.epoch(1):
        size = images.nbytes
    del images
    assert resident() - before < size / 2


@pytest.mark.parametrize("compiled", [False, True])
def test_augmentations_that_move_pixels_give_the_bits_of_floats_though_they_are_called_with_bytes(
    compiled: bool,
) -> None:
    seen = []

    class Watched(RandomCrop):
        moves_pixels = RandomCrop.moves_pixels

        def __call__(self, images: Tensor, *arguments: Any) -> Tensor:
            seen.append(images.dtype)
            return super().__call__(images, *arguments)

    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    for padding_mode, dtype in (("constant", torch.uint8), ("reflect", torch.float32)):
        augment = [Watched(2, padding_mode), RandomHorizontalFlip()]
        batches = Batches(
            SPLIT, Preprocessing((3, 6, 5), mean, std), batch_size=16, device=CPU, augment=augment, compiled=compiled
        )
        torch.manual_seed(4)
        made = torch.cat([images for images, _ in batches.epoch(1)])
        torch.manual_seed(4)
        parts = []
        for images in (IMAGES.float() / 255).split(16):
            for each in (RandomCrop(2, padding_mode), RandomHorizontalFlip()):
                images = each(images)
            parts.append((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        torch.testing.assert_close(made, torch.cat(parts), rtol=0, atol=0)
        assert set(seen) == {dtype}
        seen.clear()


def test_processes_that_share_a_batch_mirror_the_images_that_one_process_mirrors() -> None:
    augment = [RandomHorizontalFlip()]
    batches = Batches(SPLIT, PLAIN, batch_size=16, device=CPU, augment=augment, shuffle_seed=0, compiled=True)
    assert batches.normalizer is not None
    indices = torch.arange(16)
    torch.manual_seed(4)
    whole = batches.prepared(IMAGES[:16], indices, 1)
    for positions in (torch.arange(10), torch.arange(10, 16)):
        torch.manual_seed(4)
        part = batches.prepared(IMAGES[positions], indices[positions], 1, Share(16, positions, (0, 1, 2)))
        assert part.equal(whole[positions])


def test_a_subclass_of_flips_decides_which_images_are_mirrored_and_how() -> None:
    class TurnedOver(RandomHorizontalFlip):
        moves_pixels = RandomHorizontalFlip.moves_pixels

        def __call__(self, images: Tensor, *arguments: Any) -> Tensor:
            return images.flip(2)

    batches = Batches(SPLIT, PLAIN, batch_size=50, device=CPU, augment=[TurnedOver()], compiled=True)
    ((images, _),) = batches.epoch(1)
    assert images.equal(IMAGES.float().div(255).flip(2))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_subclass_that_computes_with_pixels_is_called_with_floats(compiled: bool) -> None:
    class Darker(RandomHorizontalFlip):
        def __call__(self, images: Tensor, *arguments: Any) -> Tensor:
            return images.clamp(0, 0.5)

    batches = Batches(SPLIT, PLAIN, batch_size=50, device=CPU, augment=[Darker()], compiled=compiled)
    ((images, _),) = batches.epoch(1)
    torch.testing.assert_close(images, (IMAGES.float() / 255).clamp(0, 0.5), rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [8, 64])  # small images and large ones take ways of their own
def test_images_from_files_have_the_bits_of_those_in_memory(size: int, compiled: bool, tmp_path: Path) -> None:
    images = torch.randint(256, (20, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index:02}.png")
    files = tuple(str(tmp_path / f"{index:02}.png") for index in range(20))
    disk = OnDisk(files, torch.arange(20), (3, size, size), Decode(3, None), workers=1)
    preprocessing = Preprocessing((3, size, size), (0.49, 0.48, 0.44), (0.24, 0.25, 0.26))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    for augment in ([], [RandomHorizontalFlip()], [lambda images: images.view(len(images), -1).view_as(images)]):
        made = []
        for split in (InMemory(images, torch.arange(20)), disk):
            batches = Batches(
                split,
                preprocessing,
                batch_size=8,
                device=CPU,
                augment=augment,
                shuffle_seed=0,
                compiled=compiled and split is disk,
            )
            assert batches.try_augmentations() == []
            torch.manual_seed(0)
            made.append([torch.cat(parts) for parts in zip(*batches.epoch(1), strict=True)])
        torch.testing.assert_close(*made, rtol=0, atol=0)
        pixels, labels = made[0]
        for image, label in zip(pixels * std + mean, labels.tolist(), strict=True):
            original = images[label].float() / 255
            distance = min((image - each).abs().max().item() for each in (original, original.flip(2)))
            assert distance < 1e-6


def test_stacked_images_are_channels_last_if_all_are_so_in_memory_and_any_other_tensors_are_stacked_as_torch_does() -> (
    None
):
    last = torch.arange(24).view(2, 4, 3).permute(2, 0, 1)
    for images in ([last, last + 1], [last, last.contiguous()], [torch.ones(4, 3)] * 2, [torch.ones(())] * 2):
        batch = stacked(images)
        assert batch.equal(torch.stack(images))
        if images[1] is not images[0] and images[1].stride() == images[0].stride():
            assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["in memory", "on disk"])
def test_an_alternating_flip_knows_which_images_a_batch_holds(kind: str, compiled: bool, on_disk: OnDisk) -> None:
    split = SPLIT if kind == "in memory" else on_disk
    flip = RandomHorizontalFlip(alternate=True)
    batches = Batches(split, PLAIN, batch_size=16, device=CPU, augment=[flip], shuffle_seed=0, compiled=compiled)
    seen = torch.empty(2, *IMAGES.shape)
    for epoch in (1, 2):
        for images, labels in batches.epoch(epoch):
            seen[epoch - 1, labels] = images
    original = IMAGES.float() / 255
    mirrored = [(found == original.flip(3)).flatten(1).all(1) for found in seen]
    kept = [(found == original).flatten(1).all(1) for found in seen]
    assert mirrored[0].equal(kept[1])
    assert mirrored[1].equal(kept[0])
    assert 0 < mirrored[0].sum() < 50


@pytest.mark.parametrize("kind", ["in memory", "on disk"])
def test_a_users_augmentation_is_given_what_it_names_by_name(kind: str, on_disk: OnDisk) -> None:
    class Recording(torch.nn.Module):
        def forward(self, images: Tensor, strength: float = 1.0, *, epoch: int, indices: Tensor) -> Tensor:
            calls.append((strength, epoch, indices))
            return images

    def images_alone(images: Tensor, strength: float = 1.0, shift: int = 0) -> Tensor:
        assert (strength, shift) == (1.0, 0)
        return images

    calls: list[tuple[float, int, Tensor]] = []
    split = SPLIT if kind == "in memory" else on_disk
    augment = [Recording(), images_alone, torch.relu]
    batches = Batches(split, PLAIN, batch_size=16, device=CPU, augment=augment, shuffle_seed=0)
    labels = labels_of(batches, 7)
    assert torch.cat([indices for _, _, indices in calls]).equal(labels)  # the label tells which image it is
    assert {call[:2] for call in calls} == {(1.0, 7)}


@pytest.mark.parametrize("compiled", [False, True])
def test_what_makes_batches_does_not_depend_on_what_was_imported_before(compiled: bool) -> None:
    code = (
        "import sys, torch\n"
        f"{'' if compiled else 'import numba'}\n"
        "from softmaxce.data.batches import Batches\n"
        "from softmaxce.data.preprocessing import Preprocessing\n"
        "from softmaxce.data.splits import InMemory\n"
        "split = InMemory(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))\n"
        "preprocessing = Preprocessing((1, 2, 2), (0.5,), (1.0,))\n"
        f"batches = Batches(split, preprocessing, batch_size=2, device=torch.device('cpu'), compiled={compiled})\n"
        "print(batches.gatherer is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(compiled)


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("shuffle_seed", [None, 0])
def test_batches_made_in_one_pass_are_those_made_in_two(shuffle_seed: int | None, start: int) -> None:
    batches = Batches(SPLIT, PLAIN, batch_size=8, device=CPU, shuffle_seed=shuffle_seed, compiled=True)
    assert batches.gatherer is not None
    in_one_pass = list(batches.epoch(1, start))
    batches.gatherer = None
    in_two = list(batches.epoch(1, start))
    assert len(in_one_pass) == len(in_two) == 7 - start
    for first, second in zip(in_one_pass, in_two, strict=True):
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_a_batch_that_several_threads_make_in_parts_is_the_one_made_in_two_passes() -> None:
    images = torch.randint(256, (700, 3, 6, 5), dtype=torch.uint8)
    split = InMemory(images, torch.arange(700))
    batches = Batches(split, PLAIN, batch_size=600, device=CPU, shuffle_seed=0, compiled=True)
    assert batches.gatherer is not None
    first_batch = next(iter(batches.epoch(1)))
    assert numba_runtime.num_chunks(first_batch[0].numel(), 600) > 1
    assert first_batch[0].shape == (600, 3, 6, 5)
    in_parts = list(batches.epoch(1))
    batches.gatherer = None
    for first, second in zip(in_parts, batches.epoch(1), strict=True):
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, same, other = (Batches(SPLIT, PLAIN, batch_size=16, device=CPU, shuffle_seed=seed) for seed in (0, 0, 1))
    second = labels_of(first, 2)
    torch.rand(7)  # whatever else was drawn
    assert labels_of(same, 2).equal(second)
    assert not labels_of(first, 1).equal(second)
    assert not labels_of(other, 2).equal(second)


def test_evaluation_keeps_the_order() -> None:
    assert labels_of(Batches(SPLIT, PLAIN, batch_size=16, device=CPU), 1).equal(torch.arange(50))


def test_a_last_batch_of_one_image_is_dropped_in_training_and_used_in_evaluation() -> None:
    training = Batches(SPLIT, PLAIN, batch_size=7, device=CPU, shuffle_seed=0)
    assert len(labels_of(training, 1)) == 49
    assert len(training) == 7
    assert len(labels_of(Batches(SPLIT, PLAIN, batch_size=7, device=CPU), 1)) == 50


def test_normalised_training_images_have_mean_0_and_deviation_1_a_channel() -> None:
    mean, std = mean_and_std(SPLIT)
    preprocessing = Preprocessing((3, 6, 5), mean, std)
    (images, _) = next(Batches(SPLIT, preprocessing, batch_size=50, device=CPU).epoch(1))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3))


def test_mean_and_deviation_are_numpys() -> None:
    mean, std = mean_and_std(SPLIT)
    pixels = IMAGES.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)))


def test_of_images_on_disk_a_few_are_in_memory_while_mean_and_deviation_are_measured(on_disk: OnDisk) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def decode(file: str) -> Tensor:
        nonlocal most
        image = on_disk.decode(file)
        alive.add(image)
        most = max(most, len(alive))
        return image

    many = OnDisk([*on_disk.files] * 20, on_disk.labels.repeat(20), on_disk.shape, decode)
    np.testing.assert_allclose(mean_and_std(many), mean_and_std(SPLIT))
    assert most <= 20 < len(many)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    black = InMemory(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    assert mean_and_std(black) == ((0.0,), (1.0,))


def test_images_on_disk_make_the_same_batches_as_in_memory(on_disk: OnDisk) -> None:
    np.testing.assert_allclose(mean_and_std(on_disk), mean_and_std(SPLIT))
    pair = [Batches(split, PLAIN, batch_size=16, device=CPU, shuffle_seed=5) for split in (SPLIT, on_disk)]
    state = torch.get_rng_state()
    for (images, labels), (other_images, other_labels) in zip(pair[0].epoch(3), pair[1].epoch(3), strict=True):
        assert images.equal(other_images)
        assert labels.equal(other_labels)
    assert torch.get_rng_state().equal(state)  # worker processes draw no number that training would


def test_more_worker_processes_than_processors_can_feed_are_not_started(
    on_disk: OnDisk, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    batches = Batches(replace(on_disk, workers=10**9), PLAIN, batch_size=16, device=CPU)  # from someone else's config
    before = set(multiprocessing.active_children())
    epoch = batches.epoch(1)
    next(epoch)
    started = set(multiprocessing.active_children()) - before
    assert 0 < len(started) <= max(16, 4 * processors())
    assert f"{len(started)} are used" in capsys.readouterr().err
    assert not list(recwarn)
    assert len(torch.cat([labels for _, labels in epoch])) == 50 - 16


def test_normalisation_comes_after_augmentation() -> None:
    seen = []

    def look(images: Tensor) -> Tensor:
        seen.append((images.min().item(), images.max().item()))
        return images

    preprocessing = Preprocessing((3, 6, 5), (0.5,) * 3, (0.25,) * 3)
    (images, _) = next(Batches(SPLIT, preprocessing, batch_size=50, device=CPU, augment=[look]).epoch(1))
    low, high = seen[0]
    assert 0 <= low < high <= 1
    torch.testing.assert_close(images, (IMAGES.float() / 255 - 0.5) / 0.25)


# -- mixup and CutMix -------------------------------------------------------------------------------------------------


def test_mixup_blends_images_and_labels_by_the_same_ratio() -> None:
    mix = mixing(1.0, 0.0, 50)
    assert mix is not None
    torch.manual_seed(0)
    images, targets = mix(IMAGES.float(), SPLIT.labels)
    torch.testing.assert_close(targets.sum(1), torch.ones(50))
    torch.testing.assert_close(images, torch.einsum("bk,kchw->bchw", targets, IMAGES.float()), rtol=1e-4, atol=1e-3)


def test_mixing_is_torchvisions() -> None:
    for ours, theirs in (
        (mixing(0.3, 0.0, 50), v2.MixUp(alpha=0.3, num_classes=50)),
        (mixing(0.0, 0.7, 50), v2.CutMix(alpha=0.7, num_classes=50)),
    ):
        assert ours is not None
        results = []
        for mix in (ours, theirs):
            torch.manual_seed(1)
            results.append(mix(IMAGES.float(), SPLIT.labels))
        torch.testing.assert_close(results[0], results[1])


def test_with_both_on_each_batch_gets_one_of_them() -> None:
    mix = mixing(1.0, 1.0, 50)
    assert mix is not None
    torch.manual_seed(0)
    pixels_stay = [bool(torch.isin(mix(IMAGES.float(), SPLIT.labels)[0], IMAGES.float()).all()) for _ in range(200)]
    cutmix = torch.tensor([float(is_cut) for is_cut in pixels_stay]).mean()
    assert 0.3 < cutmix < 0.7


def test_without_mixing_there_is_nothing() -> None:
    assert mixing(0.0, 0.0, 10) is None


def process_of(file: str) -> Tensor:
    """A decode of the user's own, which tells the process that it runs in."""
    return torch.tensor(list(os.getpid().to_bytes(4, "big")), dtype=torch.uint8).view(1, 2, 2)


def test_processes_that_decode_training_images_outlive_an_epoch_and_none_outlives_one_that_is_left() -> None:
    split = OnDisk(tuple("abcdefgh"), torch.arange(8), (1, 2, 2), process_of, workers=2)
    plain = Preprocessing((1, 2, 2), (0.0,), (1.0,))

    def processes(batches: Batches, epoch: int) -> set[int]:
        seen = torch.cat([images for images, _ in batches.epoch(epoch)]).mul(255).round().to(torch.int64)
        return {int.from_bytes(bytes(image.flatten().tolist()), "big") for image in seen.cpu()}

    batches = Batches(split, plain, batch_size=2, device=CPU, shuffle_seed=0)
    first = processes(batches, 1)
    assert len(first) == 2
    assert os.getpid() not in first
    assert processes(batches, 2) == first
    next(iter(batches.epoch(3)))  # left after its first batch, as after ctrl-C
    order = labels_of(batches, 3)
    assert torch.equal(order, labels_of(Batches(split, plain, batch_size=2, device=CPU, shuffle_seed=0), 3))
    assert len(processes(batches, 4) | first) == 4
    del batches
    gc.collect()
    assert not {child.pid for child in multiprocessing.active_children()} & first
