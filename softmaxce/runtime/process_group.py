"""The processes that train one run together, by torch.distributed; one process alone needs none of it.

Each process has a rank, from 0 to world_size - 1. The launcher (`softmaxce train --nproc`, torchrun) sets the
environment variables that `launched` reads. A failure of one process must not leave the others waiting: what a process
does between two collectives is inside `together` or `from_rank_0`, which share its error with all, or inside a training
step, which carries a flag for it.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .. import streams
from ..errors import FAILED, ConfigError, Problem, SoftmaxceError, TrainingError, in_one_line, ran_out_of_memory
from .signals import Signals, default_actions, interruption

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # which torchrun sets; WORLD_SIZE alone means nothing
JOBS = "SOFTMAXCE_JOBS"  # set in the processes of `--jobs`: how many runs are trained at a time
TIMEOUT = timedelta(hours=12)  # of a process that is alive and silent: another one may still decode its images
LATE = 5.0  # seconds until a process says that it waits for the others to start
END_TIMEOUT = timedelta(seconds=8)  # for all processes to confirm that they end by an error that they all met


class PeerLostError(BaseException):
    """Another process of the group has gone. No `except Exception` handles it: this process must end too."""


class PeerError(SoftmaxceError):
    """An error that another process of the group met, and that ends this one too.

    Attributes:
        status: the exit status, as there.
        kind: the name of its class.
        rank: of the process.
    """

    def __init__(self, failure: "Failure", where: str) -> None:
        super().__init__(f"{where}: {failure.lines[0]}", failure.lines[1:])
        self.status, self.kind, self.rank = failure.status, failure.kind, failure.rank


@dataclass(frozen=True)
class Failure:
    """An error as one process sends it to the others, before all of them end by it."""

    rank: int
    host: str
    kind: str
    status: int
    lines: tuple[str, ...]
    interrupted: bool = False


@dataclass(frozen=True)
class _Report:
    failure: Failure | None
    requests: tuple[float, ...]
    value: Any


class ProcessGroup:
    """The group as one of its processes sees it. Made without arguments it is a single process, which waits for nobody.

    Attributes:
        rank: of this process; 0 prints and writes.
        world_size: the number of processes.
        local_rank: the rank among the processes of this machine.
        local_world_size: the number of these.
        signals: of this process; they become requests of the whole group.
        failed_together: an error has been raised in all processes, so that all of them end in the same way.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self.signals: Signals | None = None
        self.failed_together = False
        self._end_group: Any = None

    @property
    def is_single(self) -> bool:
        """Whether there is one process only."""
        return self.world_size == 1

    def share(self, count: int) -> range:
        """This process's part of a batch of `count` images: contiguous, at least two images (batch norm needs them).

        Where there are fewer than two for each process, the last processes get none.
        """
        parts = self.working(count)
        if self.rank >= parts:
            return range(0)
        return range(count * self.rank // parts, count * (self.rank + 1) // parts)

    def working(self, count: int) -> int:
        """The number of processes that get a part of a batch of `count` images."""
        return min(self.world_size, max(1, count // 2))

    # -- collectives: every process calls them in the same order

    def all_reduce(self, tensor: "Tensor") -> None:
        """Replace a tensor by its sum over all processes."""
        if self.is_single:
            return
        import torch.distributed as dist

        with _peers():
            dist.all_reduce(tensor)

    def begin_all_reduce(self, tensor: "Tensor") -> Callable[[], None]:
        """As all_reduce, while this process goes on. Returns: a function that waits for the end."""
        if self.is_single:
            return lambda: None
        import torch.distributed as dist

        with _peers():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _peers():
                work.wait()

        return wait

    def broadcast_tensors(self, tensors: "list[Tensor]") -> None:
        """Replace tensors by those of rank 0."""
        if self.is_single:
            return
        import torch.distributed as dist

        with _peers():
            for tensor in tensors:
                if tensor.is_contiguous():
                    dist.broadcast(tensor, 0)
                else:
                    copy = tensor.contiguous()
                    dist.broadcast(copy, 0)
                    tensor.copy_(copy)

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value that rank `source` passes."""
        if self.is_single:
            return value
        import torch.distributed as dist

        box = [value if self.rank == source else None]
        with _peers():
            dist.broadcast_object_list(box, source)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank. Raises: the error of one that failed before it; as `together`."""
        return [value] if self.is_single else self._exchange(None, value)

    @contextlib.contextmanager
    def together(self, *, interruptible: bool = False) -> Iterator[None]:
        """A block that all processes leave by the same error, if one of them raises one.

        Args:
            interruptible: ctrl-C ends the block at once, not only after it.
        """
        if self.is_single:
            yield
            return
        error: BaseException | None = None
        try:
            with self._interruptible() if interruptible else contextlib.nullcontext():
                yield
        except BaseException as caught:  # raised again in all processes
            if self.failed_together or not isinstance(caught, Exception | KeyboardInterrupt):
                raise  # failed_together: by a collective inside the block, in all processes
            error = caught
        self._exchange(error, None)

    def from_rank_0(self, make: Callable[[], T]) -> T:
        """What `make` returns in rank 0, which alone calls it; its error is raised in all processes."""
        if self.is_single:
            return make()
        value = None
        with self.together():
            if self.rank == 0:
                value = make()
        return self.broadcast(value)  # type: ignore[return-value]

    def on_rank_0(self, do: Callable[[], object]) -> None:
        """As from_rank_0, for what returns nothing that the others need."""
        if self.is_single:
            do()
            return
        with self.together():
            if self.rank == 0:
                do()

    def fail(self, error: BaseException | None) -> None:
        """Share the error of a training step whose flag has shown that a process failed. Raises: always."""
        self._exchange(error, None)
        raise AssertionError("a process reported a failure and had none")

    def _exchange(self, error: BaseException | None, value: T) -> list[T]:
        """Gather a value of each process; agree on signals. Raises: an error, the same everywhere, if there is one."""
        import torch.distributed as dist

        requests = self.signals.requests() if self.signals is not None else ()
        own = _Report(None if error is None else self._failure(error), requests, value)
        reports: list[Any] = [None] * self.world_size
        with _peers():
            dist.all_gather_object(reports, own)
        if self.signals is not None:
            self.signals.agree([sum(column) for column in zip(*(report.requests for report in reports), strict=True)])
        failures = [report.failure for report in reports if report.failure is not None]
        if failures:
            failure = next((one for one in failures if one.interrupted), failures[0])
            self.failed_together = True
            if failure.interrupted:
                raise interruption(failure.status)
            if failure.rank == self.rank and error is not None:
                raise error
            hosts = {report.host for report in failures} | {socket.gethostname()}
            host = f" on {failure.host}" if len(hosts) > 1 else ""
            raise PeerError(failure, f"process {failure.rank} of {self.world_size}{host}")
        return [report.value for report in reports]

    def _failure(self, error: BaseException) -> Failure:
        about = (self.rank, socket.gethostname(), type(error).__name__)
        if isinstance(error, KeyboardInterrupt):
            assert self.signals is not None
            return Failure(*about, self.signals.status, (), interrupted=True)
        if isinstance(error, SoftmaxceError):
            return Failure(*about, error.status, (error.command_text.split("\n")[0], *error.lines[1:]))
        memory = "memory ran out: " if ran_out_of_memory(error) else ""
        return Failure(*about, getattr(error, "status", FAILED), (f"{memory}{in_one_line(error)}",))

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        if self.signals is None:
            yield
            return
        with self.signals.raising():
            yield

    # -- the end

    def confirm_end(self) -> bool:
        """Whether all processes end by an error now; False if one does not within some seconds."""
        if self.is_single or self.failed_together:
            return True
        import torch.distributed as dist

        try:
            dist.barrier(group=self._end_group)
        except RuntimeError:  # another process is elsewhere, or gone
            return False
        return True

    def close(self) -> None:
        """Leave the group. A process that ends with its connections open is aborted by the system."""
        if not self.is_single:
            import torch.distributed as dist

            dist.destroy_process_group()


SINGLE = ProcessGroup()


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


@contextlib.contextmanager
def _message_if_late(rank: int, world_size: int) -> Iterator[None]:
    """Print a line about the processes that are missing, if the block takes long."""
    text = f"waiting at {_address()} for the other processes; this is rank {rank} of {world_size}, by its environment"
    timer = threading.Timer(LATE, streams.line, [text], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """A collective: where it fails, another process has gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error)) from None


def job_name() -> str | None:
    """What the launcher calls the job: the same after it has restarted the processes; None if it has no name."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def launched() -> bool:
    """Whether a launcher has started this process as one of several. Raises: as _number."""
    return all(name in os.environ for name in VARIABLES) and _number("WORLD_SIZE") > 1


def local_world_size() -> int:
    """The number of processes on this machine that share its memory and processors: of this group, or of `--jobs`."""
    return max(1, _number("LOCAL_WORLD_SIZE" if launched() else JOBS, "1"))


def local_rank() -> int:
    """The rank among the processes of this machine; 0 of a single one. Raises: as _number."""
    return _number("LOCAL_RANK", "0")


def _number(name: str, default: str = "") -> int:
    """The number in one of the launcher's environment variables. Raises: ConfigError if it is not one."""
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdecimal()):
        message = f"'{text}' in the environment is not a number; a launcher of several processes sets it, else unset it"
        raise ConfigError([Problem(name, message)])
    return int(text)


def join(signals: Signals) -> ProcessGroup:
    """Join the group that the launcher describes. Waits for its other processes; a signal meanwhile ends this one.

    NCCL where each process of this machine has a GPU of its own; gloo on the CPU and where processes share one.

    Raises: ConfigError if the launcher's environment variables are not sound; TrainingError if the others are not met.
    """
    import torch
    import torch.distributed as dist

    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if rank >= world_size:
        raise ConfigError([Problem("RANK", f"{rank} in the environment must be less than WORLD_SIZE, {world_size}")])
    _number("MASTER_PORT")
    group = ProcessGroup(rank, world_size, _number("LOCAL_RANK", str(rank)), local_world_size())
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_nccl = gpus >= group.local_world_size and dist.is_nccl_available()
    try:
        with default_actions(), _message_if_late(rank, world_size):
            dist.init_process_group("cpu:gloo,cuda:nccl" if has_nccl else "gloo", timeout=TIMEOUT)
            group._end_group = dist.new_group(timeout=END_TIMEOUT, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"could not connect to the other processes at {_address()}: {in_one_line(error)}"
        ) from error
    signals.shared, group.signals = True, signals
    return group
