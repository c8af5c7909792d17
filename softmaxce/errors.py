"""What can go wrong in a user's sight: the message, the place it points to, the exit status that says so."""

from collections.abc import Sequence
from dataclasses import dataclass

DONE = 0
FAILED = 1  # a requirement was not met, or training failed
USAGE = 2  # the command line, the config or the data is wrong
INTERRUPTED = 130  # 128 + SIGINT, as shells count
TERMINATED = 143  # 128 + SIGTERM


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is (`file:line:column` or an option; empty if nowhere), what is wrong and what to do."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


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
