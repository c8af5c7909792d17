"""Kill one of several training processes: is the run the same? The long form of a test in tests/distributed.

    python -m tests.stress.kill_processes --kills 20 --nproc 2      # kill -9 of a random rank at random instants

`softmaxce train --nproc N --max-restarts 50` trains one run; while it does, a process is chosen at random and killed,
again and again. The launcher restarts all, and they go on from the last checkpoint. At the end the run is compared with
an undisturbed one of as many processes: weights, optimizer, random numbers and metrics to the last bit. Prints what was
done and seen; exits with 1 if a run was lost or differs.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from .survive import CONFIG, differences

COMMAND = str(Path(sys.executable).parent / "softmaxce")


def workers(launcher: int) -> list[int]:
    """The training processes that a launcher has started, by their ids."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


@dataclass
class Seen:
    """What was done and seen."""

    kills: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kills} processes killed in {self.runs} runs, {len(self.problems)} problems"


def start(folder: Path, name: str, nproc: int) -> subprocess.Popen[str]:
    """Start a run."""
    command = [COMMAND, "train", "--config", str(folder / "stress.yaml"), "--output", str(folder / name), "--json"]
    command += ["--nproc", str(nproc), "--max-restarts", "50"]
    errors = (folder / f"{name}.stderr").open("w")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def train_and_kill(folder: Path, name: str, nproc: int, kills: int, duration: float, chance: random.Random) -> int:
    """Train a run and kill `kills` of its processes while it trains. Returns: how many were killed."""
    process = start(folder, name, nproc)
    assert process.stdout is not None
    killed = 0
    while process.poll() is None and killed < kills:
        line = process.stdout.readline()  # a start event, of the run or of the restarted one; or an epoch
        if '"start"' not in line:
            if not line:
                break
            continue
        time.sleep(chance.uniform(0, duration))
        if found := workers(process.pid):
            os.kill(chance.choice(found), signal.SIGKILL)
            killed += 1
    process.stdout.read()
    process.wait()
    return killed


def kill_at_random(folder: Path, nproc: int, kills: int, epochs: int, seed: int) -> Seen:
    """Kill processes at random instants, `kills` in all, in as many runs as it takes."""
    (folder / "stress.yaml").write_text(CONFIG.format(epochs=epochs))
    chance, seen = random.Random(seed), Seen()
    reference = start(folder, "reference", nproc)
    assert reference.stdout is not None
    reference.stdout.readline()
    began = time.monotonic()
    reference.stdout.read()
    if reference.wait():
        raise SystemExit(f"the undisturbed run failed: {(folder / 'reference.stderr').read_text()}")
    duration = time.monotonic() - began
    while seen.kills < kills:
        name = f"run{seen.runs + 1}"
        seen.kills += train_and_kill(folder, name, nproc, min(10, kills - seen.kills), 0.4 * duration, chance)
        seen.runs += 1
        said = (folder / f"{name}.stderr").read_text()
        if "Traceback" in said:
            seen.problems.append(f"{name}: a traceback: {said}")
        if not (folder / name / "best.safetensors").exists():
            seen.problems.append(f"{name}: lost: {said}")
            break
        seen.problems += [f"{name}: {problem}" for problem in differences(folder, name)]
        print(seen, flush=True)
    return seen


def main() -> None:
    """Run the stress test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many processes to kill")
    parser.add_argument("--nproc", type=int, default=2, help="how many processes train")
    parser.add_argument("--epochs", type=int, default=4, help="how long a run is")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and ranks")
    parser.add_argument("--folder", help="where to make the runs; else the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        seen = kill_at_random(Path(folder), arguments.nproc, arguments.kills, arguments.epochs, arguments.seed)
    for problem in seen.problems:
        print(problem)
    print(seen)
    raise SystemExit(bool(seen.problems))


if __name__ == "__main__":
    main()
