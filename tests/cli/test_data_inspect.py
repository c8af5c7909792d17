"""`softmaxce data inspect`: what a config's images are, and some of them as training sees them."""

import json
import re
import shutil
from pathlib import Path

import markupsafe
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
    picture, notes = tmp_path / "new" / "folder" / "samples.png", tmp_path / "notes.png"
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


def test_unreadable_files_and_duplicates_are_listed_and_counted_nowhere_else(
    app: typer.Typer, config: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(config.parent / "photos", photos)
    bad = {"empty.png": b"", "text.png": b"no image", "cut.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"}
    for name, content in bad.items():
        (photos / "test/cat" / name).write_bytes(content)
    for copy in ("test/cat/copy.png", "train/dog/copy.png"):
        shutil.copy(photos / "train/cat/0.png", photos / copy)
    shutil.copy(photos / "train/cat/1.png", photos / "train/cat/again.png")
    words = ["data", "inspect", str(config), "--set", f"data.root={photos}", "--set", "data.validation=null"]
    seen, on_disk = (
        json.loads(CliRunner().invoke(app, [*words, "--json", "--set", f"data.in_memory={in_memory}"]).stdout)
        for in_memory in ("true", "false")
    )
    assert on_disk == seen | {name: pytest.approx(seen[name]) for name in ("mean", "std")}
    assert {Path(file).name for file in seen["unreadable"]} == set(bad)
    assert seen["images"]["test"] == [4, 0]
    assert seen["files"]["formats"] == {"PNG": 20, "JPEG": 2}
    ((first, second, third),) = seen["duplicates"]["across_splits"]
    assert first == {"split": "train", "label": "cat", "name": str(photos / "train/cat/0.png")}
    assert [copy["label"] for copy in (second, third)] == ["dog", "cat"]
    assert seen["duplicates"]["with_two_classes"] == seen["duplicates"]["across_splits"]
    assert seen["duplicates"]["others"] == 1

    page = tmp_path / "page.html"
    printed = CliRunner().invoke(app, [*words, "--samples", "2", "--html", str(page)]).stdout
    assert "unreadable: 3 files; training leaves them out with data.skip_bad: true" in printed
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    lines = [line for line in printed.splitlines() if line.startswith(("  ", "width", "modes", "training"))]
    assert len(lines) == 8
    for line in lines:
        assert f">{markupsafe.escape(line.strip())}<" in text, line
    requested = reader.load(
        str(config), [reader.parse_override(f"data.{key}") for key in (f"root={photos}", "validation=null")]
    )
    names = inspection.samples(requested, inspection.read(requested), 2)[1]
    assert printed.splitlines()[-2].split() == names


@pytest.mark.parametrize("data_set", ["synthetic", "digits"])
def test_a_data_set_without_files_is_compared_by_its_pixels(app: typer.Typer, tmp_path: Path, data_set: str) -> None:
    config = tmp_path / "c.yaml"
    noise = "noise: 0, train: 20, test: 10, classes: 5" if data_set == "synthetic" else ""
    config.write_text(
        f"epochs: 1\ndata: {{name: {data_set}, {noise}}}\nmodel: linear\noptimizer: {{name: sgd, lr: 0.1}}\n"
    )
    seen = json.loads(CliRunner().invoke(app, ["data", "inspect", str(config), "--json"]).stdout)["duplicates"]
    assert len(seen["across_splits"]) == (5 if data_set == "synthetic" else 0)  # one pattern a class, without noise
    if data_set == "synthetic":
        assert [len(each) for each in seen["across_splits"]] == [6] * 5
