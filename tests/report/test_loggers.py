"""`train --log`: what TensorBoard, MLflow and W&B read from their own stores is what metrics.jsonl holds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import softmaxce
from softmaxce.errors import ConfigError
from softmaxce.report.loggers import background
from softmaxce.session import Reporter

LOGGERS = ("tensorboard", "mlflow", "wandb")
LOG = [word for name in LOGGERS for word in ("--log", name)]
CONFIG = """\
epochs: 100000
data: {name: synthetic, train: 2400, test: 40, batch_size: 8, validation: 0.25}
model: {name: mlp, hidden: [16], dropout: 0.2}
optimizer: {name: sgd, lr: 0.001}
"""
LOGGED = ("loss/train", "accuracy/train", "loss/validation", "accuracy/validation", "learning_rate")
Scalars = dict[str, list[tuple[int, float]]]  # by metric: (epoch, value), in the store's order


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which W&B finds no key, and no settings of the user's for it and for MLflow."""
    folder = tmp_path_factory.mktemp("it's a log é")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("NETRC", str(folder / "netrc"))
        for name in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder))
        yield folder


# -- each library's own reader ----------------------------------------------------------------------------------------


def of_tensorboard(run: Path) -> Scalars:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def mlflow_run(run: Path) -> tuple[Any, Any]:
    """The client of the run's store, and the one MLflow run in it."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("long").experiment_id])
    return client, found


def of_mlflow(run: Path) -> Scalars:
    client, found = mlflow_run(run)
    names = found.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)] for name in names}


def wandb_records(run: Path) -> list[dict[str, Any]]:
    """What `wandb leet inspect` shows of all of the run's offline folders."""
    pytest.importorskip("wandb")
    records = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        records += [json.loads(line) for line in shown.splitlines()]
    return records


def of_wandb(run: Path) -> Scalars:
    scalars: Scalars = {}
    for record in wandb_records(run):
        for name, value in record.get("history", {}).get("item", {}).items():
            if not name.startswith("_"):
                scalars.setdefault(name, []).append((record["history"]["step"]["num"], value))
    return scalars


