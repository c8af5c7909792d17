"""A folder of small images and a run trained on them, for the tests of predictions."""

from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from ..helpers import COLORS

CONFIG = """\
epochs: 3
data: {name: image_folder, root: images, size: [12, 10], batch_size: 16, validation: 0.25, eval_batch_size: 7}
model: {name: mlp, hidden: [16]}
optimizer: {name: adam, lr: 0.01}
"""


@pytest.fixture(scope="module")
def folder(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/CLASS/*.png of several sizes, and a run trained on them."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(5)
    for name, color in COLORS.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            size = (12 + i % 3, 10 + i % 4, 3)
            pixels = (np.array(color) + random.normal(0, 60, size)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i:02d}.png")
    (folder / "colors.yaml").write_text(CONFIG.replace("root: images", f"root: {folder / 'images'}"))
    line = ["train", "--config", str(folder / "colors.yaml"), "--output", str(folder / "run")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    return folder
