"""`classes` of image_folder, image_list and shards: their order, which are left out, and which are merged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from softmaxce.data.folder import image_folder
from softmaxce.data.image_list import image_list
from softmaxce.data.pack import pack
from softmaxce.data.shards import shards
from softmaxce.data.splits import Dataset, InMemory
from softmaxce.errors import DataError
from softmaxce.inference.export_metadata import read_metadata

from ..helpers import COLORS

Reader = Callable[..., Dataset]


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/train and photos/test of three classes, labels.csv of the same images, and shards/ of the same."""
    top = tmp_path_factory.mktemp("selection")
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for split, count in (("train", 8), ("test", 4)):
        for name, color in COLORS.items():
            (top / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(color + rng.normal(0, 20, (4, 4, 3)), 0, 255).astype(np.uint8)
                file = top / "photos" / split / name / f"{number}.png"
                Image.fromarray(pixels).save(file)
                rows.append(f"{file.relative_to(top)},{name},{split}")
    (top / "labels.csv").write_text("\n".join(rows))
    pack(top / "photos", top / "shards", 1_000_000)
    return top


def reader(top: Path, kind: str) -> Reader:
    def read(classes: Any = None) -> Dataset:
        if kind == "image_folder":
            return image_folder(root=str(top / "photos"), classes=classes)
        if kind == "image_list":
            return image_list(root=str(top), file="labels.csv", split="split", classes=classes)
        return shards(root=str(top / "shards"), urls="train-*.tar", test_urls="test-*.tar", classes=classes)

    return read


KINDS = pytest.mark.parametrize("kind", ["image_folder", "image_list", "shards"])


def labelled(data: Dataset, part: str) -> set[tuple[bytes, str]]:
    split = getattr(data, part)
    assert isinstance(split, InMemory)
    pixels = (image.numpy().tobytes() for image in split.images)
    return {(each, data.classes[label]) for each, label in zip(pixels, split.labels.tolist(), strict=True)}


@KINDS
@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["red", "blue", "green"], {"red": "red", "blue": "blue", "green": "green"}),
        (["red", "blue"], {"red": "red", "blue": "blue"}),
        ({"warm": "red", "cold": ["green", "blue"]}, {"red": "warm", "green": "cold", "blue": "cold"}),
        ({"warm": "red", "blue": "blue"}, {"red": "warm", "blue": "blue"}),
    ],
    ids=["order", "left out", "merged", "renamed and left out"],
)
def test_the_images_are_those_of_the_classes_named_under_their_new_names_in_the_order_of_the_config(
    top: Path, kind: str, classes: Any, names: dict[str, str]
) -> None:
    whole, selected = reader(top, kind)(), reader(top, kind)(classes)
    assert whole.classes == tuple(COLORS)
    assert selected.classes == tuple(classes)
    for part in ("train", "test"):
        expected = {(pixels, names[name]) for pixels, name in labelled(whole, part) if name in names}
        assert labelled(selected, part) == expected
        counts = torch.bincount(getattr(selected, part).labels, minlength=len(classes))
        per_class = len(getattr(whole, part)) // 3
        assert counts.tolist() == [per_class * list(names.values()).count(name) for name in classes]


@KINDS
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["red", "blu"], "there is no class 'blu'; did you mean 'blue'.*; the classes are blue, green, red"),
        ({"warm": ["red", "pink"], "cold": "blue"}, "there is no class 'pink'; the classes are blue, green, red"),
        (["red"], "names 1 class, and a classifier needs at least two"),
        (["red", "blue", "red"], "names the class 'red' twice"),
        ({"a": ["red", "blue"], "b": "red"}, "names the class 'red' twice"),
        ({"a": [], "b": "red"}, "a: must be a class's name or a list of names"),
        ({"a": 1, "b": "red"}, "a: must be a class's name or a list of names, got 1"),
    ],
)
def test_a_mistake_is_one_line_with_the_names_that_exist(top: Path, kind: str, classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^data.classes: {message}") as error:
        reader(top, kind)(classes)
    assert len(error.value.lines) == 1


def test_a_split_with_none_of_the_classes_named_and_a_class_that_training_lacks_are_one_line(
    top: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos/test").mkdir(parents=True)
    (tmp_path / "photos/train").symlink_to(top / "photos/train")
    (tmp_path / "photos/test/green").symlink_to(top / "photos/test/green")
    with pytest.raises(DataError, match=r"test: holds none of the classes that data\.classes names"):
        reader(tmp_path, "image_folder")(["red", "blue"])
    (tmp_path / "photos/test/rde").symlink_to(top / "photos/test/red")  # not left out: it may be a mistake
    with pytest.raises(DataError, match="the classes rde are not among those trained on"):
        reader(tmp_path, "image_folder")(["red", "blue"])
    rows = (top / "labels.csv").read_text().replace("blue,test", "bleu,test")
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(DataError, match=r"labels\.csv:\d+: the class 'bleu' is not among those trained on"):
        image_list(root=str(top), file=str(tmp_path / "labels.csv"), split="split", classes=["red", "blue"])


def test_eval_predict_and_an_exported_model_have_the_names_of_the_merged_classes(
    app: typer.Typer, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done

    monkeypatch.chdir(top)
    (top / "c.yaml").write_text(
        "epochs: 3\nmodel: linear\noptimizer: {name: sgd, lr: 0.5}\n"
        "data: {name: image_folder, root: photos, batch_size: 8, classes: {warm: red, cold: [green, blue]}}\n"
    )
    run("train", "c.yaml", "--output", "run", "-q")
    own = json.loads(run("eval", "run", "--json").stdout)
    assert [(row["name"], row["support"]) for row in own["classes"]] == [("warm", 4), ("cold", 8)]
    for other in ("photos/test", "labels.csv", "shards/test-000000.tar"):  # under the names before merging
        again = json.loads(run("eval", "run", "--data", other, "--json").stdout)
        assert again["images"] == (36 if other == "labels.csv" else 12)
    assert json.loads(run("eval", "run", "--data", "photos/test", "--json").stdout)["loss"] == own["loss"]
    (top / "more/red").mkdir(parents=True)
    (top / "more/pink").mkdir()
    for name in ("red", "pink"):
        Image.new("RGB", (4, 4), name).save(top / f"more/{name}/1.png")
    left_out = run("eval", "run", "--data", "more", "--json")
    assert json.loads(left_out.stdout)["images"] == 1
    assert "more: images of classes that the run's data.classes does not name are left out: pink" in left_out.stderr
    assert json.loads(run("predict", "run", "photos/test/red/0.png", "--json").stdout)["class"] == "warm"
    run("export", "run")
    assert read_metadata(top / "run/model.onnx").classes == ("warm", "cold")
    assert json.loads(run("eval", "run/model.onnx", "--data", "photos/test", "--json").stdout)["images"] == 12
