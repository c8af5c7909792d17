"""Progressive resizing: Composer's sizes, torchvision's pixels; resumed to the same bits; a fixed size is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from softmaxce.build import build_run
from softmaxce.config.keys import Config
from softmaxce.data.progressive_resizing import resized, size_in_epoch, sizes_by_epoch
from softmaxce.errors import ConfigError
from softmaxce.runs.checkpoint import load, restore, save
from softmaxce.runs.folder import LAST
from softmaxce.training.loop import CheckpointEvent, NeverCheckpoint, fit, fit_with_checkpoints
from softmaxce.training.range_test import at_rate, range_test
from softmaxce.training.run import Epoch, Run
from softmaxce.training.step import make_static_step

from ..helpers import Softmaxce, config

CNN = {"name": "cnn", "channels": [4, 8]}  # which ends with a global maximum
GROWING: dict[str, Any] = {"model": CNN, "progressive_resizing": {"size_increment": 1}, "epochs": 4}


def composers_width(width: int, elapsed: float, scale: float, finetune: float, delay: float, increment: int) -> int:
    """The width after a fraction of the training, as Composer's ProgressiveResizing.apply computes it."""
    grown = min((elapsed - delay) / (1 - finetune - delay), 1) if elapsed >= delay else 0.0
    return round(width * (scale + (1 - scale) * grown) / increment) * increment


@pytest.mark.parametrize(
    ("scale", "finetune", "delay", "increment"), [(0.5, 0.2, 0.5, 4), (0.25, 0.5, 0.0, 32), (0.7, 0.0, 0.3, 1)]
)
@pytest.mark.parametrize("epochs", [5, 90])
def test_the_width_of_each_epoch_but_the_last_is_composers_at_its_start(
    scale: float, finetune: float, delay: float, increment: int, epochs: int
) -> None:
    keys = {"initial_scale": scale, "finetune_fraction": finetune, "delay_fraction": delay, "size_increment": increment}
    settings = config(model=CNN, progressive_resizing=keys, epochs=epochs)
    shape = (3, 96, 224)
    sizes = [size_in_epoch(settings, shape, epoch) for epoch in range(1, epochs + 1)]
    expected = [composers_width(224, e / epochs, scale, finetune, delay, increment) for e in range(epochs - 1)]
    assert [width for _, width in sizes] == [*expected, 224]
    spans = sizes_by_epoch(settings, shape)
    assert [span.size for span in spans for _ in range(span.first, span.last + 1)] == sizes


def test_ten_epochs_at_96_pixels_by_hand_and_a_million_epochs_in_no_time() -> None:
    settings = config(model=CNN, progressive_resizing={"initial_scale": 0.5}, epochs=10)
    assert [str(span) for span in sizes_by_epoch(settings, (3, 96, 96))] == [
        "48x48 in epochs 1 to 6", "64x64 in epoch 7", "80x80 in epoch 8", "96x96 in epochs 9 to 10",
    ]  # fmt: skip
    many = config(model=CNN, progressive_resizing={"initial_scale": 0.5}, epochs=10**15)
    assert len(sizes_by_epoch(many, (3, 96, 96))) == 1 + 48 // 4


@pytest.mark.parametrize("size", [(48, 48), (31, 50)])
def test_a_batch_is_resized_as_torchvision_resizes_it(size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, 64, 80).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(resized(images, size), v2.resize(images, list(size), antialias=True), rtol=0, atol=1e-6)
    assert resized(images, None) is images


def sides(run: Run, mode: bool) -> list[int]:
    """Filled while the run is trained: the side of the images of every forward pass in training or evaluation mode."""
    seen: list[int] = []
    run.model.register_forward_pre_hook(
        lambda m, inputs: seen.append(inputs[0].shape[2]) if m.training is mode else None
    )
    return seen


