"""Training in `bench gpu`: images per second of recipes, and the time to an accuracy."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import reader as configs
from ..config.keys import Config
from ..errors import DataError
from ..training.loop import untracked
from ..training.run import Run
from . import throughput
from .gpu import Report

COMMAND = [sys.executable, "-c", "import sys; from softmaxce_cli.main import app; sys.exit(app())"]
AIRBENCH_RUN = re.compile(r"^\|(?:[^|]*\|){4}\s*(0\.\d+)\s*\|\s*(\d+\.\d+)\s*\|\s*$")  # a row with an accuracy with tta
POLL = 0.2  # seconds


def throughput_of(
    report: Report, recipes: Mapping[str, Mapping[str, Sequence[str]]], rounds: int, plain_batches: int | None
) -> None:
    """Images per second of recipes' training, as `bench train` measures it. A row per recipe.

    `recipe`; `images`, the name of the data set; `precision`; `batch_size`; `cuda_graph`, whether the steps are
    captured; and for `softmaxce`, `ceiling` and `plain`, see throughput.MEANINGS, `images_per_second`, and of
    softmaxce the ratios `to_ceiling` and `to_plain`.

    Args:
        report: where the results go.
        recipes: name -> `overrides`, as --set takes them, and `stand_in`, those for data.name=synthetic where the
            recipe's data set is not here.
        rounds: of measuring, at least 2.
        plain_batches: of plain PyTorch in a round, at most.
    """
    for name, settings in recipes.items():
        with report.errors_of(name):
            config = _load(name, settings["overrides"])
            try:
                measured, run = _measure(config, rounds, plain_batches)
            except DataError:  # the shape of the images is what counts
                report.note(f"{name}: synthetic images of the same shape, as the data set is not in {config.root}")
                config = _load(name, ["data.name=synthetic", *settings["stand_in"], *settings["overrides"]])
                measured, run = _measure(config, rounds, plain_batches)
            if measured.left_out:
                report.note(f"{name}: plain PyTorch leaves out {', '.join(measured.left_out)}")
            training = measured.training
            rates = {key: {"images_per_second": spread.median} for key, spread in training.rates.items()}
            report.row(
                recipe=name,
                images=config.source.name,
                precision=measured.precision,
                batch_size=measured.batch_size,
                cuda_graph=run.static_step is not None,
                to_ceiling=training.to_ceiling[throughput.OURS].median,
                to_plain=training.to_plain[throughput.OURS].median,
                **rates,
            )


def _load(recipe: str, overrides: Sequence[str]) -> Config:
    return configs.load(recipe, [configs.parse_override(text) for text in overrides])


def _measure(config: Config, rounds: int, plain_batches: int | None) -> tuple[throughput.Loop, Run]:
    runs: list[Run] = []
    measured = throughput.measure(config, untracked, runs.append, lambda epoch: None, rounds, plain_batches)
    return measured, runs[0]


# -- the time to an accuracy ------------------------------------------------------------------------------------------


def time_to_accuracy(
    report: Report,
    recipe: str,
    overrides: Sequence[str],
    target: float,
    runs: int,
    airbench: str | None,
    deadline: float,
) -> None:
    """Train a recipe with several seeds as `softmaxce train` does. A row per run.

    `program`; `run`, its seed or number; `accuracy` of the test images; `reached`, whether that is the target;
    `training_seconds`, of all epochs with their evaluations for softmaxce, and what airbench prints for airbench,
    which is without the evaluations after its epochs; `process_seconds`, with start-up and reading, for softmaxce.

    Args:
        report: where the results go.
        recipe: its name, or a file.
        overrides: as --set takes them.
        target: the accuracy.
        runs: of each program, at most; no further one begins if the time would not do.
        airbench: the file airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, to run it too.
        deadline: the end of its time, as time.time() counts.
    """
    config = _load(recipe, overrides)
    if config.source.name == "cifar10" and not config.is_in(config.root):
        report.left_out(f"left out: CIFAR-10 is not in {config.root}; $SOFTMAXCE_DATA names the folder that has it")
        return
    if airbench is None:
        report.note("airbench94_muon.py is left out: --airbench FILE names it")
    # Half of the time is airbench's, whose torch.compile takes most of it.
    half = (time.time() + deadline) / 2 if airbench is not None else deadline
    last = 0.0
    for seed in range(runs):
        if seed and time.time() + last > half:
            report.note(f"{seed} of {runs} seeds: there was no time for more")
            break
        began = time.time()
        accuracy, taken = _train(recipe, [*overrides, f"seed={seed}"])
        last = time.time() - began
        report.row(
            program=f"softmaxce {recipe}",
            run=seed,
            accuracy=accuracy,
            reached=accuracy >= target,
            training_seconds=taken,
            process_seconds=last,
        )
    if airbench is not None:
        _airbench(report, Path(airbench), config.root, target, runs, deadline)


def _train(recipe: str, overrides: Sequence[str]) -> tuple[float, float]:
    """One run of the command. Returns: the accuracy of the test images, and the seconds of its epochs."""
    events = train_events("--config", recipe, *(word for text in overrides for word in ("--set", text)))
    taken = sum(event["seconds"] for event in events if event["event"] == "epoch")
    return float(events[-1]["test"]["accuracy"]), taken


def train_events(*arguments: str) -> list[dict[str, Any]]:
    """What `softmaxce train --json` prints, in a process and a run folder of its own. Raises: RuntimeError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMMAND, "train", *arguments, "--json", "--output", str(Path(folder, "run"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        raise RuntimeError(f"softmaxce train ended with exit status {done.returncode}: {last}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _airbench(report: Report, file: Path, root: Path, target: float, runs: int, deadline: float) -> None:
    """Run the public program on the data that are here, until it has printed some runs or the time is over."""
    if not file.is_file():
        report.failed(f"{file}: there is no such file")
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "cifar10")  # where it looks, and writes; it downloads what is not there
        data.mkdir()
        data.joinpath("cifar-10-batches-py").symlink_to((root / "cifar-10-batches-py").absolute())
        printed, errors = Path(folder, "stdout"), Path(folder, "stderr")
        with printed.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen([sys.executable, str(file)], cwd=folder, stdout=out, stderr=err)
            try:
                while process.poll() is None and time.time() < deadline - 1 and len(_airbench_runs(printed)) < runs:
                    time.sleep(POLL)
            finally:
                process.kill()
                process.wait()
        measured = _airbench_runs(printed)[:runs]
        for number, (accuracy, taken) in enumerate(measured):
            report.row(
                program=file.stem,
                run=number,
                accuracy=accuracy,
                reached=accuracy >= target,
                training_seconds=taken,
                process_seconds=None,
            )
        if not measured:
            last = (errors.read_text("utf-8", errors="replace").strip().splitlines() or ["it printed no result"])[-1]
            report.failed(f"{file.name}: no run in its share of the time: {last}")
        elif len(measured) < runs:
            report.note(f"{len(measured)} of {runs} runs of {file.name}: there was no time for more")


def _airbench_runs(printed: Path) -> list[tuple[float, float]]:
    """Accuracy and seconds of each run that it has printed; its first is a warm-up with random labels."""
    rows = [match for line in printed.read_text("utf-8").splitlines() if (match := AIRBENCH_RUN.match(line))]
    return [(float(match[1]), float(match[2])) for match in rows[1:]]
