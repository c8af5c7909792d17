"""`softmaxce train --nproc 2`: one run by two processes that are killed, interrupted and resumed. Four launches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..stress.kill_processes import COMMAND, workers
from ..stress.survive import CONFIG, differences
from .launch import free_port

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


class Launched:
    """A launch in a folder, waited for until it trains."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.errors = (folder / f"{name}.stderr").open("w+")
        command = [COMMAND, "train", "--config", "stress.yaml", "--output", name, "--json", "--nproc", "2", *options]
        environment = ENVIRONMENT | {"TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline()]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[dict[str, object]], str]:
        """The exit status, the events on stdout, and stderr."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout.readlines()
        status = self.process.wait(120)
        self.errors.seek(0)
        said = self.errors.read()
        self.errors.close()
        return status, [json.loads(line) for line in self.lines if line.strip()], said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, and `reference`: a run by two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("launches")
    (folder / "stress.yaml").write_text(CONFIG.format(epochs=2))
    status, events, said = Launched(folder, "reference").end()
    assert status == 0, said
    (folder / "events").write_text(json.dumps(events))
    return folder


def test_of_two_processes_one_prints_and_the_record_says_how_many_there_were(folder: Path) -> None:
    events = json.loads((folder / "events").read_text())
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "end"]
    assert events[0]["processes"] == 2
    record = json.loads((folder / "reference" / "run.json").read_text())
    assert (record["status"], record["environment"]["processes"]) == ("completed", 2)


def kill_while_the_agent_wakes_it(folder: Path, launcher: int) -> None:
    """Kill a process that has returned, between the agent's message to it and its answer."""
    deadline = time.monotonic() + 60
    while len(list(folder.glob("softmaxce-*/returned-?"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(launcher, signal.SIGSTOP)
    wait_until_idle(*workers(launcher))  # they wait for the agent
    process = workers(launcher)[1]
    os.kill(process, signal.SIGSTOP)
    os.kill(launcher, signal.SIGCONT)
    wait_until_idle(agent_of(launcher))  # it waits for the answer; else it looks after the processes every 0.1 s
    os.kill(process, signal.SIGKILL)


def agent_of(launcher: int) -> int:
    """The launcher's first thread besides the main one."""
    return sorted(int(task.name) for task in Path(f"/proc/{launcher}/task").iterdir())[1]


def wait_until_idle(*threads: int) -> None:
    """Wait until none of the threads has run for half a second."""

    def switches() -> list[str]:
        statuses = [Path(f"/proc/{thread}/status").read_text() for thread in threads]
        return [line for status in statuses for line in status.splitlines() if "ctxt_switches" in line]

    deadline, before = time.monotonic() + 30, []
    while before != (now := switches()):
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.5)


def test_a_run_of_which_a_process_is_killed_restarts_and_ends_with_the_same_bits(folder: Path) -> None:
    launch = Launched(folder, "killed", "--max-restarts", "3")
    time.sleep(0.5)
    os.kill(workers(launch.process.pid)[1], signal.SIGKILL)
    kill_while_the_agent_wakes_it(folder, launch.process.pid)
    status, events, said = launch.end()
    assert status == 0, said
    assert "Traceback" not in said
    assert [event["event"] for event in events].count("start") == 2
    assert differences(folder, "killed") == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_a_run_whose_launcher_is_killed_and_that_is_interrupted_goes_on_with_one_process(folder: Path) -> None:
    launch = Launched(folder, "stopped")
    processes = workers(launch.process.pid)
    launch.send(signal.SIGKILL)
    launch.process.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{process}").exists() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)

    launch = Launched(folder, "stopped", "--resume", "auto")
    launch.send(signal.SIGINT)
    status, _, said = launch.end()
    assert status == 130, said
    assert said.count("stopping after this step") <= 1  # 0 if the signal came before the first step
    assert "interrupted after" in said
    assert "Traceback" not in said
    assert json.loads((folder / "stopped" / "run.json").read_text())["status"] == "interrupted"

    command = [COMMAND, "train", "--resume", "stopped", "--json"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes, now 1" in done.stderr
    record = json.loads((folder / "stopped" / "run.json").read_text())
    assert (record["status"], record["epochs"]) == ("completed", 2)


NO_MEMORY = """
import resource
from pathlib import Path

import torch

calls = []


def loss(logits, targets):
    calls.append(len(logits))
    if len(calls) == 5:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        torch.empty(1 << 30)
    return torch.nn.functional.cross_entropy(logits, targets)
"""


ONE_PROCESS = """
import os
from pathlib import Path

from softmaxce_cli.launcher import _worker
from softmaxce_cli.processes import Request
from softmaxce_cli.training import OutputOptions

request = Request("own.yaml", [], Path("out"), None, False, False, [], OutputOptions())
print(_worker(request, os.getppid(), "."))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports a process's address space in /proc")
def test_a_process_without_any_memory_left_ends_with_one_line(tmp_path: Path) -> None:
    """A thread that is started then would be waited for without end (cpython#140746)."""
    (tmp_path / "own.py").write_text(NO_MEMORY)
    (tmp_path / "own.yaml").write_text(CONFIG.format(epochs=1) + "loss: own:loss\n")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS],
        cwd=tmp_path,
        env=ENVIRONMENT | address | place,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1"
    assert (tmp_path / "returned-0").read_text() == "1"
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "memory ran out" in line, line
    assert "Traceback" not in done.stderr
