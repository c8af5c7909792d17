"""softmaxce's training against the arithmetic it has to do, and against the plain PyTorch way: images a second."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..build import build_run
from ..config.keys import Config
from ..data.batches import Batch, Batches
from ..errors import RunError
from ..losses.interface import to_scalar
from ..runs import checkpoint
from ..runs import folder as runfolder
from ..runtime.device import autocast
from ..runtime.signals import Every, Pauses, Signals
from ..training.evaluation import evaluate_epoch
from ..training.loop import train_epoch
from ..training.run import Epoch, Run
from ..training.step import TrainingStep
from ..training.tally import Scores
from .clock import Spread, clock_for, ratios, turns
from .memory import peak_resident

CEILING, OURS, PLAIN = "ceiling", "softmaxce", "plain"
MEANINGS = {
    CEILING: "the same model, precision and optimizer on one batch again and again: no data, no figures",
    OURS: "what softmaxce train does, with its table, its checks, its bar and its checkpoint every epoch",
    PLAIN: "torchvision's data set and transforms, DataLoader, nn.CrossEntropyLoss, float32, the optimizer not fused",
}
TURN = 1.0  # seconds that a turn of the ceiling takes, about


@dataclass(frozen=True)
class Ways:
    """Images a second of several ways, and what each comes to beside the others.

    Attributes:
        rates: name -> images a second.
        to_ceiling: name -> the ratio to the ceiling's, taken in each round.
        to_plain: name -> the ratio to the plain way's.
    """

    rates: dict[str, Spread]
    to_ceiling: dict[str, Spread]
    to_plain: dict[str, Spread]

    @classmethod
    def of(cls, rates: Mapping[str, Sequence[float]]) -> "Ways":
        """From each round's images a second."""
        return cls(
            {name: Spread.of(found) for name, found in rates.items()},
            {name: ratios(found, rates[CEILING]) for name, found in rates.items()},
            {name: ratios(found, rates[PLAIN]) for name, found in rates.items()},
        )


@dataclass(frozen=True)
class Loop:
    """What was measured of one config.

    Attributes:
        training: of whole epochs; for softmaxce with the table's row and the checkpoint, without the evaluation.
        evaluation: of the split that is looked at after every epoch.
        epoch: where the seconds of one of softmaxce's epochs go, by name, evaluation included.
        memory: the most bytes that softmaxce's process and the plain one had in memory; None where that is not known.
        batch_size: images a step, for all.
        evaluation_batch_size: images at once in evaluation, for all.
        batches: that a turn of training has.
        device: where.
        threads: that PyTorch uses on the CPU.
        precision: what softmaxce and the ceiling compute in.
        left_out: what the plain way does not do.
    """

    training: Ways
    evaluation: Ways
    epoch: dict[str, float]
    memory: dict[str, int] | None
    batch_size: int
    evaluation_batch_size: int
    batches: int
    device: torch.device
    threads: int
    precision: str
    left_out: tuple[str, ...]


def measure(
    config: Config,
    track: Callable[[Iterable[Batch], int, int], Iterable[Batch]],
    expect: Callable[[Run], None],
    row: Callable[[Epoch], None],
    rounds: int,
) -> Loop:
    """Train in turns: the fixed batch, softmaxce's own loop, and the plain way in a process of its own.

    Args:
        config: what `softmaxce train` would train.
        track, expect, row: what a table does with an epoch's batches, with the run, and with an epoch.
        rounds: how often each has its turn, at least 2.
    Raises: as build_run; RunError if the plain way fails.
    """
    run = build_run(config)
    with PlainProcess(run) as plain, tempfile.TemporaryDirectory() as folder:
        expect(run)
        left_out = plain.answer({"rounds": rounds})["left_out"]
        return _Measurement(run, plain, track, row, Path(folder)).loop(rounds, tuple(left_out))


