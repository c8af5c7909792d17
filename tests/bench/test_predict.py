"""The command `softmaxce bench predict`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..helpers import Softmaxce

CONFIG = """\
epochs: 1
data: {name: image_folder, root: images, size: 8, batch_size: 4, test_fraction: 0.5}
model: linear
optimizer: {name: sgd, lr: 0.01}
"""


@pytest.fixture
def trained(softmaxce: Softmaxce, tmp_path: Path) -> Path:
    """A folder with eight images of two classes, and a run trained on them."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(256, size=(9, 8, 3), dtype=np.uint8)).save(
                tmp_path / f"images/{name}/{i}.png"
            )
    (tmp_path / "folder.yaml").write_text(CONFIG)
    done = softmaxce("train", "--config", "folder.yaml", "--output", "run")
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_prediction_and_decoding_are_timed_on_the_same_files(softmaxce: Softmaxce, trained: Path) -> None:
    done = softmaxce("bench", "predict", "run", "images", "--rounds", "3", "--json")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)["predict"]
    assert output["files"] == 8
    assert list(output["rates"]) == ["decoding alone", "softmaxce predict"]
    assert all(rate["median"] > 0 for rate in output["rates"].values())
    assert output["to_decoding"]["median"] > 0
    shown = softmaxce("bench", "predict", "run", "images/a", "--rounds", "2")
    assert "vs decoding alone" in shown.stdout
    assert "4 files, linear; start-up is not counted" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "images"], "nowhere: there is no such run folder or checkpoint"),
        (["run", "-"], "none of these paths is an image"),
        (["run", "imagse"], "imagse: there is no such file or folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    softmaxce: Softmaxce, trained: Path, arguments: list[str], line: str
) -> None:
    done = softmaxce("bench", "predict", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
