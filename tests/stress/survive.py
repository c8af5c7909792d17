"""Kill, signal, starve: does a run come through? The long form of tests/stress/test_survive.py.

    python -m tests.stress.survive kill --rounds 200      # kill -9 at random instants, each resumed
    python -m tests.stress.survive TERM --rounds 50       # SIGTERM; INT likewise
    python -m tests.stress.survive INT --whole            # from a process's first instant on, compilation included
    python -m tests.stress.survive disk --rounds 20       # a file system that fills up (tmpfs; needs root)

Every run is the installed command in a process of its own; with --fork, one that is forked from this process, which has
loaded PyTorch already and so saves each of them some seconds. A run that was stopped is resumed by the same
command with `--resume auto` until it is completed, and is then compared with an undisturbed one: weights, optimizer,
random numbers and metrics to the last bit. Prints what was done and seen; exits with 1 if a run was lost or differs.
"""

import argparse
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import load_file

CONFIG = """\
epochs: {epochs}
checkpoint_every: 3 steps
data:
  name: synthetic
  train: 1200
  test: 100
  batch_size: 20
  validation: 0.2
  augment: [{{name: random_affine, degrees: 10}}]
model: {{name: cnn, channels: [8, 16], dropout: 0.2}}
optimizer: {{name: adamw, lr: 0.002}}
schedule: {{name: cosine}}
mixup_alpha: 0.2
model_ema_decay: 0.99
best_metric: loss
"""
COMMAND = str(Path(sys.executable).parent / "softmaxce")
PRELOADED = (
    *("sklearn.metrics", "torch._dynamo", "torchvision.transforms.v2"),
    *(
        f"softmaxce.{name}"
        for name in ("build", "inference.evaluate", "losses.builtin", "losses.cpu", "report.training")
    ),
)
STATUS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}}


@dataclass
class Seen:
    """What a stress test did and saw."""

    stopped: int = 0  # processes that were stopped while they trained
    runs: int = 0  # runs that came to their end
    half_written: int = 0  # stops that hit a checkpoint while it was being written
    first: int = 0  # stops before a first checkpoint
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Print a problem at once, as a stress test may take hours."""
        self.problems.append(text)
        print(f"problem: {text}", flush=True)

    def __str__(self) -> str:
        return (
            f"{self.stopped} stopped ({self.half_written} while a file was being written, {self.first} before the "
            f"first checkpoint), each resumed; {self.runs} runs were completed, {len(self.problems)} problems"
        )


class Started:
    """A process that starts or resumes a run, always by the same command."""

    fork = False
    whole = False

    def __init__(self, folder: Path, name: str) -> None:
        command = [COMMAND, "train", "--config", str(folder / "stress.yaml"), "--output", str(folder / name)]
        command += ["--resume", "auto", "--json"]
        self.errors = (folder / "stderr").open("w+b")
        reader, writer = os.pipe()
        if self.fork:
            self.pid = os.fork()
            if not self.pid:
                os.close(reader)
                os.dup2(writer, 1)
                os.dup2(self.errors.fileno(), 2)
                _be(command)
        else:
            environment = dict(os.environ)
            if self.whole:
                environment["SOFTMAXCE_CACHE"] = str(folder / "cache")
            self.pid = subprocess.Popen(command, stdout=writer, stderr=self.errors, env=environment).pid
        os.close(writer)
        self.output = os.fdopen(reader)

    def wait_for_training(self) -> None:
        """Until the start event."""
        self.output.readline()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; not yet waited for, so the process is still ours."""
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Its exit status (minus the signal that killed it), and what it said on stderr."""
        self.output.read()
        _, status = os.waitpid(self.pid, 0)
        self.output.close()
        self.errors.seek(0)
        said = self.errors.read().decode()
        self.errors.close()
        return os.waitstatus_to_exitcode(status), said


def preload() -> None:
    """Load what every training process needs, and start up numba's compiler; no threads, which a fork would lose."""
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("numba").njit(lambda x: x + 1)(1.0)