def test_training_is_a_plain_loop_on_images_resized_by_torchvision_and_evaluation_is_at_full_size() -> None:
    run, twin = (build_run(config(mixup_alpha=0.4, schedule="constant", **GROWING)) for _ in range(2))
    trained, evaluated = sides(run, True), sides(run, False)
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.05, momentum=0.9, fused=True)
    torch.manual_seed(5)
    for epoch, side in ((1, 8), (2, 8), (3, 8), (4, 16)):
        for images, labels in twin.train.epoch(epoch):
            assert twin.mix is not None
            mixed, targets = twin.mix(images, labels)
            nn.functional.cross_entropy(twin.model(v2.resize(mixed, [side, side], antialias=True)), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.manual_seed(5)
    list(fit(run))
    for ours, reference in zip(run.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    assert trained == [8] * 9 + [16] * 3  # three batches an epoch
    assert set(evaluated) == {16}


class AfterTwo(NeverCheckpoint):
    """Requests a checkpoint after the second step."""

    steps = 0

    def should_checkpoint(self) -> bool:
        self.steps += 1
        return self.steps == 2


@pytest.mark.parametrize("static", [False, True])  # with a step in static buffers, which stand for a CUDA graph
def test_a_run_resumed_within_an_epoch_of_small_images_ends_with_the_same_bits(static: bool, tmp_path: Path) -> None:
    requested = config(mixup_alpha=0.4, **GROWING | {"epochs": 3})

    def build() -> Run:
        run = build_run(requested)
        run.static_step = make_static_step(run) if static else None
        return run

    whole = build()
    events = fit_with_checkpoints(whole, AfterTwo())
    assert isinstance(next(events), CheckpointEvent)
    save(whole, tmp_path, best=False)
    last = list(events)[-1]
    torch.rand(100)  # another process would have another random state
    second = build()
    restore(second, load(tmp_path / LAST))
    again = list(fit(second))[-1]
    assert isinstance(last, Epoch)
    assert (again.train, again.validation) == (last.train, last.validation)
    pairs = zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_range_test_takes_images_of_the_first_epochs_size() -> None:
    run = build_run(at_rate(config(**GROWING), 1e-4))
    seen = sides(run, True)
    range_test(run, 1e-4, 1e-2, 10)
    assert set(seen) == {8}


class Unpooled(nn.Module):
    """A model whose last feature map is its logits: 2x1 places of 5 channels at 16x16 pixels, one at 8x8."""

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes // 2, 8, stride=(8, 16))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images).flatten(1)
        return logits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "mlp"},
            r"^progressive_resizing: mlp does not take images of 8x8 in epochs 1 to 3 \(.*\); it needs ",
        ),
        ({"model": "lenet"}, r"^progressive_resizing: lenet does not take images of 8x8 in epochs 1 to 3"),
        ({"model": f"{__name__}:Unpooled"}, r"Unpooled does not take .* \(it gives \[2, 5\], not \[2, 10\]\)"),
        ({"progressive_resizing": {"delay_fraction": 0.9}}, "their sum must not be above 1"),
        ({"progressive_resizing": {"initial_scale": 1}}, "initial_scale must be a number in \\(0, 1\\), got 1"),
        ({"progressive_resizing": 96}, r"write it as \{initial_scale: 0.5\}, got 96"),
        ({"distillation": {"teacher": "runs/1"}}, "the teacher of distillation is for images of data.size"),
        ({"model": {"name": "torchvision:resnet18", "input_size": 64}}, "has no effect with model.input_size"),
    ],
)
def test_what_cannot_grow_is_refused_in_one_line_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build_run(config(**GROWING | changes))
    assert len(raised.value.problems) == 1


def test_the_dry_run_and_data_inspect_show_the_sizes(softmaxce: Softmaxce, tmp_path: Path) -> None:
    settings: Config = config(**GROWING)
    (tmp_path / "c.json").write_text(json.dumps(settings.to_dict()))
    line = "training images grow: 8x8 in epochs 1 to 3, 16x16 in epoch 4"
    assert line in softmaxce("train", "c.json", "--dry-run").stdout
    assert line in softmaxce("data", "inspect", "c.json").stdout
    sizes = [{"first": 1, "last": 3, "size": [8, 8]}, {"first": 4, "last": 4, "size": [16, 16]}]
    assert json.loads(softmaxce("data", "inspect", "c.json", "--json").stdout)["sizes"] == sizes
    assert json.loads(softmaxce("train", "c.json", "--dry-run", "--json").stdout)["sizes"] == sizes
