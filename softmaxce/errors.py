"""What can go wrong in a user's sight: the message, the place it points to, the exit status that says so."""

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

DONE = 0
FAILED = 1  # a requirement was not met, or training failed
USAGE = 2  # the command line, the config or the data is wrong
INTERRUPTED = 130  # 128 + SIGINT, as shells count
TERMINATED = 143  # 128 + SIGTERM

LONGEST = 600  # characters of a mistake's message: a file that is no config may hold names of any length


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is (`file:line:column` or an option; empty if nowhere), what is wrong and what to do."""

    location: str
    message: str

    def __str__(self) -> str:
        message = self.message if len(self.message) <= LONGEST else self.message[: LONGEST - 3] + "..."
        return f"{self.location}: {message}" if self.location else message


class SoftmaxceError(Exception):
    """An error that the user can mend; the command line prints it without a traceback and exits with `status`."""

    status = USAGE


class ConfigError(SoftmaxceError):
    """A config file or an override is wrong. Holds every mistake found, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


class DataError(SoftmaxceError):
    """Images or labels are missing or cannot be used. The message names the file or folder and the remedy."""


class RunError(SoftmaxceError):
    """A run folder or a checkpoint cannot be used as asked."""


class TrainingError(SoftmaxceError):
    """Training could not go on (the loss is not finite, say)."""

    status = FAILED


class WorkerError(TrainingError):
    """A process that decodes images has died."""


class MemoryRanOutError(TrainingError):
    """There is no memory left, the processor's or a GPU's. The message says what was being done, and what fits."""


# What PyTorch's allocators, its libraries' and the system say of it; MemoryError needs no words.
NO_MEMORY = (
    *("out of memory", "defaultcpuallocator", "cannot allocate memory", "alloc_failed", "bad_alloc"),
    *("can't start new thread", "unable to allocate"),
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: MemoryError, torch.OutOfMemoryError, or those who use plain words."""
    told = isinstance(error, RuntimeError | OSError | ImportError)
    text = str(error).lower() if told else ""
    return isinstance(error, MemoryError | MemoryRanOutError) or any(words in text for words in NO_MEMORY)


@contextlib.contextmanager
def within_memory(doing: str, remedy: str = "") -> Iterator[None]:
    """Raises: MemoryRanOutError if memory runs out within; what the failed calls held is let go, so that others fit.

    Args:
        doing: what is done within, `training`.
        remedy: what would need less.
    """
    message = ""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not ran_out_of_memory(error):
            raise
        asked = re.search(r"allocate ([\d.,]+) ?(bytes|[KMGTPE]i?B)", str(error))
        told = f" ({_size(asked[1], asked[2])} more were asked for)" if asked else ""
        message = f"memory ran out while {doing}{told}"
        traceback.clear_frames(error.__traceback__)
    if message:
        raise MemoryRanOutError(f"{message}; {remedy}" if remedy else message)


def _size(number: str, unit: str) -> str:
    return f"{number} {unit}" if unit != "bytes" else f"{int(float(number.replace(',', ''))) / (1 << 20):,.1f} MiB"


def in_users_code(error: BaseException) -> str | None:
    """`in_one_line` of an error that came out of the user's own code; None if it did not."""
    return in_one_line(error) if _users_frames(error) else None


def _users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]


def in_one_line(error: BaseException) -> str:
    """What somebody else's code raised: `KeyError: 'a' (mylab.py:12)`, with the line of theirs that led there.

    The type is left out where the text speaks for itself (ValueError, TypeError, RuntimeError).
    """
    text = str(error).strip().split("\n")[0]
    name = type(error).__name__
    if not text:
        text = name
    elif not isinstance(error, ValueError | TypeError | RuntimeError) or isinstance(error, RecursionError):
        text = f"{name}: {text}"
    theirs = _users_frames(error)
    return f"{text} ({Path(theirs[-1].filename).name}:{theirs[-1].lineno})" if theirs else text


def _is_users(filename: str) -> bool:
    """Whether a file is neither softmaxce's, nor an installed package's, nor Python's own."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib", "purelib")}
    ours = (Path(__file__).parent, Path(__file__).parents[1] / "cli")
    file = Path(filename)
    outside = not any(file.is_relative_to(folder) for folder in (*installed, *ours))
    return file.is_file() and outside and not {"site-packages", "dist-packages"} & set(file.parts)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near. Case does not count."""
    words = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), list(words), n=1, cutoff=0.6)
    return f"; did you mean '{words[near[0]]}'?" if near else ""