def _be(command: list[str]) -> None:
    """Be the installed command, from here to the end of this process."""
    from importlib.metadata import entry_points

    status = 70
    try:
        sys.argv = command
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb"), line_buffering=True)
        (entry,) = entry_points(group="console_scripts", name="softmaxce")
        entry.load()()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def prepare(folder: Path, epochs: int) -> float:
    """Write the config and make the undisturbed run; how long it trained, or the whole process took, in seconds."""
    (folder / "stress.yaml").write_text(CONFIG.format(epochs=epochs))
    if Started.whole:
        Started(folder, "first").end()  # compiles, so that the next one's time is the usual one
    started = time.monotonic()
    process = Started(folder, "reference")
    if not Started.whole:
        process.wait_for_training()
        started = time.monotonic()
    status, errors = process.end()
    if status:
        raise SystemExit(f"the undisturbed run failed: {errors}")
    return time.monotonic() - started


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run, without what a clock decides. Raises: ValueError if a line is not whole."""
    text = (folder / "metrics.jsonl").read_text()
    if text and not text.endswith("\n"):
        raise ValueError("metrics.jsonl ends in half a line")
    lines = [json.loads(text) for text in text.splitlines()]
    numbers = [line["epoch"] for line in lines]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"metrics.jsonl has the epochs {numbers}")
    return [{key: line[key] for key in line if key not in ("seconds", "images_per_second")} for line in lines]


def state(file: Path) -> tuple[dict[str, bytes], Any]:
    """A checkpoint's tensors, and what its header says of the training, without what a clock decides."""
    tensors = {name: array.tobytes() for name, array in load_file(file).items()}
    with safe_open(file, framework="np") as stream:
        header = json.loads(stream.metadata()["softmaxce"].partition(" ")[2])  # after the checksum
    training = json.loads(json.dumps(header.get("training")))
    return tensors, (header["epoch"], _without_clock(training))


def _without_clock(training: Any) -> Any:
    if not training:
        return training
    for key, value in training["dict"]:
        if key == "progress":
            value["dict"] = [[name, item] for name, item in value["dict"] if name not in ("seconds", "best_sha256")]
    return training


def differences(folder: Path, name: str) -> list[str]:
    """How a completed run differs from the undisturbed one."""
    ours, reference = folder / name, folder / "reference"
    differing = []
    if metrics(ours) != metrics(reference):
        differing.append("metrics.jsonl differs")
    for file in ("last.safetensors", "best.safetensors"):
        if state(ours / file) != state(reference / file):
            differing.append(f"{file} differs")
    results = [json.loads((run / "run.json").read_text()) for run in (ours, reference)]
    for key in ("status", "test", "best_epoch"):
        if results[0].get(key) != results[1].get(key):
            differing.append(f"{key} is {results[0].get(key)} and not {results[1].get(key)}")
    if left := [file.name for file in ours.glob("*.tmp")]:
        differing.append(f"left behind: {', '.join(left)}")
    return differing


def stop_at_random(folder: Path, number: signal.Signals, rounds: int, epochs: int, seed: int) -> Seen:
    """Stop runs by a signal at random instants, `rounds` times in all, and resume each until it is done."""
    chance = random.Random(seed)
    seen = Seen()
    duration = prepare(folder, epochs)
    while seen.stopped < rounds:
        name = f"run{seen.runs + 1}"
        while not _one_process(folder, name, number, duration, rounds, chance, seen):
            pass
        seen.runs += 1
        for difference in differences(folder, name):
            seen.problem(f"{name}: {difference}")
        print(f"{seen}", flush=True)
    return seen


def is_completed(run: Path) -> bool:
    """Whether run.json says so."""
    record = run / "run.json"
    return record.exists() and json.loads(record.read_text()).get("status") == "completed"


