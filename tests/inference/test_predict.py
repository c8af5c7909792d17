"""`softmaxce predict` on real files against eval's own data path, SciPy and what is on disk."""

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from scipy.special import softmax
from typer.testing import CliRunner

from softmaxce.data.paths import Unreadable, image_files
from softmaxce.inference.predict import Prediction
from softmaxce.inference.trained_model import TrainedModel

from ..helpers import COLORS


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def predicted(app: typer.Typer, *arguments: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(app, ["predict", "run", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_probabilities_are_those_of_evals_data_path(app: typer.Typer, here: Path) -> None:
    model = TrainedModel.open(Path("run"))
    logits, _ = model.logits(model.folder_split(here / "images"))
    expected = softmax(logits.double().numpy(), 1)
    lines = predicted(app, "images", "--top", "3")
    assert [line["path"] for line in lines] == [f"images/{n}/{i:02d}.png" for n in COLORS for i in range(20)]
    for line, row in zip(lines, expected, strict=True):
        ranked = np.argsort(-row)
        assert line["class"] == model.classes[ranked[0]]
        top = line["top"]
        assert isinstance(top, list)
        assert [entry["class"] for entry in top] == [model.classes[i] for i in ranked]
        assert [entry["probability"] for entry in top] == pytest.approx(row[ranked], abs=1e-6)


def test_an_empty_list_on_stdin_is_one_line_and_2(app: typer.Typer, here: Path) -> None:
    done = CliRunner().invoke(app, ["predict", "run", "-"], input="")
    assert done.exit_code == 2
    assert done.stderr == "error: -: there are no paths on stdin\n"


def test_neither_batch_size_nor_order_changes_a_prediction(app: typer.Typer, here: Path) -> None:
    one = predicted(app, "images", "--batch-size", "1")
    many = predicted(app, *[str(line["path"]) for line in reversed(one)], "--batch-size", "64")
    for a, b in zip(one, reversed(many), strict=True):
        assert (a["path"], a["class"]) == (b["path"], b["class"])
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)


def test_the_runs_temperature_is_used_and_can_be_set(app: typer.Typer, here: Path) -> None:
    plain = predicted(app, "images/red/00.png", "--top", "3", "--temperature", "1")[0]["top"]
    (here / "run" / "calibration.json").write_text(
        json.dumps({"temperature": 2.5, "epoch": json.loads((here / "run/run.json").read_text())["best_epoch"]})
    )
    scaled = predicted(app, "images/red/00.png", "--top", "3")[0]["top"]
    (here / "run" / "calibration.json").unlink()
    assert isinstance(plain, list)
    assert isinstance(scaled, list)
    by_hand = softmax(np.log([entry["probability"] for entry in plain]) / 2.5)
    assert [entry["probability"] for entry in scaled] == pytest.approx(by_hand, rel=1e-6)


def test_csv_has_a_header_and_a_row_an_image(app: typer.Typer, here: Path) -> None:
    done = CliRunner().invoke(app, ["predict", "run", "images/red", "--csv", "--top", "2"])
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows[0] == ["path", "class", "probability", "class_2", "probability_2"]
    assert len(rows) == 21
    assert all(float(row[2]) >= float(row[4]) for row in rows[1:])


def test_the_table_is_probability_class_and_path(app: typer.Typer, here: Path) -> None:
    done = CliRunner().invoke(app, ["predict", "run", "images/red/00.png", "-k", "9"])
    first, second, third = done.stdout.splitlines()
    assert first.endswith("images/red/00.png")
    values = [float(line[:6]) for line in (first, second, third)]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=2e-4)
    assert {line.split()[1] for line in (first, second, third)} == set(COLORS)


@pytest.mark.parametrize(("options", "status"), [((), 2), (("--skip-bad",), 0)])
def test_what_cannot_be_read_is_named_and_counted_and_the_rest_is_done(
    app: typer.Typer, here: Path, tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    half = (here / "images/red/00.png").read_bytes()[:60]
    (tmp_path / "half.png").write_bytes(half)
    bad = [tmp_path / name for name in ("gone.png", "text.png", "half.png", "empty", "*.gif")]
    line = ["predict", "run", "images/red/00.png", *map(str, bad), "images/blue/01.png", *options]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == status
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["images/red/00.png", "images/blue/01.png"]
    lines = done.stderr.splitlines()
    assert len(lines) == len(bad) + 1
    for path, answer in zip(bad, lines, strict=False):
        assert answer.startswith(f"cannot be read: {path}: ")
    assert lines[-1] == "5 of 7 could not be read"


def test_where_no_image_can_be_read_skip_bad_is_no_success(app: typer.Typer, here: Path) -> None:
    done = CliRunner().invoke(app, ["predict", "run", "gone.png", "--skip-bad"])
    assert done.exit_code == 2
    assert done.stdout == ""


def test_paths_come_from_a_pipe_and_whoever_closes_it_early_is_not_shouted_at(here: Path) -> None:
    command = f"{Path(sys.executable).parent / 'softmaxce'} predict run -"
    odd = here / "images" / "red" / b"\xff odd name.png".decode(errors="surrogateescape")
    odd.write_bytes((here / "images/red/00.png").read_bytes())
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; find images/red -name '*.png' | sort | {command} | cat"],
        cwd=here, capture_output=True, check=False,
    )  # fmt: skip
    odd.unlink()
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 21
    assert b"images/red/\xff odd name.png" in done.stdout
    early = subprocess.run(
        ["bash", "-c", f"yes images/red/00.png | {command} | head -1"], cwd=here, capture_output=True, check=False
    )
    assert early.stdout.endswith(b"images/red/00.png\n")
    assert early.stderr == b""


def test_paths_that_end_with_nul_may_hold_any_character(here: Path) -> None:
    command = f"{Path(sys.executable).parent / 'softmaxce'} predict run -"
    folder = here / "odd"
    folder.mkdir()
    names = ["two\nlines.png", "cr\r\n.png", " blanks .png", "[a]*.png", "-", "--json", "'\".png"]
    for name in names:
        (folder / name).write_bytes((here / "images/red/00.png").read_bytes())
    find = "cd odd && find . -type f -print0 | sort -z"
    done = subprocess.run(
        ["bash", "-c", f"{find} | ({command.replace('run', '../run')} --null --json)"],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["path"] for line in done.stdout.splitlines()) == sorted(f"./{n}" for n in names)
    messages = {
        "printf 'a\\0b' | " + command: "the list of paths: has NUL characters; with --null (-0), paths end with them",
        f"printf 'a\\0\\0' | {command} -0": "the list of paths: has an empty name between two NUL characters",
        command.removesuffix("-") + "images -0": "--null: is about a list of paths on stdin; add - to read it",
    }
    for line, message in messages.items():
        done = subprocess.run(["bash", "-c", line], cwd=here, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_files_are_taken_only_as_far_ahead_as_is_decoded(here: Path) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "images/red/00.png"

    results = TrainedModel.open(Path("run"), batch_size=4).predict_files(endless())
    assert isinstance(next(results), Prediction)
    results.close()  # type: ignore[attr-defined]
    assert taken <= 4 * 4


def test_the_command_gives_what_the_function_gives_to_the_last_bit(app: typer.Typer, here: Path) -> None:
    files = [str(file) for file in sorted(Path("images").rglob("*.png"))]
    predictions = [p for p in TrainedModel.open(Path("run")).predict_files(files, top=3) if isinstance(p, Prediction)]
    expected = [(p.path, p.classes, p.probabilities) for p in predictions]
    assert len(expected) == len(files)
    found = []
    for line in predicted(app, "images", "--top", "3"):
        top = line["top"]
        assert isinstance(top, list)
        found.append((line["path"], tuple(e["class"] for e in top), tuple(e["probability"] for e in top)))
    assert found == expected


def test_what_is_imported_is_no_garbage_and_is_neither_numba_nor_the_compiler(here: Path) -> None:
    code = (
        "import gc, sys\nfrom softmaxce_cli.main import app\n"
        "try:\n    app(['predict', 'run', 'images/red/00.png'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000, {'numba', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "True True set()", done.stderr


def test_ctrl_c_ends_it_without_a_traceback(here: Path) -> None:
    command = [str(Path(sys.executable).parent / "softmaxce"), "predict", "run", "-"]
    with (
        subprocess.Popen(["yes", "images/red/00.png"], stdout=subprocess.PIPE) as endless,
        subprocess.Popen(
            command, cwd=here, stdin=endless.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith(b"images/red/00.png\n")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait() == 130
        endless.kill()


def test_a_grey_model_takes_colour_files(app: typer.Typer, here: Path) -> None:
    line = ["train", "-c", "colors.yaml", "--set", "data.channels=1", "--output", "grey", "--epochs", "1", "-q"]
    assert CliRunner().invoke(app, line).exit_code == 0
    done = CliRunner().invoke(app, ["predict", "grey", "images/red/00.png"])
    assert done.exit_code == 0, done.output


def test_paths_are_expanded_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/deep/1.jpg", "b/.hidden.png", "b/notes.txt", "a[1].png", "c.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list(image_files(["c.bmp", "b", "*.png", "a[1].png", "-", "b/**/*.jpg"], io.StringIO("b/notes.txt\n\nb\n")))
    below = ["b/2.png", "b/deep/1.jpg"]
    assert found == ["c.bmp", *below, "a[1].png", "a[1].png", "b/notes.txt", *below, "b/deep/1.jpg"]
    assert list(image_files(["x*"])) == [Unreadable("x*", "matches no file")]


def test_brackets_in_a_pattern_are_those_of_a_folder_that_exists_else_a_choice_of_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["it's ä [b]/1.jpg", "it's ä [b]/[c]/2.jpg", "it's ä [b]/c/3.jpg", "d/4.jpg", "d/5.jpg", "d/[d]6.jpg"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for folder in ("", f"{tmp_path}/"):
        for pattern, matches in {
            "it's ä [b]/*.jpg": files[:1],
            "it's ä [b]/[c]/*": files[1:2],
            "it's ä [b]/[ab]/*": [],
            "it's ä [b]/[bc]/*": files[2:3],
            "it's ä [b]/**/*.jpg": files[:3],
            "it's*/[[]c]/*": files[1:2],
            "[d]/[45].jpg": files[3:5],
            "[d]/[[]d]*": files[5:],
        }.items():
            found = [each for each in image_files([folder + pattern]) if not isinstance(each, Unreadable)]
            assert sorted(found) == sorted(folder + match for match in matches), pattern
    hint = "matches no file; in a pattern, write [[] for the character ["
    assert list(image_files(["x [e]/*"])) == [Unreadable("x [e]/*", hint)]


def test_probabilities_of_a_broken_model_are_null_in_json(app: typer.Typer, here: Path) -> None:
    from safetensors.torch import load_file

    from softmaxce.runs import checkpoint
    from softmaxce.runs.header import read_header

    sound = here / "run/best.safetensors"
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(sound).items()}
    (here / "nan.safetensors").write_bytes(checkpoint.serialized(broken, read_header(sound))[0])
    done = CliRunner().invoke(app, ["predict", "nan.safetensors", "images/red/00.png", "--json"])
    assert json.loads(done.stdout)["probability"] is None
