"""Training throughput: softmaxce against its own arithmetic alone, and against the usual PyTorch training loop."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    CEILING: "the same model, precision and optimizer on the same batch again and again: no data loading, no metrics",
    OURS: "what softmaxce train does: table, checks, progress bar and a checkpoint every epoch",
    PLAIN: "torchvision's data set and transforms, DataLoader, nn.CrossEntropyLoss, float32, the optimizer not fused",
}
TURN = 1.0  # approximate seconds of one measurement of the ceiling


@dataclass(frozen=True)
class Ways:
    """Images per second of several training loops, and their ratios.

    Attributes:
        rates: name -> images per second.
        to_ceiling: name -> the ratio to the ceiling's, taken within each round.
        to_plain: name -> the ratio to plain PyTorch's.
    """

    rates: dict[str, Spread]
    to_ceiling: dict[str, Spread]
    to_plain: dict[str, Spread]

    @classmethod
    def of(cls, rates: Mapping[str, Sequence[float]]) -> "Ways":
        """From the images per second of each round."""
        return cls(
            {name: Spread.of(rounds) for name, rounds in rates.items()},
            {name: ratios(rounds, rates[CEILING]) for name, rounds in rates.items()},
            {name: ratios(rounds, rates[PLAIN]) for name, rounds in rates.items()},
        )


@dataclass(frozen=True)
class Loop:
    """The measurements of one config.

    Attributes:
        training: of whole epochs; for softmaxce with the table's row and the checkpoint, without the evaluation.
        evaluation: of the split that is evaluated after every epoch.
        epoch: seconds of each part of one of softmaxce's epochs, by name, evaluation included.
        memory: peak resident bytes of softmaxce's process and of plain PyTorch's; None where they are not known.
        batch_size: images per step, for all.
        evaluation_batch_size: images per batch of an evaluation, for all.
        batches: of one measurement of training.
        device: of all.
        threads: of PyTorch on the CPU.
        precision: of softmaxce and the ceiling.
        left_out: augmentations that plain PyTorch does not do.
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
    plain_batches: int | None = None,
) -> Loop:
    """Alternate between training on a fixed batch, softmaxce's loop, and plain PyTorch in a process of its own.

    Args:
        config: as for `softmaxce train`.
        track, expect, row: the table's methods for an epoch's batches, the run, and an epoch.
        rounds: the number of measurements of each, at least 2.
        plain_batches: plain PyTorch, where it is slow, trains on so many batches at most in a round.
    Raises: as build_run; RunError if plain PyTorch fails.
    """
    run = build_run(replace(config, progressive_resizing=None))  # all of them train on images of one size
    with PlainProcess(run) as plain, tempfile.TemporaryDirectory() as folder:
        expect(run)
        left_out = plain.answer({"rounds": rounds})["left_out"]
        return _Measurement(run, plain, track, row, Path(folder)).loop(rounds, tuple(left_out), plain_batches)


class PlainProcess:
    """Plain PyTorch, in a process of its own, as softmaxce configures the one that it trains in."""

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
        lines = self.process.stderr.read().strip().splitlines() or ["it ended without a message"]
        return RunError(f"plain PyTorch cannot train this: {lines[-1]}")

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for the answer. Raises: RunError with its last line on stderr, if it has died."""
        self._send(message)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer


def held_out(run: Run) -> Batches:
    """The split that is evaluated after every epoch; the training images, if there is no other."""
    return run.validation or run.test or run.train


class _Measurement:
    """The measurements of one run."""

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
            self.eval_images = next(iter(self.held_out.epoch(0)))[0]

    def loop(self, rounds: int, left_out: tuple[str, ...], plain_batches: int | None) -> Loop:
        self.batches = len(self.run.train)
        self.batches = _how_many(self._ceiling, self.batches) // self.run.config.grad_accum_steps or 1
        self.batches *= self.run.config.grad_accum_steps
        size = len(self.eval_images)
        whole = max(1, self.held_out.num_images // size)  # batches
        count = _how_many(self._forward_passes, whole)
        self.part = self._first(count * size)
        for warm in (self._loop, self._end, self._evaluation):
            warm()
        slow = min(self.batches, plain_batches or self.batches)
        self.plain.answer({"train": slow})
        self.plain.answer({"evaluate": count})
        calls: dict[str, Callable[[], float]] = {
            CEILING: lambda: self._ceiling(self.batches),
            OURS: self._loop,
            "end": self._end,
            PLAIN: lambda: float(self.plain.answer({"train": slow})["seconds"]) * self.batches / slow,
        }
        seconds = turns(calls, rounds)
        images = len(self.images) * self.batches
        per_epoch = len(self.run.train) / self.batches  # measurements in the length of an epoch
        rates = {name: [images / taken for taken in seconds[name]] for name in (CEILING, PLAIN)}
        rates[OURS] = [
            images * per_epoch / (a * per_epoch + b) for a, b in zip(seconds[OURS], seconds["end"], strict=True)
        ]
        again = max(1, round(TURN / 2 / self._evaluation()))  # a few batches take too little time to measure
        calls = {
            CEILING: lambda: sum(self._forward_passes(count) for _ in range(again)) / again,
            OURS: lambda: sum(self._evaluation() for _ in range(again)) / again,
            PLAIN: lambda: float(self.plain.answer({"evaluate": count})["seconds"]),
        }
        evaluations = turns(calls, rounds)
        epoch = self._parts(Spread.of(seconds[OURS]).median / self.batches)
        epoch["evaluation"] = Spread.of(evaluations[OURS]).median / (count * size) * self.held_out.num_images
        epoch["table and checkpoint"] = Spread.of(seconds["end"]).median
        return Loop(
            training=Ways.of({name: rates[name] for name in (CEILING, OURS, PLAIN)}),
            evaluation=Ways.of(
                {name: [count * size / taken for taken in rounds] for name, rounds in evaluations.items()}
            ),
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
        """The first `count` images of the split that is evaluated."""
        whole, run = self.held_out, self.run
        part = whole.split.take(torch.arange(min(count, whole.num_images)))
        return Batches(part, run.preprocessing, batch_size=whole.batch_size, device=run.device, compiled=True)

    # -- one measurement of each, in seconds

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

    def _forward_passes(self, count: int) -> float:
        run = self.run
        run.evaluated.eval()
        began = self.clock()
        with torch.inference_mode(), autocast(run.device, run.precision):
            for _ in range(count):
                run.evaluated(self.eval_images)
        _wait(run.device)
        return self.clock() - began

    def _evaluation(self) -> float:
        began = self.clock()
        scores = evaluate_epoch(self.run, self.part)
        assert scores is not None
        self.scores = scores
        return self.clock() - began

    # -- where the time goes

    def _parts(self, step: float) -> dict[str, float]:
        """Seconds per epoch of each part of a step, which takes `step` seconds in all.

        Medians over the batches; for the data, which are prepared several batches at a time, the mean.
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
        parts = {name: sorted(laps)[len(laps) // 2] for name, laps in taken.items()}
        parts["data"] = sum(taken["data"]) / self.batches
        parts["the rest"] = max(0.0, step - sum(parts.values()))  # schedule, checks, figures, bar
        return {name: seconds * len(run.train) for name, seconds in parts.items()}


class _Clock:
    """A stopwatch that waits for the device at each lap."""

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
    """The number of steps that take about TURN seconds, at most `most`."""
    call(1)  # the first compiles
    seconds = min(call(1), call(1))
    return max(1, min(most, round(TURN / max(seconds, 1e-9))))
