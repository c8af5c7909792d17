"""Comparisons against SciPy's and hand calculations, and the lists and pages that show them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.stats import binom
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner

from softmaxce.config.reader import Override, load
from softmaxce.inference.compare import by_seed, compare, holm, mcnemar, summary_statistics
from softmaxce.report.comparison import conclusions
from softmaxce.report.html.comparison_page import html
from softmaxce.runs.listing import differing, list_runs
from softmaxce.runs.resume import TrainedRun

from ..browser import Browser
from ..helpers import Softmaxce

HARD = """\
epochs: 2
data: {name: synthetic, train: 300, test: 240, classes: 6, noise: 0.9, batch_size: 32, validation: 0.2}
model: {name: mlp, hidden: [16]}
optimizer: {name: adam, lr: 0.01}
"""
RUNS = {
    "base": [],
    "slow": ["--set", "optimizer.lr=0.00001"],
    "linear": ["--set", "model=linear"],
    "other": ["--set", "data.noise=0.8"],
}


@pytest.fixture(scope="module")
def folder_of_runs(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs under runs/hard, on a data set that is hard enough for mistakes."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "hard.yaml").write_text(HARD)
    for name, options in RUNS.items():
        line = ["train", "-c", str(folder / "hard.yaml"), "--output", str(folder / "runs" / "hard" / name), *options]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
    return folder / "runs" / "hard"


# -- the test of a difference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 11), (40, 40), (180, 17)])
def test_mcnemar_is_the_two_tails_of_a_fair_coin(only_first: int, only_second: int) -> None:
    both = np.ones(50, dtype=bool)
    first = np.concatenate([both, np.ones(only_first, bool), np.zeros(only_second, bool), ~both])
    second = np.concatenate([both, np.zeros(only_first, bool), np.ones(only_second, bool), ~both])
    test = mcnemar(first, second)
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1)) / 2**total
    assert (test.only_first, test.only_second) == (only_first, only_second)
    assert test.p == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(second, first).p == test.p


def test_under_chance_mcnemar_cries_wolf_no_more_often_than_its_level() -> None:
    sizes = binom(30, 0.5)
    false_alarms = sum(sizes.pmf(k) for k in range(31) if mcnemar(np.arange(30) < k, np.arange(30) >= k).p <= 0.05)
    assert 0 < false_alarms <= 0.05


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]  # 0.05/3, then 0.03 > 0.05/2
    assert holm([0.04]) == [True]
    assert holm([0.04, None]) == [True, None]
    assert holm([0.02, 0.01]) == [True, True]
    assert holm([]) == []


def test_mean_and_deviation_by_hand() -> None:
    assert summary_statistics([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7), 1.0, 6.0))


# -- configs ----------------------------------------------------------------------------------------------------------


def test_only_the_keys_that_differ_are_reported() -> None:
    a = {"seed": 0, "model": {"name": "mlp", "hidden": [16]}, "epochs": 3}
    b = {"seed": 0, "model": {"name": "linear"}, "epochs": 3}
    assert differing([a, b]) == {"model.name": ["mlp", "linear"], "model.hidden": [[16], None]}


def test_groups_differ_by_seed_and_what_changes_no_metrics_alone(tmp_path: Path) -> None:
    def trained(data_set: str, **changes: object) -> TrainedRun:
        overrides = [Override(tuple(key.split("__")), value, key) for key, value in changes.items()]
        record = {"environment": {"data_set": {"train": data_set, "test": "pixels:t"}}}
        return TrainedRun(load("digits", overrides), record)

    base, longer = trained("pixels:1"), trained("pixels:1", epochs=4)
    again = trained("pixels:1", seed=1, device="cuda", data__root="/data", keep_memory=False)
    other_images = trained("pixels:2", seed=2)
    assert by_seed([base, longer, again, trained("pixels:1", epochs=4, seed=9), other_images]) == [[0, 2], [1, 3], [4]]


# -- whole runs -------------------------------------------------------------------------------------------------------


def test_metrics_and_differences_are_those_of_eval_and_of_the_correct_images(
    app: typer.Typer, folder_of_runs: Path
) -> None:
    found = compare([folder_of_runs / "base", folder_of_runs / "slow", folder_of_runs / "linear"])
    for run in found.runs:
        printed = json.loads(CliRunner().invoke(app, ["eval", str(run.folder), "--json"]).stdout)
        assert run.metrics == {name: printed[name] for name in ("accuracy", "nll", "brier", "ece")}
        assert accuracy_score(np.ones(run.images), run.correct) == pytest.approx(run.metrics["accuracy"])
    assert set(found.keys) == {"optimizer.lr", "model.name", "model.hidden", "model.dropout"}
    first, second = found.tests
    assert first is not None
    assert second is not None
    for test, run in zip((first, second), found.runs[1:], strict=True):
        gained = round((run.metrics["accuracy"] - found.runs[0].metrics["accuracy"]) * run.images)
        assert test.only_second - test.only_first == gained
    assert found.significant[0] is True  # hardly trained
    assert " significant (p = " in conclusions(found)[0]


def test_a_run_does_not_differ_from_itself(folder_of_runs: Path) -> None:
    found = compare([folder_of_runs / "base", folder_of_runs / "base"])
    assert found.keys == {}
    assert found.tests == (None,)
    assert conclusions(found) == ["1 and 2 have the same seed and images, and differ in nothing else."]


def test_runs_differ_by_seed_alone_only_where_nothing_else_does(
    app: typer.Typer, folder_of_runs: Path, tmp_path: Path
) -> None:
    changes = {
        "seeded": ["--seed", "3"],
        "elsewhere": ["--set", "data.root=elsewhere"],
        "seeded_elsewhere": ["--seed", "4", "--set", "data.root=elsewhere", "--set", "data.eval_batch_size=50"],
    }
    digits = "epochs: 1\ndata: {name: digits, validation: 0.1}\nmodel: linear\noptimizer: {name: sgd, lr: 0.1}\n"
    (tmp_path / "d.yaml").write_text(digits)
    for name, options in {"base": [], "again": [], **changes}.items():
        line = ["train", "-c", str(tmp_path / "d.yaml"), "-q", "--output", str(tmp_path / name), *options]
        assert CliRunner().invoke(app, line).exit_code == 0

    def sentences(*names: str) -> list[str]:
        found = conclusions(compare([tmp_path / name for name in names]))
        return [line.partition(":")[0].rstrip(".") for line in found if " differ " in line]

    assert sentences("base", "again") == ["1 and 2 have the same seed and images, and differ in nothing else"]
    assert sentences("base", "seeded") == ["1 and 2 differ only by seed"]
    assert sentences("base", "elsewhere") == ["1 and 2 have the same seed and images, and differ only in data.root"]
    assert sentences("base", "again", "seeded") == ["1 and 3 differ only by seed", *sentences("base", "again")]
    also = "1 and 2 differ by seed and in data.root and data.eval_batch_size"
    assert sentences("base", "seeded_elsewhere") == [also]
    record = json.loads((tmp_path / "seeded/run.json").read_text())
    record["environment"]["torch"] = "1.13.1"
    (tmp_path / "seeded/run.json").write_text(json.dumps(record))
    assert sentences("base", "seeded") == ["1 and 2 differ by seed and in torch"]

    (tmp_path / "again/calibration.json").write_text(json.dumps({"temperature": 0.574, "epoch": 1}))
    assert sentences("base", "again") == ["1 and 2 have the same seed and images, and differ only in the temperature"]
    printed = CliRunner().invoke(app, ["compare", str(tmp_path / "base"), str(tmp_path / "again"), "--json"])
    assert [row["temperature"] for row in json.loads(printed.stdout)["runs"]] == [1.0, 0.574]
    said = conclusions(compare([tmp_path / "base", tmp_path / "again"]))
    assert [line[0] for line in said if "temperature 0.574 (softmaxce calibrate)" in line] == ["2"]


def test_runs_on_other_test_images_are_not_tested_against_each_other(folder_of_runs: Path) -> None:
    found = compare([folder_of_runs / "base", folder_of_runs / "other"])
    assert found.tests == (None,)
    assert conclusions(found) == ["2 and 1 were not evaluated on the same images: no significance test."]


def test_the_printed_comparison_fits_80_columns_and_json_holds_it_all(app: typer.Typer, folder_of_runs: Path) -> None:
    line = ["compare", *[str(folder_of_runs / name) for name in ("base", "slow", "linear")]]
    printed = CliRunner().invoke(app, line)
    assert printed.exit_code == 0, printed.output
    table = printed.stdout.partition("McNemar")[0].splitlines()
    assert max(len(row.rstrip()) for row in table if " vs 1: " not in row and "/" not in row) <= 80
    printed = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert [row["run"] for row in printed["runs"]] == line[1:]
    assert printed["runs"][1]["mcnemar"]["larger_than_chance"] is True
    assert printed["config"]["model.name"] == ["mlp", "mlp", "linear"]


def test_the_page_is_self_contained_and_escapes_names(app: typer.Typer, folder_of_runs: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>odd & sons"
    odd.symlink_to(folder_of_runs / "linear")
    page = tmp_path / "compare.html"
    done = CliRunner().invoke(app, ["compare", str(folder_of_runs / "base"), str(odd), "--html", str(page)])
    assert done.exit_code == 0, done.output
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert "<b>odd & sons" in browser.evaluate("document.body.textContent")
        assert browser.evaluate("document.querySelectorAll('b').length") == 0
        assert browser.evaluate("document.images.length") == 2
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        browser.resize(375, 800)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 375
        assert [address for address in browser.requests if not address.startswith("data:")] == [page.as_uri()]
        assert browser.problems == []
    found = compare([folder_of_runs / "base", folder_of_runs / "linear"])
    assert html(found) == html(found)


def test_one_run_is_nothing_to_compare(app: typer.Typer, folder_of_runs: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(folder_of_runs / "base")])
    assert done.exit_code == 2
    assert "takes two runs or more" in done.stderr


# -- the list ---------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_with_what_they_came_to(app: typer.Typer, folder_of_runs: Path) -> None:
    rows, wrong = list_runs(folder_of_runs.parent)
    assert wrong == []
    assert [row.started for row in rows] == sorted((row.started for row in rows), reverse=True)
    by_name = {row.folder.name: row for row in rows}
    assert set(by_name) == set(RUNS)
    row = by_name["linear"]
    assert (row.model, row.loss, row.recipe, row.status) == ("linear", "softmax_cross_entropy", "hard", "completed")
    assert (row.epochs_done, row.epochs) == (2, 2)
    printed = json.loads(CliRunner().invoke(app, ["eval", str(row.folder), "--json"]).stdout)
    assert row.test == pytest.approx(printed["accuracy"], abs=1e-12)
    best = max(
        json.loads(line)["validation"]["accuracy"] for line in (row.folder / "metrics.jsonl").read_text().splitlines()
    )
    assert row.validation == best


def test_the_list_is_a_line_a_run_and_names_what_it_cannot_read(
    softmaxce: Softmaxce, folder_of_runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    for folder in folder_of_runs.iterdir():
        (tmp_path / "runs" / folder.name).symlink_to(folder)
    copies = tmp_path / "copies" / "hard"
    for folder in folder_of_runs.iterdir():
        (copies / folder.name).mkdir(parents=True)
        for name in ("run.json", "config.yaml", "metrics.jsonl"):
            (copies / folder.name / name).write_bytes((folder / name).read_bytes())
    (copies / "slow" / "run.json").write_text("{")
    (copies / "linear" / "config.yaml").write_text("epochs: [")
    done = softmaxce("runs", "copies")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2 + 3
    assert done.stderr.startswith("warning: skipped copies/hard/slow/run.json: is damaged")
    lines = [json.loads(line) for line in softmaxce("runs", "copies", "--json").stdout.splitlines()]
    assert {line["folder"] for line in lines} == {f"copies/hard/{name}" for name in ("base", "linear", "other")}
    missing = softmaxce("runs", "nowhere")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("error: there is no folder nowhere here")
