"""The user's own augmentations: what they return is checked before training, and errors name them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softmaxce import build_run, fit, load_config
from softmaxce.errors import ConfigError, TrainingError

OWN = """
import numpy as np, random, torch

class Same:
    def __call__(self, images): return images
class Random:
    def __call__(self, images): return images + 0 * (torch.rand(3).sum() + np.random.rand() + random.random())
class InPlace:
    def __call__(self, images): return images.mul_(0.5)
class Forgotten:
    def __call__(self, images): images.mul_(0.5)
class Numpy:
    def __call__(self, images): return images.numpy()
class Nan:
    def __call__(self, images): return images / 0 * 0
class Double:
    def __call__(self, images): return images.double()
class Cropped:
    def __call__(self, images): return images[..., 1:]
class Raises:
    def __call__(self, images): return images @ torch.zeros(3)
class NotCallable: pass
class Bytes:
    def __call__(self, images): return images * 255
class LaterNan:
    def __init__(self): self.calls = 0
    def __call__(self, images):
        self.calls += 1
        return images * float("nan") if self.calls > 3 else images

def halved(images, factor: float = 0.5): return images * factor
SEEN = []
def indexed(images, indices=None, epoch=None):
    SEEN.append((indices, epoch))
    return images
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with own.py, and the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


CONFIG = """\
epochs: 1
data:
  name: digits
  train_limit: 96
  batch_size: 32
  augment:
    - {name: cutout, size: 2}
    - {name: "own.py:NAME"}
model: linear
optimizer: {name: sgd, lr: 0.05}
"""


def config(name: str, folder: Path) -> Path:
    """A config with the augmentation `own.py:name`."""
    file = folder / "own.yaml"
    file.write_text(CONFIG.replace("NAME", name))
    return file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Forgotten", "it returned nothing; is a return missing?"),
        ("Numpy", "it returned numpy.ndarray, which is not a torch.Tensor"),
        ("Nan", "returns values that are not finite"),
        ("Double", "it returned float64 [4, 1, 8, 8]"),
        ("Cropped", "it returned float32 [4, 1, 8, 7]"),
        ("Raises", "cannot take images [4, 1, 8, 8]: size mismatch"),
        ("NotCallable", "must be callable with images [B, C, H, W], got NotCallable"),
    ],
)
def test_an_augmentation_that_cannot_be_trained_with_is_one_line_before_training(
    name: str, message: str, own: Path
) -> None:
    file = config(name, own)
    with pytest.raises(ConfigError) as caught:
        build_run(file)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{file}:8:7: ")
    assert f"the augmentation own.py:{name} " in problem.message
    assert message in problem.message
    assert "\n" not in problem.message


def test_an_augmentation_may_be_a_function_or_a_class_and_may_modify_its_input(own: Path) -> None:
    def first(augment: list[Any]) -> Tensor:
        run = build_run(config("Same", own), {"data.augment": augment, "data.normalize": "none"})
        return next(run.train.epoch(7))[0]

    plain = first([])
    half, quarter = {"name": "own.py:halved"}, {"name": "own.py:halved", "factor": 0.25}
    for augment, factor in ((half, 0.5), (quarter, 0.25), ("own.py:InPlace", 0.5), ("own.py:indexed", 1)):
        torch.testing.assert_close(first([augment]), factor * plain)
    (module,) = [
        module
        for module in list(sys.modules.values())
        if Path(getattr(module, "__file__", None) or "") == own / "own.py"
    ]
    indices, epoch = module.SEEN[-1]
    assert (len(indices), epoch) == (32, 7)


def test_trying_an_augmentation_draws_no_random_numbers_of_the_run(own: Path) -> None:
    drawn = []
    for name in ("Same", "Random"):
        build_run(config(name, own))
        drawn.append((torch.rand(2).tolist(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_values_that_are_no_pixels_any_more_are_a_warning(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = config("Bytes", own)
    build_run(file)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: {file}:")
    assert "own.py:Bytes turns pixels in [0, 1] into values from" in line
    build_run(config("halved", own))
    assert capfd.readouterr().err == ""


def test_nan_from_an_augmentation_during_training_names_it_and_not_the_learning_rate(own: Path) -> None:
    run = build_run(config("LaterNan", own))
    with pytest.raises(TrainingError) as caught:
        list(fit(run))
    assert "the first value that is not finite: the images of the batch; look at data.augment" in str(caught.value)
    assert "own.py:LaterNan" in str(caught.value)
    assert "learning rate" not in str(caught.value)


class Offset:
    """Brighter by a constant."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self, images: Tensor) -> Tensor:
        return images + self.offset


def test_an_object_may_stand_among_the_names_of_augmentations(own: Path) -> None:
    data = {"name": "digits", "normalize": "none", "batch_size": 4}
    keys = {"epochs": 1, "model": "linear", "optimizer": "adam", "data": data}
    plain, by_dict, by_override, changed = (
        next(build_run(*arguments).train.epoch(1))[0]
        for arguments in (
            (keys,),
            ({**keys, "data": {**data, "augment": ["own.py:Same", Offset(0.125)]}},),
            (keys, {"data.augment": [Offset(0.125), lambda images: images]}),
            (load_config({**keys, "data": {**data, "augment": [Offset(0.125)]}}), {"epochs": 2}),
        )
    )
    for images in (by_dict, by_override, changed):
        torch.testing.assert_close(images, plain + 0.125)
    with pytest.raises(ConfigError, match=r"Offset> is a class; pass an object of it, Offset\(\.\.\.\)"):
        build_run(keys, {"data.augment": [Offset]})