# -- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(environment: Path) -> Path:
    """A run with every logger that was killed while they logged, and then resumed to its end."""
    folder = environment
    (folder / "long.yaml").write_text(CONFIG)
    run = folder / "runs" / "1"
    command = [str(Path(sys.executable).parent / "softmaxce"), "train"]
    new = [*command, "long.yaml", "--output", str(run), *LOG, "-q"]
    with subprocess.Popen(new, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        ids = [run / "mlflow.json", run / "wandb.json"]
        deadline = time.monotonic() + 90
        while not all(file.exists() for file in ids) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr
    done = len((run / "metrics.jsonl").read_text().splitlines())
    again = [*command, "--resume", str(run), "--epochs", str(done + 3), "--report", *LOG, "-q"]
    finished = subprocess.run(again, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert [line for line in finished.stderr.splitlines() if not line.startswith("report:")] == []
    return run


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}


@pytest.mark.parametrize("name", LOGGERS)
def test_every_epoch_of_a_run_that_was_killed_and_resumed_is_logged_once(resumed: Path, name: str) -> None:
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    expected = [background.metrics_of(line) for line in lines]
    scalars = READERS[name](resumed)
    for metric in LOGGED:
        steps = Counter(step for step, _ in scalars[metric])
        assert steps == dict.fromkeys(range(1, len(lines) + 1), 1)
        assert dict(scalars[metric]) == {i: pytest.approx(e[metric], rel=1e-6) for i, e in enumerate(expected, 1)}
    assert expected[0]["loss/train"] == lines[0]["train"]["loss"]


def test_the_final_metrics_the_config_the_checkpoint_and_the_report_are_logged(resumed: Path) -> None:
    record = json.loads((resumed / "run.json").read_text())
    epochs, accuracy = record["epochs"], record["test"]["accuracy"]
    files = {"best.safetensors", "config.yaml", "metrics.jsonl", "report.html", "run.json"}
    assert of_tensorboard(resumed)["final_accuracy/test"] == [(epochs, pytest.approx(accuracy, rel=1e-6))]
    client, found = mlflow_run(resumed)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["final_accuracy/test"] == accuracy
    assert (found.data.params["optimizer.lr"], found.data.params["model.hidden"]) == ("0.001", "[16]")
    assert {artifact.path for artifact in client.list_artifacts(found.info.run_id)} == files
    stored = resumed.parent / "mlartifacts" / found.info.run_id / "artifacts" / "best.safetensors"
    assert stored.read_bytes() == (resumed / "best.safetensors").read_bytes()
    records = wandb_records(resumed)
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert run["run_id"] == json.loads((resumed / "wandb.json").read_text())["id"]
    summary: dict[str, Any] = {}
    for each in records:
        summary |= each.get("summary", {}).get("update", {})
    assert summary["final_accuracy/test"] == accuracy
    text = json.dumps(records)
    assert all(name in text for name in files)
    assert '"optimizer"' in text


def test_a_finished_run_that_is_evaluated_again_adds_nothing(app: typer.Typer, resumed: Path) -> None:
    epochs = json.loads((resumed / "run.json").read_text())["epochs"]
    before = {name: READERS[name](resumed) for name in LOGGERS}
    time.sleep(1)  # TensorBoard orders its files by the second
    done = CliRunner().invoke(app, ["train", "--resume", str(resumed), "--epochs", str(epochs), *LOG, "-q"])
    assert done.exit_code == 0, done.output
    for name in LOGGERS:
        now = READERS[name](resumed)
        assert {metric: now[metric] for metric in LOGGED} == {metric: before[name][metric] for metric in LOGGED}
        assert all(len(values) == 1 for metric, values in now.items() if metric.startswith("final_"))


# -- failures ---------------------------------------------------------------------------------------------------------


def check_unharmed(run: Path, error_output: str, **reasons: str) -> None:
    """A run of two epochs is complete, and stderr has one warning for each logger."""
    warnings = sorted(line for line in error_output.splitlines() if line.startswith("warning: --log "))
    for warning, (name, reason) in zip(warnings, reasons.items(), strict=True):
        assert f"--log {name} failed: {reason}" in warning
        assert warning.endswith(f"softmaxce train --resume {run} --log {name}")
    assert "Traceback" not in error_output
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_loggers_that_cannot_be_imported_cost_a_warning_each(softmaxce: Any, small: Path) -> None:
    for name, text in (("mlflow", "raise RuntimeError('not today')"), ("wandb", "raise SystemExit")):
        (small.parent / "broken" / name).mkdir(parents=True)
        (small.parent / "broken" / name / "__init__.py").write_text(text)
    path, run = str(small.parent / "broken"), small.parent / "run"
    done = softmaxce("train", str(small), "--output", str(run), *LOG[2:], "--json", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    check_unharmed(run, done.stderr, mlflow="not today", wandb="SystemExit")
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["start", "epoch", "epoch", "end"]


def test_a_logger_that_cannot_start_costs_one_warning(
    app: typer.Typer, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    run = small.parent / "run"
    first = CliRunner().invoke(app, ["train", str(small), "--output", str(run), "--epochs", "1", "-q"])
    assert first.exit_code == 0
    (run / "tensorboard").write_text("mine")
    done = CliRunner().invoke(app, ["train", "--resume", str(run), "--epochs", "2", *LOG[:2], *LOG[4:], "-q"])
    assert done.exit_code == 0, done.output
    check_unharmed(
        run,
        done.stderr,
        tensorboard=f"{run}/tensorboard: is a link",
        wandb="WANDB_MODE is online, but there is no API key; run: wandb login",
    )
    assert (run / "tensorboard").read_text() == "mine"


def test_a_store_that_is_lost_while_the_run_trains_costs_one_warning(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    run = small.parent / "runs" / "run"

    class Loses(Reporter):
        """Puts a folder in the place of the database, once MLflow has opened it."""

        def epoch(self, epoch: Any) -> None:
            deadline = time.monotonic() + 60
            while epoch.number == 1 and not (run / "mlflow.json").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if epoch.number == 1:
                time.sleep(0.5)
                (run.parent / "mlflow.db").unlink()
                (run.parent / "mlflow.db").mkdir()

    outcome = softmaxce.train(small, output=run, reporters=[Loses()], log=["mlflow"])
    assert outcome.requirements_met
    check_unharmed(run, capsys.readouterr().err, mlflow="the database: ")


def test_a_server_that_never_answers_costs_one_warning_after_a_bounded_time(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(background, "TIMEOUT", 1.0)
    run = small.parent / "run"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        outcome = softmaxce.train(small, output=run, quiet=True, log=["mlflow"])
        assert time.monotonic() - began < 60
    assert outcome.status == "completed"
    check_unharmed(run, capsys.readouterr().err, mlflow="no answer for 1 s")


# -- before the run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing"),
    [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("mlflow", "alembic"), ("wandb", "wandb")],
)
def test_without_the_extra_one_line_says_what_to_install(
    app: typer.Typer, small: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as Python marks a module that is not there
    folder = small.parent / "run"
    done = CliRunner().invoke(app, ["train", "--config", str(small), "--output", str(folder), "--log", name])
    assert done.exit_code == 2
    assert done.stderr == f"error: --log {name}: needs {missing}; install with: pip install 'softmaxce[{name}]'\n"
    assert not folder.exists()


def test_from_python_the_names_are_checked_and_the_weights_are_those_of_a_run_without_loggers(small: Path) -> None:
    with pytest.raises(ConfigError, match="log wandbb: must be tensorboard, mlflow or wandb; did you"):
        softmaxce.train(small, log=["wandbb"])
    folder = small.parent
    softmaxce.train(small, output=folder / "plain", quiet=True)
    softmaxce.train(small, output=folder / "logged", quiet=True, log=LOGGERS)
    plain, logged = (softmaxce.load(folder / name).model.state_dict() for name in ("plain", "logged"))
    assert all(bool((plain[key] == logged[key]).all()) for key in plain)
    assert {step for step, _ in of_tensorboard(folder / "logged")["loss/train"]} == {1, 2}
