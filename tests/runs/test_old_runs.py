"""Run folders of an earlier version (before_packages/README.md): evaluated, used and resumed as by that version."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

HERE = Path(__file__).with_name("before_packages")
RUNS = ["digits", "folder"]


def expected(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / "expected" / name).read_text().splitlines()]


@pytest.fixture
def command(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in a copy of the old folders; the lines of JSON that it prints."""
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def assert_same(now: Any, before: Any) -> None:
    """Equal but for keys that are new, the rounding of another machine, and times."""
    if isinstance(before, dict):
        for key in before.keys() - {"images_per_second", "seconds", "run"}:
            assert_same(now[key], before[key])
    elif isinstance(before, list):
        assert len(now) == len(before)
        for one, other in zip(now, before, strict=True):
            assert_same(one, other)
    else:
        assert now == (pytest.approx(before, rel=1e-5) if isinstance(before, float) else before)


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_is_evaluated_on_the_same_images_to_the_same_metrics(run: str, split: str, command: Any) -> None:
    assert_same(command("eval", run, "--split", split), expected(f"{run}-{split}.json"))


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_predicts_the_same_probabilities(run: str, command: Any) -> None:
    assert_same(command("predict", run, "images", "--top", "10"), expected(f"{run}-predictions.jsonl"))


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_is_resumed_to_the_epoch_that_its_own_version_came_to(run: str, command: Any) -> None:
    assert_same(command("train", "--resume", run, "--epochs", "3")[-2:], expected(f"{run}-third-epoch.jsonl"))
    assert len(Path(run, "metrics.jsonl").read_text().splitlines()) == 3
