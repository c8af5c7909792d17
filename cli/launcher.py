"""`softmaxce train --nproc`: starts the processes on this machine by torch's elastic agent, and ends as they do.

The agent watches the processes; if one crashes, it ends the others and starts all again, `--max-restarts` times. An
exit status that they agree on is returned by them, so that the agent takes it for success and restarts nothing. The
agent runs in a thread, so that signals are handled here: they are forwarded to the processes; a second ends all.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from softmaxce import streams
from softmaxce.errors import FAILED, USAGE, ConfigError, OutputError, Problem
from softmaxce.runtime.process_group import launched
from softmaxce.runtime.processors import processors
from softmaxce.runtime.signals import SAVE, STATUS

from . import ending
from .processes import LOST, Request, crash, train_in_group
from .startup import fast_imports

STOPPED = "SOFTMAXCE_STOPPED"  # environment variable: the exit status with which processes that start now end at once
GRACE = 10.0  # seconds for the others, once a process has ended after a signal


def number_of_processes(text: str) -> int:
    """`--nproc`: a number, or `gpu` for as many as this machine has. Raises: ConfigError."""
    if text == "gpu":
        with fast_imports():
            import torch

        if not (count := torch.cuda.device_count()):
            raise ConfigError([Problem("--nproc gpu", "torch finds no CUDA device; use a number")])
        return count
    if not text.isdigit() or not int(text):
        raise ConfigError([Problem(f"--nproc {text}", "must be a number of processes, at least 1, or gpu")])
    return int(text)


def check_processes(processes: int, max_restarts: int, nproc: str | None, repeated: str | None) -> None:
    """Refuse options that contradict each other; `repeated` is --seeds or --folds. Raises: ConfigError."""
    if launched() and nproc is not None:
        raise ConfigError([Problem("--nproc", "torchrun has started the processes already; leave it out")])
    if repeated is not None and (processes > 1 or launched()):
        raise ConfigError(
            [Problem(repeated, "trains each run in one process; omit --nproc, or train several at a time with --jobs")]
        )
    if max_restarts and processes == 1:
        message = "restarts the processes of --nproc 2 or more; one process is resumed with --resume auto"
        raise ConfigError([Problem("--max-restarts", message)])


def launch(request: Request, nproc: int, max_restarts: int) -> int:
    """Train in `nproc` processes on this machine. Returns: the exit status."""
    request.check()
    with fast_imports():
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    _set_environment(nproc)
    logs = tempfile.mkdtemp(prefix="softmaxce-")
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )
    statuses: dict[int, Any] = {}
    failures: dict[int, Any] = {}

    def run() -> None:
        try:
            statuses.update(elastic_launch(settings, _worker)(request, os.getpid(), logs))
        except ChildFailedError as error:
            failures.update(error.failures)

    try:
        stopped = _wait(threading.Thread(target=run, daemon=True), lambda: _returned(logs, nproc) is not None)
        status = statuses.get(0, _returned(logs, nproc))
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    if stopped is not None:
        return STATUS[stopped]
    return _explain(failures, nproc, request) if status is None else int(status)


def _set_environment(nproc: int) -> None:
    """What the processes inherit."""
    # With torch's default, restarted processes connect to the store of the one that is gone (pytorch#135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // nproc)))
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _returned(folder: str, nproc: int) -> int | None:
    """The exit status of process 0, once all processes have returned; else None."""
    files = [Path(folder, f"returned-{rank}") for rank in range(nproc)]
    texts = [file.read_text() if file.exists() else "" for file in files]
    return int(texts[0]) if all(texts) else None


def _wait(thread: threading.Thread, settled: Callable[[], bool]) -> signal.Signals | None:
    """Run the agent in its thread, and forward signals to the processes. Returns: the signal that ended them."""
    stopped: list[signal.Signals] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number in STATUS:
            if stopped:
                _kill_all()
                crash(STATUS[stopped[0]])
            stopped.append(signal.Signals(number))
            os.environ[STOPPED] = str(STATUS[stopped[0]])  # a process that the agent starts in this moment ends
        for process in multiprocessing.active_children():
            with suppress(ProcessLookupError):  # the agent, in its thread, has just seen it end
                os.kill(process.pid or 0, number)

    numbers = [*STATUS, *([SAVE] if SAVE is not None else [])]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        with _blocked(STATUS):  # in the thread and the processes that it starts, until these can handle them
            thread.start()
        _join_thread(thread, stopped, settled)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped[0] if stopped else None


@contextmanager
def _blocked(numbers: Iterable[int]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join_thread(thread: threading.Thread, stopped: list[signal.Signals], settled: Callable[[], bool]) -> None:
    """Wait for the agent. After a signal, a process that waits for one that has ended is killed.

    Once all processes have returned, the agent has GRACE seconds: if one is killed while it waits for the agent, the
    agent waits for it without end, in multiprocessing.Event.set.
    """
    most, since, end = 0, time.monotonic(), None
    while thread.is_alive():
        thread.join(0.2)
        end = (end or time.monotonic() + GRACE) if settled() else None
        if end is not None and time.monotonic() > end:
            _kill_all()
            return
        running = len(multiprocessing.active_children())
        if not stopped or running >= most:
            most, since = max(running, 0 if stopped else most), time.monotonic()
        elif time.monotonic() - since > GRACE:
            _kill_all()


def _kill_all() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def _explain(failures: dict[int, Any], nproc: int, request: Request) -> int:
    """Print why a crash ended the processes, unless they did. Returns: the exit status."""
    rank, failure = next(iter(failures.items()), (0, None))
    code = failure.exitcode if failure is not None else LOST
    if code in (FAILED, USAGE):  # the process has printed its error
        return int(code)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended unexpectedly"
    resume = f"--resume {request.resume or 'auto'}"
    ending.print_error(
        f"process {rank} of {nproc} {how}; the same command with {resume} resumes from the last checkpoint"
    )
    return FAILED


def _worker(request: Request, launcher: int, folder: str) -> int:
    """A process of the launcher's. Returns: the exit status that all processes agree on; it is in a file too."""
    os.setsid()  # the terminal's ctrl-C is for the launcher, which forwards it
    if STOPPED in os.environ:
        return int(os.environ[STOPPED])
    file = Path(folder, f"returned-{os.environ['RANK']}")
    file.unlink(missing_ok=True)
    streams.prepare()
    for number in STATUS:  # blocked until `Signals` handles them, and handled by this again at the end
        signal.signal(number, lambda number, frame: None)
    returned = threading.Event()
    # Started before memory may have run out: `start` never returns for a thread that cannot allocate (cpython#140746).
    threading.Thread(target=_end_with, args=(launcher, returned), daemon=True).start()
    status = FAILED
    try:
        status = train_in_group(request)
        sys.stdout.flush()
    except OutputError as error:
        status = error.status
    except BaseException:  # noqa: BLE001 - the agent would print it as its own
        traceback.print_exc()
        crash(FAILED)
    with suppress(OSError):  # the disk is full; the agent has the status
        file.write_text(str(int(status)))
    returned.set()
    return status


def _end_with(launcher: int, returned: threading.Event) -> None:
    """Once this process has returned, and waits for the agent to end it: end it if the launcher was killed."""
    returned.wait()
    while os.getppid() == launcher:
        time.sleep(0.2)
    os._exit(FAILED)
