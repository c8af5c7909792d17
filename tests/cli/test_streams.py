"""Terminals and pipes that are not UTF-8, closed, full, or closed by their reader: commands x streams, as processes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ..helpers import SMALL

COMMAND = shlex.quote(str(Path(sys.executable).parent / "softmaxce"))

FAST = {
    "--help": "--help",
    "train --help": "train --help",
    "--version": "--version",
    "list": "list losses",
    "runs": "runs",
    "config check": "config check small.yaml",
    "config show": "config show digits",
}
SLOW = {
    "train": "train --config small.yaml",
    "eval": "eval runs/small/1",
    "predict": "predict runs/small/1 image.png",
    "explain": "explain --logits 2.0,1.0,0.1 --label 0 --classes çà,żó,日本",
}
COMMANDS = FAST | SLOW
ALL = tuple(COMMANDS)

# redirection -> (the exit status, a part of stderr, the commands)
STREAMS = {
    "<&-": (0, "", ("--help", "train", "predict")),
    ">&-": (1, "error: stdout: is closed", ("--help", "--version", "list", "train")),
    "2>&-": (0, "", ("--help", "list", "train")),
    "<&- >&- 2>&-": (1, "", ("--help", "train")),
    ">/dev/full": (1, "error: stdout: No space left on device\n", ALL),
    "2>/dev/full": (0, "", ("--help", "train", "predict")),
    ">/dev/full 2>&1": (1, "", ("--version", "train")),
}
CASES = [(stream, name) for stream, (_, _, names) in STREAMS.items() for name in names]
ENCODINGS = [(encoding, name) for encoding in ("ascii", "latin-1", "cp1252") for name in (*FAST, "explain")]
ENCODINGS += [("ascii", "train"), ("ascii", "eval"), ("ascii", "predict")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, an image and a trained run."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "small.yaml").write_text(SMALL)
    Image.new("L", (16, 16), 20).save(folder / "image.png")
    done = bash(f"{COMMAND} train --config small.yaml -q", folder)
    assert done.returncode == 0, done.stderr
    return folder


def bash(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of shell, its streams as bytes."""
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | environment, capture_output=True, timeout=120, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("stream", "name"), CASES)
def test_a_stream_that_is_closed_or_full_gets_a_line_and_a_true_status(stream: str, name: str, here: Path) -> None:
    status, message, _ = STREAMS[stream]
    done = bash(f"{COMMAND} {COMMANDS[name]} {stream}", here)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert message.encode() in done.stderr
    if stream == "2>/dev/full":
        assert done.stdout


@pytest.mark.parametrize("name", ALL)
def test_a_reader_that_closes_the_pipe_early_is_141_without_a_word_about_it(name: str, here: Path) -> None:
    # the reader has ended before anything is written
    done = bash(f"set -o pipefail; (sleep 0.2; {COMMAND} {COMMANDS[name]}; echo $? >&3) 3>&2 | true", here)
    lines = done.stderr.decode().splitlines()
    assert lines[-1] == "141"
    assert "Traceback" not in done.stderr.decode()
    assert not any("error" in line or "ignored" in line for line in lines)


def test_a_training_whose_reader_has_ended_is_saved_and_says_how_to_resume(here: Path) -> None:
    train = f"{COMMAND} train --config small.yaml --output piped"
    done = bash(f"({train} --epochs 5; echo $? >&3) 3>&2 | head -1", here)
    assert done.stdout.startswith(b"epoch 1/5 ")
    *_, line, status = done.stderr.decode().splitlines()
    assert status == "141"
    assert line.endswith("of 5 epochs, as its output cannot be written; resume with: softmaxce train --resume piped")
    assert bash(f"{COMMAND} train --resume piped -q", here).returncode == 0


@pytest.mark.parametrize(("encoding", "name"), ENCODINGS)
def test_what_an_encoding_lacks_is_drawn_in_ascii_or_escaped(encoding: str, name: str, here: Path) -> None:
    done = bash(f"{COMMAND} {COMMANDS[name]}", here, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode(encoding).count("Traceback") == 0
    shown = done.stdout.decode(encoding)
    if name == "explain":
        assert "\\u65e5\\u672c" in shown
        assert ("çà" if encoding != "ascii" else "\\xe7\\xe0") in shown
    assert "?" not in shown or name in ("--help", "train --help", "config show")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_is_not_utf_8_shows_tables_and_bars(encoding: str, here: Path) -> None:
    lines = {
        "train": "train --config small.yaml --epochs 1",
        "check-loss": "check-loss softmax_cross_entropy --only shift",
        "runs": "runs",
    }
    for name, line in lines.items():
        done = bash(
            f"script -qec {shlex.quote(f'{COMMAND} {line}')} /dev/null", here, PYTHONIOENCODING=encoding, TERM="xterm"
        )
        assert done.returncode == 0, (name, done.stdout)
        assert b"Traceback" not in done.stdout
        assert b"\xe2\x94\x80" not in done.stdout  # no UTF-8


def test_a_closed_stdin_that_is_to_be_read_is_a_line(here: Path) -> None:
    done = bash(f"{COMMAND} predict runs/small/1 - <&-", here)
    assert (done.returncode, done.stderr) == (2, b"error: -: reads paths from stdin, which is closed\n")
