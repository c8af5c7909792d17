"""`softmaxce data inspect`: what a config's images are, and some of them as training sees them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from softmaxce import inspection
from softmaxce.build import build_run
from softmaxce.config import reader

CONFIG = """\
epochs: 1
data:
  name: image_folder
  root: {root}
  size: 8
  validation: 2
  batch_size: 6
  augment: [{{name: random_resized_crop}}, {{name: random_erasing, p: 1.0}}]
model: linear
optimizer: {{name: sgd, lr: 0.1}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train: 12 cats of 9x7 pixels, 4 dogs of 20x10, one of these gray and one CMYK; test: 3 cats of 8x8."""
    folder = tmp_path_factory.mktemp("inspected")
    rng = np.random.default_rng(0)
    for split, name, count, (width, height) in (
        ("train", "cat", 12, (9, 7)),
        ("train", "dog", 4, (20, 10)),
        ("test", "cat", 3, (8, 8)),
    ):
        (folder / "photos" / split / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            file = folder / "photos" / split / name / f"{number}.png"
            if name == "dog" and number < 2:
                image = image.convert(("L", "CMYK")[number])
                file = file.with_suffix(".jpg")
            image.save(file)
    (folder / "own.yaml").write_text(CONFIG.format(root=folder / "photos"))
    return folder / "own.yaml"


def test_images_are_counted_by_class_and_split_and_files_by_size_mode_and_format(
    app: typer.Typer, config: Path
) -> None:
    done = CliRunner().invoke(app, ["data", "inspect", str(config), "--json"])
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout)
    assert seen["classes"] == ["cat", "dog"]
    assert [sum(counts) for counts in zip(seen["images"]["train"], seen["images"]["validation"], strict=True)] == [
        12,
        4,
    ]
    assert sum(seen["images"]["validation"]) == 2
    assert seen["images"]["test"] == [3, 0]
    files = seen["files"]
    assert (files["smallest"], files["median"], files["largest"]) == ([9, 7], [9, 7], [20, 10])
    assert files["modes"] == {"RGB": 17, "L": 1, "CMYK": 1}
    assert files["formats"] == {"PNG": 17, "JPEG": 2}
    pixels = build_run(reader.load(str(config))).train.split.images.numpy() / 255  # type: ignore[union-attr]
    assert seen["mean"] == pytest.approx(pixels.mean((0, 2, 3)))
    assert seen["std"] == pytest.approx(pixels.std((0, 2, 3)))


def test_the_table_has_a_row_for_each_class(app: typer.Typer, config: Path) -> None:
    done = CliRunner().invoke(app, ["data", "inspect", str(config)])
    rows = [line.split() for line in done.stdout.splitlines()]
    start = rows.index(["class", "train", "validation", "test"])
    assert [row[0] for row in rows[start:] if len(row) == 4][:4] == ["class", "cat", "dog", "all"]
    assert ["all", "14", "2", "3"] in rows


def test_the_samples_are_the_first_batches_of_training_before_their_normalization(config: Path) -> None:
    requested = reader.load(str(config))
    images, names = inspection.samples(requested, inspection.read(requested), 10)
    run = build_run(requested)
    batches = list(run.train.epoch(1))[:2]
    seen = torch.cat([batch for batch, _ in batches])[:10] * run.train.std + run.train.mean
    torch.testing.assert_close(images.permute(0, 3, 1, 2), seen, rtol=0, atol=1e-6)
    assert names == [run.classes[label] for label in torch.cat([ids for _, ids in batches])[:10]]


def test_the_picture_replaces_a_picture_of_ours_and_nothing_else(
    app: typer.Typer, config: Path, tmp_path: Path
) -> None:
    picture, notes = tmp_path / "new" / "samples.png", tmp_path / "notes.png"
    notes.write_text("mine")
    for _ in range(2):
        done = CliRunner().invoke(app, ["data", "inspect", str(config), "--output", str(picture)])
        assert done.exit_code == 0, done.output
        assert Image.open(picture).size[0] > 8 * 100  # eight columns
    for file, message in ((notes, "is not a picture of softmaxce"), (tmp_path / "x.jpg", "must be a name that ends")):
        done = CliRunner().invoke(app, ["data", "inspect", str(config), "--output", str(file)])
        assert done.exit_code == 2
        assert message in done.stderr
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"])
def test_a_file_that_is_no_image_is_one_line_with_its_name_also_where_images_stay_on_disk(
    app: typer.Typer, config: Path, tmp_path: Path, content: bytes
) -> None:
    shutil.copytree(config.parent / "photos", tmp_path / "photos")
    (tmp_path / "photos/test/cat/bad.png").write_bytes(content)
    words = ["data", "inspect", str(config), "--set", f"data.root={tmp_path / 'photos'}", "--set"]
    done = CliRunner().invoke(app, [*words, "data.in_memory=false"])
    assert done.exit_code == 2, done.output
    assert "bad.png" in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 1
