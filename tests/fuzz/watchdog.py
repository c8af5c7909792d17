"""Run a fuzzing target in a separate process; detect tracebacks, crashes, hangs, slow rounds and executed code.

A round is one seed. It may end with the file accepted, or refused by a SoftmaxceError that names it. Anything else is a
finding: another exception, a process or connection that it starts, a name that a pickle looks up, or the file that the
trap module writes when it is imported.
"""

import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

MAX_CPU_SECONDS = 5.0  # of a round
TIMEOUT = 30.0  # seconds of wall-clock time of a round, longer because other processes may use the CPU
MEMORY = 3 << 30  # bytes that the rounds may allocate beyond the process's size at its start
FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("socket.connect", "pickle.find_class"),
}


@dataclass
class Outcome:
    """The results of a target's rounds."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    memory_growth: int = 0  # bytes, the largest
    slowest: float = 0.0  # seconds

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts[key]} {key}" for key in ("answered", "refused"))
        return (
            f"{sum(self.counts.values())} rounds: {counts}, {len(self.findings)} findings; "
            f"slowest {self.slowest:.2f} s, memory grew by {self.memory_growth >> 20} MiB"
        )


def run(target: str, seeds: range, timeout: float = TIMEOUT) -> Outcome:
    """Run a target's rounds. A worker that hangs or dies is replaced by one that starts with the next seed."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        while seeds:
            seeds = seeds[_one_worker(target, seeds, Path(folder), outcome, timeout) :]
    return outcome


def _one_worker(target: str, seeds: range, folder: Path, outcome: Outcome, timeout: float) -> int:
    """Run one worker. Returns: the number of seeds that it finished, the one that stopped it included."""
    command = [sys.executable, "-m", "tests.fuzz.watchdog", target, str(seeds.start), str(seeds.stop), str(folder)]
    root = Path(__file__).parents[2]
    # The command, if this process has imported it, keeps its children from importing modules of the current folder.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(root)}
    log = folder / "stderr"
    with log.open("wb") as errors:
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=root, env=environment)
        assert worker.stdout is not None
        ready, done = False, 0
        try:
            for line in _lines(worker.stdout, timeout):
                result = json.loads(line)
                if "ready" in result:
                    ready = True
                    continue
                done += 1
                outcome.counts[result["ended"]] += 1
                outcome.slowest = max(outcome.slowest, result["seconds"])
                outcome.memory_growth = max(outcome.memory_growth, result["memory_growth"])
                if result["finding"]:
                    outcome.findings.append(f"{target} {result['seed']}: {result['finding']}")
                if done == len(seeds):
                    return done
            code = worker.wait()
            what = f"crashed with status {code}: {log.read_text(errors='replace')[-2000:]}"
        except TimeoutError:
            what = f"hung for more than {timeout:g} s"
        finally:
            worker.kill()
            worker.wait()
    if not ready:
        raise RuntimeError(f"the worker of {target} did not start; it {what}")
    outcome.counts["stopped"] += 1
    outcome.findings.append(f"{target} {seeds[done]}: {what}")
    return done + 1


def _lines(stream: IO[bytes], timeout: float) -> Iterator[bytes]:
    """The stream's lines. Raises: TimeoutError if one takes longer; the first may take 300 s, as torch is imported."""
    limit = 300.0
    rest = b""
    while True:
        if not select.select([stream], [], [], limit)[0]:
            raise TimeoutError
        chunk = os.read(stream.fileno(), 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
            limit = timeout


def work(target: str, seeds: range, folder: Path) -> None:
    """The worker: prints a line of JSON per round."""
    from softmaxce.errors import SoftmaxceError

    from . import targets

    (folder / "trap.py").write_text(f"open({str(folder / 'trace')!r}, 'w')\ndef touch(*_, **__): pass\n")
    sys.path.insert(0, str(folder))
    out, sys.stdout = sys.stdout, sys.stderr
    rounds = targets.TARGETS[target](folder)
    events: list[str] = []
    sys.addaudithook(lambda event, _: events.append(event) if event in FORBIDDEN else None)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    before = _peak()
    print('{"ready": true}', file=out, flush=True)
    for seed in seeds:
        events.clear()
        started = _cpu()
        finding = ""
        try:
            finding, ended = rounds(random.Random(seed)) or "", "answered"
        except SoftmaxceError as error:
            ended = "refused"
            if unnamed := [line for line in targets.refusals(error) if not targets.names_file(line, folder)]:
                finding = f"a refusal that names no file: {unnamed[0][:300]}"
        except BaseException as error:  # noqa: BLE001 - any other exception is a finding
            ended, finding = "broke", "".join(traceback.format_exception(error)[-6:])
        seconds = _cpu() - started
        if events or (folder / "trace").exists():
            finding = f"ran {events or 'the trap'}"
            (folder / "trace").unlink(missing_ok=True)
        if seconds > MAX_CPU_SECONDS:
            finding = finding or f"took {seconds:.1f} s"
        result = {
            "seed": seed,
            "ended": ended,
            "finding": finding,
            "seconds": seconds,
            "memory_growth": _peak() - before,
        }
        print(json.dumps(result | {"memory_growth": _peak() - before}), file=out, flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    work(sys.argv[1], range(int(sys.argv[2]), int(sys.argv[3])), Path(sys.argv[4]))