class PlainProcess:
    """The plain way, in a process of its own: softmaxce sets up the one it trains in for its own loop."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __enter__(self) -> "PlainProcess":
        environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-m", "softmaxce.bench.plain_pytorch"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        run = self.run
        about = {
            "shape": run.preprocessing.shape,
            "mean": run.preprocessing.mean,
            "std": run.preprocessing.std,
            "classes": len(run.classes),
            "device": str(run.device),
            "train": run.train.num_images,
            "held_out": held_out(run).num_images,
            "test": held_out(run) is run.test,
        }
        self._send({"config": run.config.to_dict(), "recipe": run.config.recipe, "about": about})
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed() from None

    def _failed(self) -> RunError:
        assert self.process.stderr is not None
        lines = self.process.stderr.read().strip().splitlines() or ["it ended without a word"]
        return RunError(f"the plain PyTorch way cannot train this: {lines[-1]}")

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask it for something, and wait. Raises: RunError with its last words, if it has died."""
        self._send(message)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed()
        found: dict[str, Any] = json.loads(line)
        return found


def held_out(run: Run) -> Batches:
    """The split that is looked at after every epoch; the training images, if there is no other."""
    return run.validation or run.test or run.train


class _Measurement:
    """One run, and the turns it is measured in."""

    def __init__(
        self,
        run: Run,
        plain: PlainProcess,
        track: Callable[[Iterable[Batch], int, int], Iterable[Batch]],
        row: Callable[[Epoch], None],
        folder: Path,
    ) -> None:
        self.run, self.plain, self.track, self.row, self.folder = run, plain, track, row, folder
        self.pauses = Pauses(Every(), Signals())
        self.clock = clock_for(run.device, torch.get_num_threads())
        self.number = 0  # of the epoch, for its order
        self.scores = Scores(0.0, 0.0, 1)
        self.images, self.labels = next(iter(run.train.epoch(1)))
        self.held_out = held_out(run)
        with torch.inference_mode():
            self.shown = next(iter(self.held_out.epoch(0)))[0]

    def loop(self, rounds: int, left_out: tuple[str, ...]) -> Loop:
        self.batches = len(self.run.train)
        self.batches = _how_many(self._ceiling, self.batches) // self.run.config.grad_accum_steps or 1
        self.batches *= self.run.config.grad_accum_steps
        size = len(self.shown)
        whole = max(1, self.held_out.num_images // size)  # batches
        chosen = _how_many(self._shown, whole)
        self.part = self._first(chosen * size)
        for warm in (self._loop, self._end, self._evaluation):
            warm()
        self.plain.answer({"train": self.batches})
        self.plain.answer({"evaluate": chosen})
        calls: dict[str, Callable[[], float]] = {
            CEILING: lambda: self._ceiling(self.batches),
            OURS: self._loop,
            "end": self._end,
            PLAIN: lambda: float(self.plain.answer({"train": self.batches})["seconds"]),
        }
        seconds = turns(calls, rounds)
        images = len(self.images) * self.batches
        share = len(self.run.train) / self.batches  # turns an epoch
        rates = {name: [images / taken for taken in seconds[name]] for name in (CEILING, PLAIN)}
        rates[OURS] = [images * share / (a * share + b) for a, b in zip(seconds[OURS], seconds["end"], strict=True)]
        again = max(1, round(TURN / 2 / self._evaluation()))  # a few batches are over in a moment
        calls = {
            CEILING: lambda: sum(self._shown(chosen) for _ in range(again)) / again,
            OURS: lambda: sum(self._evaluation() for _ in range(again)) / again,
            PLAIN: lambda: float(self.plain.answer({"evaluate": chosen})["seconds"]),
        }
        looks = turns(calls, rounds)
        epoch = self._parts(Spread.of(seconds[OURS]).median / self.batches)
        epoch["evaluation"] = Spread.of(looks[OURS]).median / (chosen * size) * self.held_out.num_images
        epoch["table and checkpoint"] = Spread.of(seconds["end"]).median
        return Loop(
            training=Ways.of({name: rates[name] for name in (CEILING, OURS, PLAIN)}),
            evaluation=Ways.of({name: [chosen * size / taken for taken in found] for name, found in looks.items()}),
            epoch=epoch,
            memory=self._memory(),
            batch_size=len(self.images),
            evaluation_batch_size=size,
            batches=self.batches,
            device=self.run.device,
            threads=torch.get_num_threads(),
            precision=self.run.precision,
            left_out=left_out,
        )

    def _memory(self) -> dict[str, int] | None:
        ours, plain = peak_resident(), self.plain.answer({"memory": True})["bytes"]
        return None if ours is None or plain is None else {OURS: ours, PLAIN: plain}

    def _first(self, count: int) -> Batches:
        """The first so many images of the split that is looked at."""
        whole, run = self.held_out, self.run
        part = whole.split.take(torch.arange(min(count, whole.num_images)))
        return Batches(part, run.preprocessing, batch_size=whole.batch_size, device=run.device, compiled=True)

    # -- a turn of each, in seconds

    def _ceiling(self, count: int) -> float:
        step = TrainingStep(self.run)
        self.run.model.train()
        began = self.clock()
        for _ in range(count):
            _, loss = step.forward(self.images, self.labels)
            step.backward(loss)
            step.apply()
        _wait(self.run.device)
        return self.clock() - began

    def _loop(self) -> float:
        self.number = self.number % self.run.config.epochs + 1
        began = self.clock()
        train_epoch(self.run, self.number, self.pauses, self._cut)
        return self.clock() - began

    def _cut(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        return itertools.islice(self.track(batches, done, epoch), self.batches)

    def _end(self) -> float:
        run = self.run
        began = time.perf_counter()
        rate = run.optimizer.param_groups[0]["lr"]
        scores = run.tally.scores()
        epoch = Epoch(self.number, rate, scores, self.scores, None, 1.0, 1.0, best=True, epochs_without_improvement=0)
        runfolder.append_metrics(self.folder, epoch.to_dict())
        checkpoint.save(run, self.folder, best=True)
        self.row(epoch)
        return time.perf_counter() - began

    def _shown(self, count: int) -> float:
        run = self.run
        run.evaluated.eval()
        began = self.clock()
        with torch.inference_mode(), autocast(run.device, run.precision):
            for _ in range(count):
                run.evaluated(self.shown)
        _wait(run.device)
        return self.clock() - began

    def _evaluation(self) -> float:
        began = self.clock()
        found = evaluate_epoch(self.run, self.part)
        assert found is not None
        self.scores = found
        return self.clock() - began

    # -- where the time goes

    def _parts(self, step: float) -> dict[str, float]:
        """Seconds an epoch of each part of a step, which takes `step` seconds in all.

        Medians over a turn's batches; of the data, which come some batches at a time, the mean.
        """
        run, clock, training_step = self.run, _Clock(self.run.device), TrainingStep(self.run)
        run.model.train()
        batches = iter(itertools.islice(run.train.epoch(1), self.batches))
        taken: dict[str, list[float]] = {name: [] for name in ("data", "forward", "loss", "backward", "step")}
        for _ in range(self.batches):
            clock.start()
            images, labels = next(batches)
            targets: Tensor = labels
            if run.mix is not None:
                images, targets = run.mix(images, labels)
            taken["data"].append(clock.lap())
            with training_step.precision:  # as TrainingStep.forward, with a lap between
                logits = run.model(images)
                taken["forward"].append(clock.lap())
                loss = to_scalar(run.loss(logits, targets))
                taken["loss"].append(clock.lap())
            training_step.backward(loss)
            taken["backward"].append(clock.lap())
            training_step.apply()
            taken["step"].append(clock.lap())
        parts = {name: sorted(found)[len(found) // 2] for name, found in taken.items()}
        parts["data"] = sum(taken["data"]) / self.batches
        parts["the rest"] = max(0.0, step - sum(parts.values()))  # schedule, checks, figures, bar
        return {name: seconds * len(run.train) for name, seconds in parts.items()}


class _Clock:
    """Laps, each ended by waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = clock_for(device, torch.get_num_threads())

    def start(self) -> None:
        _wait(self.device)
        self.last = self.clock()

    def lap(self) -> float:
        _wait(self.device)
        before, self.last = self.last, self.clock()
        return self.last - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _how_many(call: Callable[[int], float], most: int) -> int:
    """How many steps take about TURN seconds, at most `most`."""
    call(1)  # the first compiles
    seconds = min(call(1), call(1))
    return max(1, min(most, round(TURN / max(seconds, 1e-9))))
