"""Text from outside (names of files, folders and classes, configs, records, exceptions) as output of every command."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from softmaxce import streams
from softmaxce.report import console

EVIL = "\x1b]0;owned\x07[red]{}\x9b31m\u202e<b>"  # a window's title, rich's markup, a color by C1, reversed writing
FORGED = "x\nforged: 1\r"
CLASSES = ("=1+1 " + EVIL.format("a"), "b " + FORGED)
RUN, RECIPE = "run " + EVIL.format("r"), EVIL.format("recipe") + ".yaml"
IMAGE = "images/+" + FORGED + ".png"
DATA = f"""\
import torch
from softmaxce.data.splits import Dataset, InMemory

def data(root=None):
    labels = torch.arange(16) % 2
    images = (torch.arange(16 * 64) % 97 + 100 * labels.repeat_interleave(64)).byte().view(16, 1, 8, 8)
    return Dataset(InMemory(images, labels), InMemory(images, labels), {CLASSES!r})
"""
# Control characters but the line feed; a forged line; markup that was interpreted would be gone.
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]|^forged", re.MULTILINE)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, app: typer.Typer) -> Iterator[Path]:
    """A folder with images, a config and a trained run, all of whose names are hostile."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "images" / EVIL.format("sub")).mkdir(parents=True)
    for name in (IMAGE, f"images/{EVIL.format('sub')}/1.png"):
        Image.new("L", (8, 8), 20).save(folder / name)
    (folder / "odd.py").write_text(DATA)
    (folder / RECIPE).write_text(
        "epochs: 2\ndata: {name: 'odd.py:data', batch_size: 4, validation: 0.25}\nmodel: linear\n"
        "optimizer: {name: sgd, lr: 0.1}\n"
    )
    (folder / (EVIL.format("own") + ".py")).write_text(
        f"def loss(logits, targets):\n    raise LookupError({EVIL.format('loss') + FORGED!r})\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in (RUN, "second"):
            done = CliRunner().invoke(app, ["train", "--config", RECIPE, "--output", name])
            assert done.exit_code == 0, done.output
        yield folder


COMMANDS = {
    "train": ["train", "--config", RECIPE],
    "train --json": ["train", "--config", RECIPE, "--json"],
    "train --verbose": ["train", "--config", RECIPE, "--verbose"],
    "train --dry-run": ["train", "--config", RECIPE, "--dry-run"],
    "train --seeds": ["train", "--config", RECIPE, "--seeds", "2", "--epochs", "1"],
    "train: a user's loss": ["train", "--config", RECIPE, "--set", f"loss={EVIL.format('own')}.py:loss"],
    "train: an unknown value": ["train", "--config", RECIPE, "--set", f"model={EVIL.format('m')}"],
    "train: no such config": ["train", "--config", EVIL.format("nowhere") + FORGED],
    "train: an unknown option": ["train", "--" + EVIL.format("option") + FORGED],
    "sweep": ["sweep", "--config", RECIPE, "--set", "optimizer.lr=0.1,0.2", "--epochs", "1", "--output", "swept" + RUN],
    "eval": ["eval", "--trust-code", RUN],
    "eval --require": ["eval", "--trust-code", RUN, "--require", "recall." + CLASSES[0] + ">=0"],
    "eval: no such run": ["eval", EVIL.format("none") + FORGED],
    "predict": ["predict", "--trust-code", RUN, IMAGE, "images", EVIL.format("none") + FORGED, "--skip-bad"],
    "predict -k": ["predict", "--trust-code", RUN, IMAGE, "-k", "2"],
    "predict --json": ["predict", "--trust-code", RUN, IMAGE, "--json"],
    "predict --csv": ["predict", "--trust-code", RUN, IMAGE, "--csv"],
    "explain": ["explain", "--trust-code", RUN, IMAGE],
    "explain --logits": ["explain", "--logits", "1,2", "--label", "0", "--classes", f"{EVIL.format('a')},{FORGED}b"],
    "explain: no such class": ["explain", "--trust-code", RUN, IMAGE, "--label", EVIL.format("none") + FORGED],
    "calibrate": ["calibrate", "--trust-code", RUN],
    "report": ["report", "--trust-code", RUN],
    "runs": ["runs", "."],
    "compare": ["compare", "--trust-code", RUN, "second"],
    "check-loss": ["check-loss", f"{EVIL.format('own')}.py:loss"],
    "list": ["list", EVIL.format("kind")],
    "bench": ["bench", "loss", EVIL.format("loss") + FORGED],
    "bench predict": ["bench", "predict", "--trust-code", RUN, "images", "--rounds", "2"],
    "config show": ["config", "show", RECIPE],
    "config check": ["config", "check", RECIPE],
    "config new": ["config", "new", "digits", EVIL.format("new") + ".yaml"],
    "an unknown command": [EVIL.format("command") + FORGED],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_text_from_outside_reaches_the_terminal_as_control(name: str, here: Path, app: typer.Typer) -> None:
    done = CliRunner().invoke(app, COMMANDS[name])
    assert done.exit_code in (0, 1, 2)
    assert "Traceback" not in done.output
    for stream in (done.stdout, done.stderr):
        assert not (match := FORBIDDEN.search(stream)), stream[max(0, match.start() - 80) : match.end() + 20]
    assert done.output


@pytest.mark.parametrize(
    "name", ["train", "train --dry-run", "sweep", "eval", "explain", "calibrate", "runs", "compare"]
)
def test_on_a_terminal_too_the_only_escapes_are_colors(
    name: str, here: Path, app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    arguments = [word if word != "swept" + RUN else "swept again" for word in COMMANDS[name]]
    done = CliRunner().invoke(app, arguments, color=True)
    assert done.exit_code == 0 or name == "calibrate", done.output
    assert not FORBIDDEN.search(re.sub(r"\x1b\[[0-9;]*m", "", done.output))


def test_markup_in_names_is_shown_as_it_is(here: Path, app: typer.Typer) -> None:
    for name in ("eval", "explain", "predict", "compare", "config check"):
        assert "[red]" in CliRunner().invoke(app, COMMANDS[name]).stdout


def test_json_holds_the_names_unchanged(here: Path, app: typer.Typer) -> None:
    line = json.loads(CliRunner().invoke(app, COMMANDS["predict --json"]).stdout)
    assert (line["path"], line["class"]) == (IMAGE, CLASSES[0])


def test_no_cell_of_csv_is_a_formula(here: Path, app: typer.Typer) -> None:
    header, row = csv.reader(io.StringIO(CliRunner().invoke(app, COMMANDS["predict --csv"]).stdout))
    assert header == ["path", "class", "probability"]
    assert row[1].startswith("'=1+1")
    for text in ("=1", "+1", "-1", "@a", "\t=1", "\r=1"):
        assert streams.cells([text, 1.5])[0][0] not in "=+-@\t\r"
    assert streams.cells(["a=1", -1.5]) == ["a=1", -1.5]


def test_pages_escape_names(here: Path, app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["report", "--trust-code", RUN, "--output", "page.html"]).exit_code == 0
    assert CliRunner().invoke(app, ["explain", "--trust-code", RUN, IMAGE, "--html", "explained.html"]).exit_code == 0
    assert CliRunner().invoke(app, ["compare", "--trust-code", RUN, "second", "--html", "compared.html"]).exit_code == 0
    for file in ("page.html", "explained.html", "compared.html"):
        text = (here / file).read_text()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_nothing_prints_but_the_one_module() -> None:
    root = Path(streams.__file__).parents[1]
    calls = re.compile(r"(?<![\w.])print\(|typer\.echo|click\.echo|sys\.std(out|err)\.write|os\.write\([12],")
    allowed = {"softmaxce/streams.py", "softmaxce/report/training.py", "softmaxce/bench/throughput.py", "cli/usage.py"}
    allowed |= {
        "softmaxce/bench/plain_pytorch.py",
        "softmaxce/waiting.py",
        "cli/jobs.py",
        "softmaxce/__init__.py",
        "softmaxce/models/max_pool.py",
    }
    found = {
        str(file.relative_to(root))
        for folder in ("softmaxce", "cli")
        for file in (root / folder).rglob("*.py")
        if calls.search(file.read_text())
    }
    assert found <= allowed


def test_a_text_object_and_a_cell_of_a_table_are_escaped_too() -> None:
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    printer = type(console.stdout())(file=out, force_terminal=True, width=100)
    assert isinstance(printer, Console)
    table = Table("a\nb")
    table.add_row(Text("c\nd\x1b]0;x\x07", "red"))
    printer.print(table)
    printer.print(Text("e\nf"), "g\nh")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    for expected in (r"a\nb", r"c\nd", r"e\nf g\nh"):
        assert expected in shown
