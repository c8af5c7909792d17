"""What stderr shows while something takes long."""

import io
import sys

import pytest

from softmaxce import waiting
from softmaxce.waiting import Counting


class Stderr(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "slow", "shown"),
    [
        (True, True, "\rdecoding images: 1 of 1,200\rdecoding images: 2 of 1,200\r" + " " * 27 + "\r"),
        (True, False, ""),
        (False, True, "decoding images: 1 of 1,200\n"),
        (False, False, ""),
    ],
)
def test_a_count_is_shown_on_a_terminal_and_one_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, slow: bool, shown: str
) -> None:
    stderr = Stderr(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    if slow:
        monkeypatch.setattr(waiting, "ON_TERMINAL", 0.0)
        monkeypatch.setattr(waiting, "ELSEWHERE", 0.0)
    with Counting("decoding images", 1200) as counting:
        counting.advance()
        counting.advance()
    assert stderr.getvalue() == shown


def test_without_stderr_counting_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(waiting, "ELSEWHERE", 0.0)
    with Counting("decoding images", 1) as counting:
        counting.advance()
    assert counting.done == 1
