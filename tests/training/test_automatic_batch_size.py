"""`data.batch_size: auto`: chosen once, recorded as a number, the bits of a run with that number."""

import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.config.keys import Config
from softmaxce.errors import MemoryRanOutError, within_memory
from softmaxce.runs.plan import resume_run
from softmaxce.runtime.allocator import return_large_buffers
from softmaxce.runtime.random_state import random_state
from softmaxce.training.automatic_batch_size import largest_batch_size, try_batch_sizes, useful_batch_size
from softmaxce.training.loop import fit
from softmaxce.training.memory import fits

from ..helpers import Softmaxce, config

MiB = 1 << 20
IMAGE = 16 * MiB  # that a model asks for, for each image of a step


class Hungry(nn.Module):
    """A model that takes IMAGE bytes of address space for each image while it trains. None of them is touched."""

    def __init__(self, *, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels * image_size[0] * image_size[1], num_classes)
        self.held: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.held = None
        if self.training and len(images) > 2:
            self.held = torch.empty(len(images) * IMAGE, dtype=torch.uint8)
        logits: Tensor = self.layer(images.flatten(1))
        return logits


def hungry(**changes: Any) -> Config:
    return config(model=f"{__name__}:Hungry", data__batch_size="auto", data__train=96, **changes)


@pytest.fixture
def four_gib() -> Iterator[None]:
    """4 GiB of address space more than this process has now, so that 255 images fit. None is kept when it is freed."""
    return_large_buffers()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4096 * MiB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("images", "accumulated", "size"),
    [(50_000, 1, 512), (10_000, 1, 312), (10_000, 4, 72), (1_000, 1, 24), (300, 1, 8), (20, 1, 8), (5, 1, 5)],
)
def test_a_step_has_512_images_and_a_32nd_of_all_at_most(images: int, accumulated: int, size: int) -> None:
    assert useful_batch_size(images, accumulated) == size


@pytest.mark.parametrize("most", [64, 512])
def test_the_largest_batch_is_found_under_a_real_limit_with_a_tenth_to_spare(most: int, four_gib: None) -> None:
    run = build_run(hungry() if most == 64 else replace(hungry(), grad_accum_steps=2))
    size = largest_batch_size(run, most)
    del run  # whose model holds the memory of the last step that fitted

    def take(images: int) -> None:
        with within_memory("allocating"):
            torch.empty(images * IMAGE, dtype=torch.uint8)

    assert size % 8 == 0
    assert fits(-(-size * 10 // 9), take)
    assert size == 64 if most == 64 else not fits((size + 16) * 10 // 9, take)
    assert size < 256


def test_where_not_one_image_fits_it_is_one_line(four_gib: None) -> None:
    run = build_run(hungry(data__size=40))
    with pytest.raises(MemoryRanOutError, match=r"^data.batch_size: auto: not even one image fits; use a smaller"):
        largest_batch_size(run, 64, spare=1 << 40)


def test_trial_steps_leave_random_numbers_and_the_config_as_they_were(four_gib: None) -> None:
    settings = hungry(mixup_alpha=0.4)
    torch.manual_seed(7)
    before = str(random_state())
    assert try_batch_sizes(settings, 40, lambda trial: build_run(replace(trial, seed=3))) == 40
    assert str(random_state()) == before
    assert settings.data.batch_size == "auto"


def test_a_run_has_the_bits_of_one_with_the_number_written_by_hand() -> None:
    automatic = build_run(config(data__batch_size="auto"))
    list(fit(automatic))
    by_hand = build_run(config(data__batch_size=8))
    list(fit(by_hand))
    assert automatic.config.to_dict() == by_hand.config.to_dict()
    assert automatic.config.resolved == {"data.batch_size": "8, as there are 72 training images"}
    pairs = zip(automatic.model.state_dict().values(), by_hand.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_number_once_chosen_is_that_of_resumed_runs_and_of_all_seeds(softmaxce: Softmaxce, tmp_path: Path) -> None:
    """Runs whose number was chosen where there is a GPU are resumed here, where it would be another one."""
    text = {**config(data__batch_size=16).to_dict(), "epochs": 1}
    outcome = session.train(build_run(config(data__batch_size=16, epochs=1)), tmp_path / "seeds" / "seed-0")
    record = json.loads((outcome.folder / "run.json").read_text())
    (outcome.folder / "run.json").write_text(json.dumps(record | {"resolved": {"data.batch_size": "16, of a GPU"}}))
    text["data"]["batch_size"] = "auto"
    (tmp_path / "c.json").write_text(json.dumps(text))
    done = softmaxce("train", "c.json", "--seeds", "2", "--resume", "auto", "--output", "seeds")
    assert done.returncode == 0, done.stderr
    assert "already finished" in done.stderr
    for folder in (tmp_path / "seeds").iterdir():
        assert "batch_size: 16" in (folder / "config.yaml").read_text(), done.stderr
    record = json.loads((tmp_path / "seeds" / "seed-1" / "run.json").read_text())
    assert record["resolved"] == {"data.batch_size": "16, as in the runs that exist"}
    longer = config(data__batch_size="auto", epochs=3)
    assert resume_run(outcome.folder, longer).config.data.batch_size == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_largest_batch_that_fits_trains_with_the_bits_of_the_number_by_hand() -> None:
    changes: dict[str, Any] = {"device": "cuda", "data__train": 20_000, "model": {"name": "cnn", "channels": [64]}}
    torch.cuda.set_per_process_memory_fraction(192 * MiB / torch.cuda.get_device_properties(0).total_memory)
    try:
        run = build_run(config(data__batch_size="auto", **changes))
        size = run.config.data.batch_size
        assert isinstance(size, int)
        assert size < useful_batch_size(15_000)
        other = build_run(config(data__batch_size=size, cuda_graph=False, **changes))
        pairs = zip(run.model.state_dict().values(), other.model.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        list(fit(run))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