def _one_process(
    folder: Path, name: str, number: signal.Signals, duration: float, rounds: int, chance: random.Random, seen: Seen
) -> bool:
    """Start or resume a run, and stop it while it trains; True if it was completed."""
    if Started.whole and chance.random() < 0.2:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    process = Started(folder, name)
    if chance.random() < 0.9 and not Started.whole:
        process.wait_for_training()  # the start event: it trains from here on
        wait = chance.uniform(0, 0.6 * duration)
    else:
        wait = chance.uniform(0, duration)  # may be while it starts up
    if seen.stopped < rounds:
        time.sleep(wait)
        process.send(number)
    status, errors = process.end()
    if status == 0:
        return True
    run = folder / name
    seen.stopped += 1
    seen.half_written += any(run.glob("*.tmp"))
    seen.first += not (run / "last.safetensors").exists()
    # Before softmaxce has its handlers and after it has given them back, the signal's default action ends the process,
    # to a shell with the same status: nothing has been begun, or all is done.
    default = {-number} if Started.whole and (not errors or is_completed(run)) else set()
    if status not in STATUS[number] | default:
        seen.problem(f"{name}: exit status {status}, {errors.strip()}")
    if "Traceback" in errors:
        seen.problem(f"{name}: a traceback")
    if (run / "metrics.jsonl").exists():
        try:
            metrics(run)
        except ValueError as error:
            seen.problem(f"{name}: {error}")
    return False


def fill_the_disk(folder: Path, rounds: int, epochs: int, seed: int) -> Seen:
    """Train on a small tmpfs that is filled up at random instants; make room again and resume."""
    chance = random.Random(seed)
    seen = Seen()
    duration = prepare(folder, epochs)
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        while seen.stopped < rounds:
            name = f"disk/run{seen.runs + 1}"
            while not _one_process_on_a_full_disk(folder, name, disk, duration, rounds, chance, seen):
                pass
            seen.runs += 1
            for difference in differences(folder, name):
                seen.problem(f"{name}: {difference}")
            for file in (folder / name).iterdir():
                file.unlink()
            print(f"{seen}", flush=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return seen


def _one_process_on_a_full_disk(
    folder: Path, name: str, disk: Path, duration: float, rounds: int, chance: random.Random, seen: Seen
) -> bool:
    process = Started(folder, name)
    process.wait_for_training()
    filler = disk / "filler"
    if seen.stopped < rounds:
        time.sleep(chance.uniform(0, 0.6 * duration))
        left = chance.choice([0, 0, 4096, 20_000, 60_000])  # so that it gives out at one file or another
        subprocess.run(
            ["bash", "-c", f"head -c 3M /dev/zero > {filler}; truncate -s -{left} {filler}"],
            check=False,
            stderr=subprocess.DEVNULL,
        )
    status, errors = process.end()
    filler.unlink(missing_ok=True)
    if status == 0:
        return True
    seen.stopped += 1
    seen.first += not (folder / name / "last.safetensors").exists()
    last_line = errors.strip().splitlines()[-1:] or [""]
    if status != 1 or "No space left on device" not in last_line[0] or "Traceback" in errors:
        seen.problem(f"{name}: exit status {status}, {errors.strip()}")
    return False


def main() -> None:
    """Run one of the stress tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("kill", "TERM", "INT", "disk"))
    parser.add_argument("--rounds", type=int, default=200, help="how many processes to stop")
    parser.add_argument("--epochs", type=int, default=3, help="how long a run is")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--folder", help="where to make the runs; else the system's temporary folder")
    parser.add_argument("--fork", action="store_true", help="fork the processes from this one")
    parser.add_argument(
        "--whole", action="store_true", help="stop at any instant of a process; every fifth compiles all loops anew"
    )
    arguments = parser.parse_args()
    Started.whole = arguments.whole
    if arguments.fork:
        preload()
        Started.fork = True
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        here = Path(folder)
        if arguments.how == "disk":
            seen = fill_the_disk(here, arguments.rounds, arguments.epochs, arguments.seed)
        else:
            number = signal.SIGKILL if arguments.how == "kill" else signal.Signals[f"SIG{arguments.how}"]
            seen = stop_at_random(here, number, arguments.rounds, arguments.epochs, arguments.seed)
    print(f"{arguments.how}: {seen}")
    raise SystemExit(bool(seen.problems))


if __name__ == "__main__":
    main()
