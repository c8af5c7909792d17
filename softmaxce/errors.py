"""The errors that a user sees: their messages, locations and exit statuses."""

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

DONE = 0
FAILED = 1  # a requirement was not met, or training failed
USAGE = 2  # the command line, the config or the data is wrong
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM

MAX_LENGTH = 600  # characters of a message: a file that is not a config may contain names of any length


@dataclass(frozen=True)
class Problem:
    """One mistake: its location (`file:line:column`, an option, or empty), and what is wrong and how to correct it."""

    location: str
    message: str

    def __str__(self) -> str:
        message = self.message if len(self.message) <= MAX_LENGTH else self.message[: MAX_LENGTH - 3] + "..."
        return f"{self.location}: {message}" if self.location else message


# What a Python caller writes in place of an option. A whole command in a message stays as it is.
PYTHON_TERMS = {
    "--trust-code": "trust_code=True",
    "--allow-changed-data": "allow_changed_data=True",
    "--resume auto": 'resume="auto"',
    "--output": "output",
    "--config": "config",
    "--require": "require",
}
_OPTIONS = re.compile(rf"softmaxce [a-z].*|(?:{'|'.join(PYTHON_TERMS)})(?![\w-])")


class SoftmaxceError(Exception):
    """An error that the user can correct; the command line prints it without a traceback and exits with `status`.

    `str` of it speaks of the Python API's arguments, `command_text` of the command line's options.

    Attributes:
        lines: the message, and further lines: a list of files, for example.
    """

    status = USAGE

    def __init__(self, message: str = "", more: Sequence[str] = ()) -> None:
        self.lines = (message, *more)
        super().__init__("\n".join(self.lines))

    @property
    def command_text(self) -> str:
        """The message with the names of options: `--trust-code`, not `trust_code=True`."""
        return super().__str__()

    def __str__(self) -> str:
        return _OPTIONS.sub(lambda match: PYTHON_TERMS.get(match[0], match[0]), self.command_text)


class ConfigError(SoftmaxceError):
    """A config file or an override is wrong. It holds every mistake, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))
        self.lines = tuple(map(str, problems))


class DataError(SoftmaxceError):
    """Images or labels are missing or unusable. The message names the file or folder and the remedy."""


class RunError(SoftmaxceError):
    """A run folder or a checkpoint cannot be used as requested."""


class RunInUseError(RunError):
    """Another process trains in the run folder."""


class TrainingError(SoftmaxceError):
    """Training could not continue, because the loss is not finite, for example."""

    status = FAILED


class WorkerError(TrainingError):
    """A process that decodes images died."""


class MemoryRanOutError(TrainingError):
    """Memory ran out, the CPU's or a GPU's. The message says what was being done, and what would fit."""


# Substrings of the out-of-memory messages of PyTorch's allocators, of its libraries and of the system.
NO_MEMORY = (
    *("out of memory", "defaultcpuallocator", "cannot allocate memory", "alloc_failed", "bad_alloc"),
    *("can't start new thread", "unable to allocate"),
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: MemoryError, or one whose message says so."""
    has_message = isinstance(error, RuntimeError | OSError | ImportError)
    text = str(error).lower() if has_message else ""
    return isinstance(error, MemoryError | MemoryRanOutError) or any(words in text for words in NO_MEMORY)


@contextlib.contextmanager
def within_memory(doing: str, remedy: str = "") -> Iterator[None]:
    """Turns an error that memory ran out into a MemoryRanOutError, and frees what the failed calls held.

    Args:
        doing: what the block does, such as `training`.
        remedy: what would need less memory.
    """
    message = ""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not ran_out_of_memory(error):
            raise
        requested = re.search(r"allocate ([\d.,]+) ?(bytes|[KMGTPE]i?B)", str(error))
        size = f" ({_size(requested[1], requested[2])} more were requested)" if requested else ""
        message = f"memory ran out while {doing}{size}"
        traceback.clear_frames(error.__traceback__)
    if message:
        raise MemoryRanOutError(f"{message}; {remedy}" if remedy else message)


class OutputError(Exception):
    """Stdout cannot be written. `status` is the command's exit status, and the message is empty for a closed pipe."""

    def __init__(self, error: OSError) -> None:
        broken = isinstance(error, BrokenPipeError)
        self.status = CLOSED_PIPE if broken else FAILED
        super().__init__("" if broken else f"stdout: {error.strerror or error}")


@contextlib.contextmanager
def as_training_error(position: Callable[[], str]) -> Iterator[None]:
    """Turns whatever a model, a loss, an augmentation or an optimizer raises into a TrainingError of one line.

    Args:
        position: called where something is raised: what was being done, such as `epoch 3`.
    """
    try:
        yield
    except (SoftmaxceError, OSError, OutputError):  # they say what and where themselves
        raise
    except Exception as error:  # the user's model, loss, augmentation or reporter may raise anything
        memory = "memory ran out: " if ran_out_of_memory(error) else ""
        raise TrainingError(f"{position()}: {memory}{in_one_line(error)}") from error


def _size(number: str, unit: str) -> str:
    return f"{number} {unit}" if unit != "bytes" else f"{int(float(number.replace(',', ''))) / (1 << 20):,.1f} MiB"


def in_users_code(error: BaseException) -> str | None:
    """`in_one_line` of an error that the user's own code raised; None for other errors."""
    return in_one_line(error) if _users_frames(error) else None


def _users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]


def in_one_line(error: BaseException) -> str:
    """An error as `KeyError: 'a' (mylab.py:12)`, with the innermost line of the user's code.

    The type is omitted for ValueError, TypeError and RuntimeError, whose message is enough.
    """
    text = str(error).strip().split("\n")[0]
    name = type(error).__name__
    if not text:
        text = name
    elif not isinstance(error, ValueError | TypeError | RuntimeError) or isinstance(error, RecursionError):
        text = f"{name}: {text}"
    frames = _users_frames(error)
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else text


def is_users(filename: str) -> bool:
    """Whether a file is neither softmaxce's, nor an installed package's, nor Python's own."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib", "purelib")}
    ours = (Path(__file__).parent, Path(__file__).parents[1] / "cli")
    file = Path(filename)
    outside = not any(file.is_relative_to(folder) for folder in (*installed, *ours))
    return file.is_file() and outside and not {"site-packages", "dist-packages"} & set(file.parts)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or an empty string if no known word is similar. Case is ignored."""
    words = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), list(words), n=1, cutoff=0.6)
    return f"; did you mean '{words[near[0]]}'?" if near else ""
