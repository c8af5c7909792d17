"""Labels from a table: the same images as in folders, groups on one side, and one line for every mistake."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from random import Random

import numpy as np
import pandas
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from softmaxce.build import hold_out, load_source
from softmaxce.config.from_python import load_config
from softmaxce.data.batches import Batches
from softmaxce.data.folder import image_folder
from softmaxce.data.image_list import image_list
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.splits import Split, split_by_group
from softmaxce.errors import DataError

Rows = list[list[str]]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAXCE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images of two classes, photos/cat/0.png and so on."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index}.png")
    return tmp_path / "photos"


def rows_of(photos: Path) -> Rows:
    """[path, label, group] of each image; four images to a group, of one class."""
    files = sorted(photos.glob("*/*.png"))
    return [
        [file.relative_to(photos).as_posix(), file.parent.name, f"{file.parent.name}{int(file.stem) // 4}"]
        for file in files
    ]


def write(file: Path, rows: Rows, delimiter: str = ",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return file


def groups_of(split: Split | None) -> set[str]:
    assert split is not None
    assert split.groups is not None
    return set(split.groups)


# -- splits -----------------------------------------------------------------------------------------------------------

TABLES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=2, max_size=60)  # (group, class) of a row


@settings(max_examples=1000)
@given(TABLES, st.floats(0.05, 0.9), st.randoms())
def test_no_group_is_on_two_sides_no_class_leaves_training_and_rows_may_come_in_any_order(
    table: list[tuple[int, int]], fraction: float, random: Random
) -> None:
    def sides(rows: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
        groups, labels = [f"g{group}" for group, _ in rows], torch.tensor([label for _, label in rows])
        rest, selected = split_by_group(groups, labels, fraction, "test")
        assert torch.cat([rest, selected]).sort().values.equal(torch.arange(len(rows)))
        assert set(labels[rest].tolist()) == set(labels.tolist())
        return {rows[i][0] for i in rest.tolist()}, {rows[i][0] for i in selected.tolist()}

    lacks = {group: {label for other, label in table if other != group} for group, _ in table}
    if all({label for _, label in table} - without for without in lacks.values()):  # each has all images of a class
        with pytest.raises(ValueError, match="no class has two groups, one for each part"):
            sides(table)
        return
    rest, selected = sides(table)
    assert selected
    assert not rest & selected
    shuffled = list(table)
    random.shuffle(shuffled)
    assert sides(shuffled) == (rest, selected)


@pytest.mark.parametrize("size", [0.2, 160])
def test_a_split_by_groups_is_stratified_where_groups_hold_several_classes(size: float) -> None:
    # 100 patients of 8 images; one class in ten images, and another that only ten patients have
    rng = np.random.default_rng(1)
    labels = torch.from_numpy((rng.random(800) < 0.1).astype(np.int64))
    labels[: 10 * 8 : 4] = 2
    groups = [f"patient {index // 8}" for index in range(800)]
    _, selected = split_by_group(groups, labels, size, "test")
    for label in range(3):
        share = (labels[selected] == label).sum().item() / (labels == label).sum().item()
        assert abs(share - 0.2) < 0.06, label


def test_a_group_with_half_of_a_class_is_passed_over_for_smaller_ones() -> None:
    labels = torch.tensor([0] * 100 + [1] * 100)
    groups = [*["large"] * 50, *(f"a{i}" for i in range(50)), *(f"b{i}" for i in range(100))]
    for salt in map(str, range(20)):
        _, selected = split_by_group(groups, labels, 0.2, salt)
        assert torch.bincount(labels[selected]).tolist() == [20, 20]
        assert 0 not in selected


@pytest.mark.parametrize("held_out", [0.25, 8])
def test_validation_images_held_out_of_a_list_share_no_group_with_training_or_test(
    photos: Path, held_out: float
) -> None:
    write(photos / "labels.csv", [["path", "label", "patient"], *rows_of(photos)])
    config = load_config(
        {
            "epochs": 1,
            "data": {
                "name": "image_list",
                "file": str(photos / "labels.csv"),
                "group": "patient",
                "validation": held_out,
            },
            "model": "linear",
            "optimizer": {"name": "sgd", "lr": 0.1},
        }
    )
    data = hold_out(load_source(config), config)
    parts = [groups_of(each) for each in (data.train, data.validation, data.test)]
    assert [len(each) for each in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10
    for split in (data.validation, data.test):
        assert split is not None
        assert torch.bincount(split.labels).tolist() == [4, 4]


# -- the same as folders ----------------------------------------------------------------------------------------------


def batches(split: Split | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert split is not None
    preprocessing = Preprocessing(split.shape, (0.5,) * 3, (0.25,) * 3)
    return list(Batches(split, preprocessing, batch_size=7, device=CPU, shuffle_seed=3).epoch(1))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("form", ["csv", "semicolons", "tsv", "jsonl", "no suffixes", "absolute", "windows", "parquet"])
def test_a_list_of_40_images_gives_the_batches_of_the_same_images_in_folders(
    photos: Path, form: str, in_memory: bool
) -> None:
    rows = [row[:2] for row in rows_of(photos)][::-1]  # the order of the rows does not matter
    file = photos / f"labels.{form if form in ('tsv', 'jsonl', 'parquet') else 'csv'}"
    if form == "absolute":
        rows = [[str(photos / path), label] for path, label in rows]
    elif form == "no suffixes":
        rows = [[path.removesuffix(".png"), label] for path, label in rows]
    elif form == "windows":
        rows = [[path.replace("/", "\\"), label] for path, label in rows]
    if form == "parquet":
        table = pandas.DataFrame(rows, columns=["File Name", "class"]).assign(embedding=[[0.5] * 3] * len(rows))
        table.astype({"class": "category"}).to_parquet(file, row_group_size=7)
    elif form == "jsonl":
        file.write_text("".join(json.dumps({"file_name": path, "label": label}) + "\n" for path, label in rows))
    else:
        write(file, [["File Name", "class"], *rows], {"semicolons": ";", "tsv": "\t"}.get(form, ","))
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as spreadsheets begin a file
    listed = image_list(file=file.name, root=str(photos), in_memory=in_memory, workers=0)
    folder = image_folder(root=str(photos), in_memory=in_memory, workers=0)
    assert listed.classes == folder.classes
    for name in ("train", "test"):
        for mine, theirs in zip(batches(getattr(listed, name)), batches(getattr(folder, name)), strict=True):
            assert mine[0].equal(theirs[0])
            assert mine[1].equal(theirs[1])


def test_a_column_of_splits_takes_the_names_of_folders_in_any_case(photos: Path) -> None:
    names = ["Training", "train", "TEST", "valid"]
    rows = [[*row[:2], names[index % 4]] for index, row in enumerate(rows_of(photos))]
    file = write(photos / "labels.csv", [["path", "label", "part"], *rows])
    data = image_list(file=file.name, root=str(photos), split="part")
    assert data.test is not None
    assert data.validation is not None
    assert [len(each) for each in (data.train, data.test, data.validation)] == [20, 10, 10]


# -- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = "path,label\ncat/0.png,cat\ncat/1.png,cat\ndog/0.png,dog\ndog/1.png,dog\n"
SPLITS = "path,label,split,who\ncat/0.png,cat,train,a\ndog/0.png,dog,train,b\n"
MISTAKES: dict[str, tuple[str | bytes, dict[str, str], str]] = {
    "a column that is named": (GOOD, {"label": "species"}, "has no column 'species' for data.label.*path, label"),
    "no usual column": ("img_id,kind\n1,2\n", {}, "no column is known as the path; set data.path .*: img_id, kind"),
    "two usual columns": ("path,file,label\na,b,c\n", {}, "columns path and file may both be the path; set data.path"),
    "no header": (GOOD.partition("\n")[2], {}, "no column is known as the path; .*: cat/0.png, cat"),
    "a missing file": (GOOD + "cat/99.png,cat\ncat/98.png,cat\n", {}, ":6: there is no file .*99.png'; nor.* 1 more"),
    "an empty label": (GOOD + "cat/2.png, \n", {}, r":6: the label \(column 'label'\) is empty"),
    "an empty path": (GOOD + ",cat\n", {}, r":6: the path \(column 'path'\) is empty"),
    "two labels": (GOOD + "./cat/0.png,dog\n", {}, ":6: 'cat/0.png' has the label 'dog', and in row 2 'cat'"),
    "two splits": (
        SPLITS + "cat/0.png,cat,test,a\n",
        {"split": "split"},
        ":4: 'cat/0.png' has the split 'test', and in row 2 'train'",
    ),
    "an unknown split": (SPLITS + "cat/1.png,cat,3,a\n", {"split": "split"}, ":4: the split '3' is unknown; write tr"),
    "no training": ("path,label,split\ncat/0.png,cat,test\n", {"split": "split"}, "no row of column 'split' is train"),
    "a class that training lacks": (
        SPLITS + "cat/1.png,cow,test,c\n",
        {"split": "split"},
        r":4: the class 'cow' is not among those trained on \(cat, dog\)",
    ),
    "a divided group": (
        SPLITS + "cat/1.png,cat,test,a\n",
        {"split": "split", "group": "who"},
        ":4: the group 'a' is in the test split, and in row 2 in the train split",
    ),
    "one group a class": (
        "path,label,who\ncat/0.png,cat,a\ndog/0.png,dog,b\n",
        {"group": "who"},
        "data.test_fraction: no class has two groups",
    ),
    "too many cells": (GOOD + "cat/2.png,cat,big\n", {}, ":6: has 3 cells and the first row 2"),
    "too few cells": (GOOD + "cat/2.png\n", {}, ":6: has 1 cell and the first row 2"),
    "an open quotation": (GOOD + '"cat/2.png,cat\n', {}, ":6: unexpected end of data; check the quotation marks"),
    "Latin-1": (GOOD.encode() + b"cat/2.png,caf\xe9\n", {}, ":6: is not UTF-8 text"),
    "UTF-16": (GOOD.encode("utf-16"), {}, ":1: is not UTF-8 text"),
    "nothing": ("", {}, "labels.csv: holds no rows"),
    "a header alone": ("path,label\n", {}, "labels.csv: holds no rows"),
    "one class": ("path,label\ncat/0.png,cat\n", {}, "there is only one class, 'cat'"),
    "a control character": (GOOD + "cat/2.png,c\x1b[2Jat\n", {}, ":6: the label '.*' holds a control character"),
    "no suffix and two files": (GOOD + "cat/twice,cat\n", {}, ":6: 'cat/twice' may be twice.bmp or twice.png; write"),
    "a file that is no image": (GOOD + "labels.csv,cat\n", {}, "1 of .* files cannot be decoded"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_table_is_one_line_with_file_and_row(mistake: str, photos: Path) -> None:
    content, columns, message = MISTAKES[mistake]
    for suffix in ("png", "bmp"):
        Image.new("RGB", (6, 6)).save(photos / f"cat/twice.{suffix}")
    file = photos / "labels.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        image_list(file="labels.csv", root=str(photos), size=6, test_fraction=0.5, **columns)  # type: ignore[arg-type]
    assert re.search(message, error.value.lines[0])
    assert "\n" not in error.value.lines[0]
    assert str(file) in str(error.value) or "test_fraction" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"path": "cat/0.png", "label": "cat"}\n{"path": "cat/1.png"}\n', "t.jsonl:2: the label .* empty"),
        ("t.jsonl", "[1]\n", "t.jsonl:1: must be an object"),
        ("t.jsonl", "{\n", "t.jsonl:1: is not JSON"),
        ("t.xlsx", "", "t.xlsx: .xlsx tables are not read; save it as CSV"),
        ("t.parquet", "", "t.parquet: is no Parquet table"),
        ("t.parquet", GOOD, "t.parquet: is no Parquet table"),
    ],
)
def test_mistakes_in_other_formats_are_one_line_too(name: str, content: str, message: str, photos: Path) -> None:
    (photos / name).write_text(content)
    with pytest.raises(DataError, match=message):
        image_list(file=name, root=str(photos))


PARQUET_MISTAKES: dict[str, tuple[dict[str, list[object]], dict[str, str], str]] = {
    "a column that is named": ({"path": ["cat/0.png"], "label": ["cat"]}, {"label": "species"}, "no column 'species'"),
    "a missing file": ({"path": ["cat/0.png", "no.png"], "label": ["cat", "dog"]}, {}, "t.parquet:2: there is no file"),
    "no label": (
        {"path": ["cat/0.png", "dog/0.png"], "label": ["cat", None]},
        {},
        "t.parquet:2: the label .* is empty",
    ),
    "two labels": ({"path": ["cat/0.png"] * 2, "label": [0, 1]}, {}, "t.parquet:2: .* has the label '1', and in row 1"),
    "numbers": ({"path": ["cat/0.png"], "label": [0.5]}, {}, "the column 'label' is of type double; save it as text"),
    "lists": ({"path": [["cat/0.png"]], "label": ["cat"]}, {}, "the column 'path' is of type list<.*; save it as text"),
    "no rows": ({"path": [], "label": []}, {}, "t.parquet: holds no rows"),
}


@pytest.mark.parametrize("mistake", PARQUET_MISTAKES)
def test_a_mistake_in_a_parquet_table_is_one_line_with_file_and_row(mistake: str, photos: Path) -> None:
    columns, names, message = PARQUET_MISTAKES[mistake]
    pandas.DataFrame(columns, dtype=None if columns["path"] else "object").to_parquet(photos / "t.parquet")
    with pytest.raises(DataError, match=message) as error:
        image_list(file="t.parquet", root=str(photos), **names)  # type: ignore[arg-type]
    assert len(error.value.lines) == 1


def test_a_damaged_parquet_table_and_a_missing_pyarrow_are_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [row[0] for row in rows_of(photos)]
    table = pandas.DataFrame({"path": paths, "label": [path[:3] for path in paths]})
    table.to_parquet(photos / "t.parquet", compression="gzip")
    content = bytearray((photos / "t.parquet").read_bytes())
    content[40:120] = bytes(80)
    (photos / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: (cannot be read after row 0|is no Parquet table): .") as error:
        image_list(file="t.parquet", root=str(photos))
    assert len(error.value.lines) == 1
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as Python marks a module that is not there
    with pytest.raises(DataError, match=r"needs pyarrow; install with: pip install 'softmaxce\[parquet\]'"):
        image_list(file="t.parquet", root=str(photos))


def test_a_table_that_is_no_regular_file_is_refused(photos: Path) -> None:
    with pytest.raises(DataError, match="cat: cannot be read: it is a folder"):
        image_list(file="cat", root=str(photos))


# -- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_finds_its_table_again_from_another_folder_and_evaluates_other_tables(
    app: typer.Typer, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == status, done.output
        return done.stdout if status == 0 else done.stderr

    top = photos.parent
    write(photos / "labels.csv", [["path", "label", "patient"], *rows_of(photos)])
    (top / "c.yaml").write_text(
        "epochs: 1\n"
        "data: {name: image_list, file: photos/labels.csv, group: patient, validation: 0.25, batch_size: 8}\n"
        "model: linear\noptimizer: {name: sgd, lr: 0.02}\n"
    )
    (top / "elsewhere").mkdir()
    monkeypatch.chdir(top / "elsewhere")
    run("train", "../c.yaml", "--output", "run", "-q")  # the table is beside the config
    before = json.loads(run("eval", "run", "--json"))
    run("train", "--resume", "run", "--epochs", "2", "-q")
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
    photos.rename(top / "moved")
    assert "there is no table" in run("eval", "run", status=2)
    after = json.loads(run("eval", "run", "--data", "../moved", "--split", "test", "--json"))
    assert [after[key] for key in ("split", "images")] == ["test", before["images"]]
    other = write(top / "moved/other.csv", [["path", "label"], *(row[:2] for row in rows_of(top / "moved")[15:25])])
    assert json.loads(run("eval", "run", "--data", str(other), "--json"))["images"] == 10
    assert "leave out --split" in run("eval", "run", "--data", str(other), "--split", "test", status=2)
    shutil.copy(other, top / "moved/labels.csv")
    assert "no column 'patient'" in run("eval", "run", "--data", "../moved", "--split", "test", status=2)
