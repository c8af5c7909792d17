"""`train --seeds` and `sweep`: the same bits as single runs, no run trained twice, statistics as by hand."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from softmaxce.config.sweep import grid, parse_choices
from softmaxce.errors import ConfigError
from softmaxce.runs.listing import list_runs

CONFIG = """\
epochs: 2
data: {name: synthetic, train: 96, test: 60, noise: 0.8, batch_size: 32, validation: 0.25}
model: {name: mlp, hidden: [16]}
optimizer: {name: sgd, lr: 0.05}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def run(app: typer.Typer, *arguments: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == status, done.output
    return done


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_each_seed_gives_the_bits_of_its_own_run(app: typer.Typer, here: Path) -> None:
    run(app, "train", "-c", "c.yaml", "--seed", "3", "--seeds", "2", "--output", "s", "-q")
    assert sorted(folder.name for folder in (here / "s").iterdir()) == ["seed-3", "seed-4"]
    run(app, "train", "-c", "c.yaml", "--seed", "4", "--output", "alone", "-q")
    alone, among = (here / name / "best.safetensors" for name in ("alone", "s/seed-4"))
    assert alone.read_bytes() == among.read_bytes()


def test_mean_deviation_and_range_are_those_of_the_runs(app: typer.Typer, here: Path) -> None:
    *others, last = events(
        run(app, "train", "-c", "c.yaml", "--seeds", "3", "--set", "metrics=[macro_f1]", "--json").stdout
    )
    ends = [event["test"] for event in others if event["event"] == "end"]
    assert len(ends) == 3
    assert (last["event"], last["split"]) == ("seeds", "test")
    for name in ("loss", "accuracy", "macro_f1"):
        values = [end[name] for end in ends]
        assert last[name]["mean"] == pytest.approx(sum(values) / 3)
        assert last[name]["deviation"] == pytest.approx(statistics.stdev(values))
        assert (last[name]["min"], last[name]["max"]) == (min(values), max(values))
    assert {row["run"] for row in last["runs"]} == {f"runs/c/{number}" for number in (1, 2, 3)}


def test_the_same_command_with_resume_trains_nothing_twice(app: typer.Typer, here: Path) -> None:
    run(app, "train", "-c", "c.yaml", "--seed", "1", "-q")  # a single run counts too
    first = run(app, "train", "-c", "c.yaml", "--seeds", "3", "--resume", "auto")
    assert "[2/3] seed-1: already finished in runs/c/1" in first.stderr
    again = run(app, "train", "-c", "c.yaml", "--seeds", "3", "--resume", "auto")
    assert again.stderr.count("already finished") == 3
    assert again.stdout.splitlines()[-9:] == first.stdout.splitlines()[-9:]
    assert len(list((here / "runs/c").iterdir())) == 3


def test_an_interrupted_set_of_seeds_is_resumed_where_it_stopped(app: typer.Typer, here: Path) -> None:
    command = [str(Path(sys.executable).parent / "softmaxce"), "train", "-c", "c.yaml", "--seeds", "2", "--output", "s"]
    long = ["--epochs", "400", "--set", "data.train=2000"]
    process = subprocess.Popen(
        [*command, *long], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    metrics = here / "s/seed-0/metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 1:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resume all of them with the same command and --resume auto" in errors
    done = len(metrics.read_text().splitlines())
    line = [*command[1:], *long, "--resume", "auto", "--epochs", str(done + 1), "--json"]
    printed = events(run(app, *line).stdout)
    starts = [event["epochs_done"] for event in printed if event["event"] == "start"]
    first, second = starts
    assert done - 1 <= first <= done  # an epoch whose checkpoint was not written yet is repeated
    assert first > 0
    assert second == 0


# -- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "metric"),
    [(["best_metric=loss", "optimizer.lr=0.3,0.001,0.05"], "loss"),
     (["optimizer.lr=0.3,0.001,0.05"], "accuracy"),
     (["best_metric=worst_class_recall", "optimizer.lr=0.3,0.001,0.05"], "worst_class_recall"),
     (["best_metric=loss", "loss.label_smoothing=0,0.3", "optimizer.lr=0.001,0.05"], "accuracy")],
    ids=["loss", "accuracy", "another", "losses that cannot be compared"],
)  # fmt: skip
def test_a_sweep_ranks_by_its_best_metric_and_prints_it(
    app: typer.Typer, here: Path, options: list[str], metric: str
) -> None:
    line = ["sweep", "-c", "c.yaml", "--output", "s", *(word for option in options for word in ("--set", option))]
    comparison = events(run(app, *line, "--json").stdout)[-1]
    assert comparison["ranked_by"] == f"validation {metric}"
    values = []
    for row in comparison["runs"]:
        epochs = events((here / row["run"] / "metrics.jsonl").read_text())
        (best,) = [epoch["validation"] for epoch in epochs if epoch["epoch"] == row["epoch"]]
        assert row["validation"] == best
        values.append(best[metric])
    assert values == sorted(values, reverse=metric != "loss")
    printed = run(app, *line, "--resume", "auto", "-q").stdout.splitlines()
    start = printed.index(f"ranked by validation {metric}")
    rows = printed[start + 3 : start + 3 + len(values)]
    column = {"loss": 2, "accuracy": 3}.get(metric, 4)
    assert [row.split()[column] for row in rows] == [f"{value:.4f}" for value in values]


def test_a_sweep_is_every_combination_and_ends_with_the_comparison(app: typer.Typer, here: Path) -> None:
    line = [
        "sweep",
        "-c",
        "c.yaml",
        "--set",
        "optimizer.lr=0.05,0.000001",
        "--set",
        "model=mlp,linear",
        "--output",
        "g",
    ]
    done = run(app, *line, "--json")
    comparison = events(done.stdout)[-1]
    assert comparison["event"] == "comparison"
    names = {f"g/lr={lr},model={model}" for lr, model in product(("0.05", "1e-06"), ("mlp", "linear"))}
    assert {row["run"] for row in comparison["runs"]} == names
    rows = {str(row.folder): row for row in list_runs(Path("g"))[0]}
    order = [rows[row["run"]].validation for row in comparison["runs"]]
    assert order == sorted(order, reverse=True)  # type: ignore[type-var]
    again = run(app, *line, "--resume", "auto", "-q")
    assert again.stderr.count("already finished") == 4
    assert "McNemar's exact test" in again.stdout
    run(app, *line, status=2)  # the folders are in use


def test_a_run_that_fails_does_not_keep_the_others_from_being_trained(app: typer.Typer, here: Path) -> None:
    done = run(app, "sweep", "-c", "c.yaml", "--set", "optimizer.lr=1e30,0.05,0.01", "-q", status=1)
    assert "[1/3] lr=1e+30: failed: the training loss is" in done.stderr
    assert "2 vs 1: 2 is right on" in done.stdout
    assert [row.status for row in list_runs()[0]].count("completed") == 2


def test_a_requirement_holds_for_every_run(app: typer.Typer, here: Path) -> None:
    line = ["train", "-c", "c.yaml", "--seeds", "2", "-q", "--require"]
    run(app, *line, "accuracy>=0")
    run(app, *line, "loss<0", status=1)


def test_a_mistake_in_one_combination_is_reported_before_any_is_trained(app: typer.Typer, here: Path) -> None:
    done = run(app, "sweep", "-c", "c.yaml", "--set", "model=mlp,mpl", "--set", "optimizer.lr=0.1,fast", status=2)
    assert done.stderr.splitlines() == [
        "error: --set optimizer.lr=fast: lr must be a number of at least 0, got 'fast'",
        "error: --set model=mpl: there is no 'mpl' among the models; did you mean 'mlp'?",
    ]
    assert not (here / "runs").exists()


def test_what_one_combination_cannot_be_built_with_is_reported_before_any_is_trained(
    app: typer.Typer, here: Path
) -> None:
    line = ["sweep", "-c", "c.yaml", "--set", "loss.weight=[1,2],null", "--set", "model=mlp,lenet"]
    done = run(app, *line, "--set", "data.size=8", "-q", status=2)
    rule = "weight must have one number for each of the 10 classes, got 2"
    assert done.stderr.splitlines() == [
        f"error: --set loss.weight=[1, 2]: softmax_cross_entropy: {rule}",
        "error: --set model=lenet: lenet: images must be at least 12x12, got 8x8",
    ]
    assert not (here / "runs").exists()
    done = run(app, "sweep", "-c", "c.yaml", "--set", "data.validation=0.1,95,94", "-q", status=2)
    assert done.stderr.splitlines() == [
        f"error: --set data.validation={count}: {count} of 96 images would leave a class without training images; "
        "86 is the most"
        for count in (95, 94)
    ]
    done = run(
        app, "sweep", "-c", "c.yaml", "--set", "seed=1,2", "--set", "data={name: image_folder, root: no}", status=2
    )
    assert len(done.stderr.splitlines()) == 1  # what all points have is reported once
    assert not (here / "runs").exists()


def test_no_two_points_share_a_folder_and_equal_points_are_one(here: Path) -> None:
    (here / "net.py").write_text("from torch import nn\n\nclass Net(nn.Module): ...\n\nclass NET(nn.Module): ...\n")
    for axis, number in {
        "optimizer.lr=1e-3,0.001,1.0e-3,0.01": 2,
        "data.batch_size=32,3.2e1": 1,
        "data.root='a:b','a/b','a b'": 3,
        "model='net.py:Net','net.py:NET'": 2,
        f"data.root={'x' * 120}1,{'x' * 120}2": 2,
        "data.root='null',null": 2,
    }.items():
        points = grid("c.yaml", [axis])
        assert len({point.folder_name.casefold() for point in points}) == len(points) == number, axis
        assert [point.folder_name for point in grid("c.yaml", [axis])] == [point.folder_name for point in points]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["sweep", "-c", "c.yaml", "--set", "epochs="], "needs a value, or several between commas"),
        (["sweep", "-c", "c.yaml", "--set", "epochs=1", "--set", "epochs=2"], "put all its values into one --set"),
        (["sweep", "-c", "c.yaml", "--set", "epochs"], "write it as key=value"),
        (["sweep", "-c", "c.yaml", "--set", "epochs=1,2", "--resume", "runs/c/1"], "with several runs must be auto"),
        (["train", "-c", "c.yaml", "--seeds", "2", "--dry-run"], "tries one config"),
        (["eval", "--temperature", "1e-320"], "must be a number from 1e-06 to 1e+06, got "),
        (["predict", "x.png", "--temperature", "1e300"], "must be a number from 1e-06 to 1e+06, got 1e+300"),
        (["train", "--seeds", "2"], "is required: a YAML file or a recipe's name"),
    ],
)
def test_what_makes_no_sense_is_refused(app: typer.Typer, here: Path, arguments: list[str], answer: str) -> None:
    done = run(app, *arguments, status=2)
    assert answer in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_values_are_read_as_a_yaml_list_reads_them() -> None:
    text = "model={name: mlp, hidden: [16, 8]}, linear, net.py:Net"
    assert [choice.value for choice in parse_choices(text)] == [
        {"name": "mlp", "hidden": [16, 8]},
        "linear",
        "net.py:Net",
    ]
    assert [choice.value for choice in parse_choices("data.augment=[]")] == [[]]
    assert [choice.value for choice in parse_choices("optimizer.lr=3e-4,1")] == [0.0003, 1]


def test_too_many_runs_are_refused(here: Path) -> None:
    values = ",".join(map(str, range(40)))
    with pytest.raises(ConfigError, match="requests 1,600 runs"):
        grid("c.yaml", [f"seed={values}", f"epochs={values}"])
