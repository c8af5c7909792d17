"""A target's rounds in a process of their own: what hangs is killed, what crashes is named, what is run is seen.

A round is one seed. It may end in an answer or in a refusal (SoftmaxceError) that names the file; anything else that
comes out of it, a second process or a connection that it starts, a pickle that looks a name up, or the trap module's
trace, is a finding.
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

SLOWEST = 5.0  # seconds of the processor's time that a round may take
PATIENCE = 30.0  # seconds by the clock: others may have the processor for a while
MEMORY = 3 << 30  # bytes that a round may ask for beyond what the process has at its start
FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("socket.connect", "pickle.find_class"),
}


@dataclass
class Outcome:
    """What came out of a target's rounds."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    grown: int = 0  # bytes of memory, at most
    slowest: float = 0.0  # seconds

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts[key]} {key}" for key in ("answered", "refused"))
        return (
            f"{sum(self.counts.values())} rounds: {counts}, {len(self.findings)} findings; "
            f"slowest {self.slowest:.2f} s, memory grew by {self.grown >> 20} MiB"
        )


def run(target: str, seeds: range, patience: float = PATIENCE) -> Outcome:
    """Run a target's rounds; a worker that hangs or dies is replaced, and goes on with the next seed."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        while seeds:
            seeds = seeds[_one_worker(target, seeds, Path(folder), outcome, patience) :]
    return outcome


def _one_worker(target: str, seeds: range, folder: Path, outcome: Outcome, patience: float) -> int:
    """How many of the seeds a worker came through, or was stopped by."""
    command = [sys.executable, "-m", "tests.fuzz.watchdog", target, str(seeds.start), str(seeds.stop), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    log = folder / "stderr"
    root = Path(__file__).parents[2]
    with log.open("wb") as errors:
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=root, env=environment)
        assert worker.stdout is not None
        ready, done = False, 0
        try:
            for line in _lines(worker.stdout, patience):
                told = json.loads(line)
                if "ready" in told:
                    ready = True
                    continue
                done += 1
                outcome.counts[told["ended"]] += 1
                outcome.slowest = max(outcome.slowest, told["seconds"])
                outcome.grown = max(outcome.grown, told["grown"])
                if told["finding"]:
                    outcome.findings.append(f"{target} {told['seed']}: {told['finding']}")
                if done == len(seeds):
                    return done
            code = worker.wait()
            what = f"crashed with status {code}: {log.read_text(errors='replace')[-2000:]}"
        except TimeoutError:
            what = f"hung for more than {patience:g} s"
        finally:
            worker.kill()
            worker.wait()
    if not ready:
        raise RuntimeError(f"the worker of {target} did not start; it {what}")
    outcome.counts["stopped"] += 1
    outcome.findings.append(f"{target} {seeds[done]}: {what}")
    return done + 1


def _lines(stream: IO[bytes], patience: float) -> Iterator[bytes]:
    """The stream's lines. Raises: TimeoutError if one takes longer than that; the first comes after torch's start."""
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
            limit = patience


def work(target: str, seeds: range, folder: Path) -> None:
    """The worker: a line of JSON a round."""
    from softmaxce.errors import SoftmaxceError

    from . import targets

    (folder / "trap.py").write_text(f"open({str(folder / 'trace')!r}, 'w')\ndef touch(*_, **__): pass\n")
    sys.path.insert(0, str(folder))
    out, sys.stdout = sys.stdout, sys.stderr
    rounds = targets.TARGETS[target](folder)
    seen: list[str] = []
    sys.addaudithook(lambda event, _: seen.append(event) if event in FORBIDDEN else None)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    before = _peak()
    print('{"ready": true}', file=out, flush=True)
    for seed in seeds:
        seen.clear()
        started = _cpu()
        finding = ""
        try:
            finding, ended = rounds(random.Random(seed)) or "", "answered"
        except SoftmaxceError as error:
            ended = "refused"
            if unnamed := [line for line in targets.refusals(error) if not targets.names_file(line, folder)]:
                finding = f"a refusal that names no file: {unnamed[0][:300]}"
        except BaseException as error:  # noqa: BLE001 - whatever else comes out is the finding
            ended, finding = "broke", "".join(traceback.format_exception(error)[-6:])
        seconds = _cpu() - started
        if seen or (folder / "trace").exists():
            finding = f"ran {seen or 'the trap'}"
            (folder / "trace").unlink(missing_ok=True)
        if seconds > SLOWEST:
            finding = finding or f"took {seconds:.1f} s"
        told = {"seed": seed, "ended": ended, "finding": finding, "seconds": seconds, "grown": _peak() - before}
        print(json.dumps(told), file=out, flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    work(sys.argv[1], range(int(sys.argv[2]), int(sys.argv[3])), Path(sys.argv[4]))
