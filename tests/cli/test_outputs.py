"""Outputs that cannot be written, or that would overwrite what softmaxce did not write; two jobs in one folder."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from softmaxce.runs import checkpoint

from ..helpers import SMALL
from .test_endings import _obey_modes

COMMAND = str(Path(sys.executable).parent / "softmaxce")
LOGITS = ["explain", "--logits", "1,2", "--label", "0"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, app: typer.Typer) -> Iterator[Path]:
    """The current folder, with a config and a run."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(app, ["train", "small.yaml", "--output", "run", "-q"]).exit_code == 0
        yield folder


@pytest.mark.parametrize(
    ("option", "command"),
    [("--html", LOGITS), ("--html", ["compare", "run", "run"]), ("--output", ["report", "run"])],
    ids=["explain", "compare", "report"],
)
def test_a_file_that_is_not_a_page_of_softmaxce_is_overwritten_only_with_force(
    option: str, command: list[str], here: Path, app: typer.Typer
) -> None:
    file = here / f"{command[0]}.json"
    file.write_text('{"mine": 1}')
    done = CliRunner().invoke(app, [*command, option, str(file)])
    assert done.exit_code == 2
    message = "exists and is not a page of softmaxce; choose another file, or add --force to replace it"
    assert done.stderr == f"error: {option} {file}: {message}\n"
    assert file.read_text() == '{"mine": 1}'
    assert CliRunner().invoke(app, [*command, option, str(file), "--force"]).exit_code == 0
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert CliRunner().invoke(app, [*command, option, str(file)]).exit_code == 0  # a page of ours


def test_only_regular_files_are_replaced(here: Path, app: typer.Typer) -> None:
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to("nowhere")
    for name in ("pipe", "link"):
        done = CliRunner().invoke(app, [*LOGITS, "--html", name, "--force"])
        assert (done.exit_code, done.stderr) == (2, f"error: --html {name}: is not a regular file; choose another\n")


READ_ONLY = {
    "train": ["train", "small.yaml", "--output", "shut/run"],
    "config new": ["config", "new", "digits", "shut/new.yaml"],
    "explain": [*LOGITS, "--html", "shut/a.html"],
    "compare": ["compare", "run", "run", "--html", "shut/a.html"],
    "report": ["report", "run", "--output", "shut/a.html"],
    "report in the run": ["report", "shut"],
    "calibrate": ["calibrate", "shut"],
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere root may write anywhere")
@pytest.mark.parametrize("name", READ_ONLY)
def test_an_output_that_cannot_be_written_is_one_line_and_status_2(name: str, here: Path) -> None:
    shut = here / "shut"
    if not shut.exists():
        shutil.copytree(here / "run", shut)
    shut.chmod(0o555)
    try:
        done = subprocess.run(
            [COMMAND, *READ_ONLY[name]], cwd=here, capture_output=True, text=True, preexec_fn=_obey_modes, check=False
        )
    finally:
        shut.chmod(0o755)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert re.match(r"error: .*shut.*: (cannot be (written|made): )?.*Permission denied$", line)


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_of_two_jobs_that_start_one_folder_one_trains_and_the_other_is_refused_in_a_line(
    delay: float, here: Path
) -> None:
    output = f"both-{delay}"
    line = f"{COMMAND} train small.yaml --output {output} --resume auto --epochs 30 -q"
    script = f"({line}; echo A $?) & sleep {delay}; ({line}; echo B $?) & wait"
    done = subprocess.run(["bash", "-c", script], cwd=here, capture_output=True, text=True, check=False)
    statuses = sorted(re.findall(r"^[AB] (\d+)$", done.stdout, re.MULTILINE))
    assert statuses in (["0", "2"], ["0", "0"])  # the second may come when the first has ended
    if statuses == ["0", "2"]:
        (message,) = done.stderr.splitlines()
        assert re.match(
            rf"error: {output}: (is being trained by process \d+ on \S+; wait|another (run|process) has just )", message
        )
    saved, warnings = checkpoint.newest(here / output)
    assert saved is not None
    assert (saved.header["epoch"], warnings) == (30, [])
