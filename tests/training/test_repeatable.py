"""Two runs of one config give the same bits: every recipe's first steps, and `deterministic: true`."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from softmaxce.build import build_run
from softmaxce.config import reader as configs
from softmaxce.config import recipes
from softmaxce.config.keys import Config
from softmaxce.config.reader import Override
from softmaxce.errors import ConfigError
from softmaxce.training.loop import CheckpointEvent, fit_with_checkpoints
from softmaxce.training.run import Run

from ..helpers import Softmaxce, config

STEPS = 20
SHAPES = {"digits": (1, 8), **dict.fromkeys(("mnist", "mnist_fast", "fashion_mnist"), (1, 28))}  # else (3, 32)


@pytest.fixture(autouse=True)
def restore_torch_settings() -> Iterator[None]:
    """Restore torch's global settings after each test."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


class EveryStep:
    """Requests a checkpoint after every step."""

    def should_checkpoint(self) -> bool:
        return True

    def should_abort_evaluation(self) -> bool:
        return False


def with_synthetic_images(recipe: str, **changes: object) -> Config:
    """A recipe's model, loss, optimizer, schedule and augmentations on images and weights that need no download."""
    recipe_config = configs.load(recipe)
    channels, size = SHAPES.get(recipe, (3, 32))
    data = {"name": "synthetic", "channels": channels, "size": size, "train": 8 * (STEPS + 2) + 20, "test": 16}
    data |= {"batch_size": 8, "validation": 20, "augment": recipe_config.to_dict()["data"]["augment"]}
    overrides = [Override((key,), value, f"--set {key}") for key, value in {"data": data, **changes}.items()]
    if recipe_config.model.arguments.get("weights") is not None:
        overrides.append(Override(("model", "weights"), None, "--set model.weights"))
    return configs.load(recipe, overrides)


def first_steps(run: Run, steps: int = STEPS) -> list[Any]:
    """The sums of losses after each of the first steps, and the weights after the last."""
    sums = []
    for event in islice(fit_with_checkpoints(run, EveryStep()), steps):
        assert isinstance(event, CheckpointEvent)
        sums.append(run.tally.loss.item())
    return [*sums, *(tensor.clone() for tensor in run.model.state_dict().values())]


def same_bits(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("recipe", sorted(recipes.recipes()))
def test_the_first_steps_of_a_recipe_are_bit_reproducible(recipe: str) -> None:
    requested = with_synthetic_images(recipe)
    steps = STEPS if recipe in SHAPES else 4  # the large networks take a second for each
    one = first_steps(build_run(requested), steps)
    torch.rand(7)
    assert len(set(one[:steps])) == steps  # it trained
    assert same_bits(one, first_steps(build_run(requested), steps))


def test_deterministic_changes_no_bit_on_the_cpu_and_does_not_affect_the_next_run() -> None:
    on = first_steps(build_run(config(data__train=8 * 70, data__batch_size=8, deterministic=True)))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    off = first_steps(build_run(config(data__train=8 * 70, data__batch_size=8)))
    assert not torch.are_deterministic_algorithms_enabled()
    assert same_bits(on, off)


UNPOOLING = """\
from torch import nn

class Unpooling(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.head = nn.Linear(256, num_classes)
    def forward(self, images):
        return self.head(self.unpool(*self.pool(images)).flatten(1))
"""


def test_an_operation_without_a_deterministic_implementation_is_refused_with_deterministic_true(tmp_path: Path) -> None:
    (tmp_path / "unpooling.py").write_text(UNPOOLING)
    model = f"{tmp_path / 'unpooling.py'}:Unpooling"
    build_run(config(model=model))
    with pytest.raises(ConfigError, match="does not have a deterministic implementation"):
        build_run(config(model=model, deterministic=True))


def test_other_trainers_name_for_deterministic_is_answered_with_the_key(softmaxce: Softmaxce, small: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--set", "cudnn_deterministic=true")
    assert done.returncode == 2
    assert "here it is deterministic" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", sorted(recipes.recipes()))
def test_deterministic_runs_are_bit_reproducible_on_a_gpu(recipe: str) -> None:
    requested = with_synthetic_images(recipe, device="cuda", deterministic=True)
    assert same_bits(first_steps(build_run(requested)), first_steps(build_run(requested)))
