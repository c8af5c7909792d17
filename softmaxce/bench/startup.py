"""Start-up times: whole processes of the installed command, interleaved."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import RunError
from .clock import Spread, ratios, turns

BASE, HELP, MISTAKE, STEP, RUN = "typer and rich", "--help", "a config error", "the first step", "the whole run"
WRONG = "epochs: 1\ndata: {name: digits, batchsize: 64}\nmodel: linear\noptimizer: {name: sgd, lr: 0.1}\n"


@dataclass(frozen=True)
class Start:
    """Results of `measure`.

    Attributes:
        seconds: name -> duration of a whole process; for the first step, until its metrics are printed.
        to_base: name -> ratio to importing typer and rich, computed within each round.
    """

    seconds: dict[str, Spread]
    to_base: dict[str, Spread]


def measure(config: str, overrides: tuple[str, ...], rounds: int) -> Start:
    """Time Python importing typer and rich, `softmaxce --help`, a config error, and a run of one step.

    Args:
        config: a file or a recipe, for the run of one step.
        overrides: KEY=VALUE, as --set takes them.
        rounds: turns of each, at least 2.
    Raises: RunError if the run of one step fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder, "wrong.yaml")
        wrong.write_text(WRONG, encoding="utf-8")
        command = [sys.executable, "-c", "import sys; from softmaxce_cli.main import app; sys.exit(app())"]
        train = [*command, "train", "--config", config, "--json"]
        train += [word for text in overrides for word in ("--set", text)]
        first_steps: list[float] = []  # seconds, one per run

        def run() -> float:
            first, whole = _first_step(train, Path(tempfile.mkdtemp(dir=folder)))
            first_steps.append(first)
            return whole

        calls: dict[str, Callable[[], float]] = {
            BASE: partial(_process, [sys.executable, "-c", "import typer, rich"], 0),
            HELP: partial(_process, [*command, "--help"], 0),
            MISTAKE: partial(_process, [*command, "train", "--config", str(wrong)], 2),
            RUN: run,
        }
        for call in calls.values():  # fills the page cache and compiles the loss
            call()
        first_steps.clear()
        seconds = turns(calls, rounds)
    seconds = {**{name: seconds[name] for name in (BASE, HELP, MISTAKE)}, STEP: first_steps, RUN: seconds[RUN]}
    return Start(
        {name: Spread.of(times) for name, times in seconds.items()},
        {name: ratios(times, seconds[BASE]) for name, times in seconds.items()},
    )


def _process(command: list[str], status: int) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != status:
        raise RunError(f"{command[-1]} ended with exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return seconds


def _first_step(command: list[str], folder: Path) -> tuple[float, float]:
    """Run one step. Returns: seconds until its epoch is printed, and until the process ends."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = None
        for line in process.stdout:
            if first is None and '"event": "epoch"' in line:
                first = time.perf_counter() - start
        messages = process.stderr.read().strip()
    whole = time.perf_counter() - start
    if process.returncode or first is None:
        raise RunError(f"a run of one step ended with exit status {process.returncode}: {messages[-300:]}")
    return first, whole
