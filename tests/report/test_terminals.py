"""Tables on terminals of any width and few colors, and in pipes."""

import contextlib
import io
import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console

from softmaxce.build import build_run
from softmaxce.config import reader
from softmaxce.report import comparison, console, evaluation, laws, run_list, terminal_art, training
from softmaxce.runs.listing import RunRow
from softmaxce.training.run import Epoch
from softmaxce.training.tally import Scores


class Stream(io.StringIO):
    """A stream that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def printer(stream: Stream) -> Console:
    """The console for stdout, if that is this stream."""
    with contextlib.redirect_stdout(stream):
        return console.stdout()


def lines(stream: Stream) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stream:
    """Stdout: a terminal of so many columns, or a pipe (0)."""
    width: int = request.param
    made = Stream(bool(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width or 80))
    return made


WIDTHS = pytest.mark.parametrize("stream", [30, 40, 60, 76, 77, 80, 120, 0], indirect=True)


def run(number: int) -> RunRow:
    fields = dict.fromkeys(RunRow.__dataclass_fields__)
    fields |= {"folder": Path("runs/image_folder_of_flowers", str(number)), "recipe": "image_folder_of_flowers"}
    fields |= {"model": "resnet9", "loss": "softmax_cross_entropy", "epochs": 12, "epochs_done": 12, "validation": 0.5}
    return RunRow(**(fields | {"test": 0.25, "seconds": 90.0, "status": "stopped_early"}))  # type: ignore[arg-type]


@WIDTHS
def test_runs_are_a_line_each_with_their_paths_whole(stream: Stream) -> None:
    run_list.print_runs([run(1), run(2)], printer(stream))
    header, rule, *rows = lines(stream)
    assert len(rows) == 2
    for number, row in enumerate(rows, 1):
        assert row.startswith(f"runs/image_folder_of_flowers/{number}")
        assert row == row.rstrip()
    assert "test" in header
    if stream.terminal:
        columns = printer(stream).width
        assert all(cell_len(line) <= max(columns, 44) for line in (header, rule, *rows))
        assert ("softmax_cross_entropy" in rows[0]) == (columns == 120)
    else:
        assert "softmax_cross_entropy" in rows[0]


def epoch(number: int) -> Epoch:
    fields = dict.fromkeys(Epoch.__dataclass_fields__)
    fields |= {"number": number, "learning_rate": 0.01, "train": Scores(loss=0.1234, accuracy=0.9, images=10)}
    fields |= {
        "validation": Scores(loss=0.4567, accuracy=0.8765, images=10),
        "seconds": 1.5,
        "images_per_second": 999.0,
        "best": True,
    }
    return Epoch(**fields)  # type: ignore[arg-type]


@WIDTHS
def test_the_epoch_table_drops_columns_and_cuts_none(stream: Stream) -> None:
    table = training.GrowingTable(printer(stream))
    table.epochs = 12
    for number in (9, 10):
        table.epoch(epoch(number))
    shown = lines(stream)
    assert len(shown) == 4  # a header, a rule, a row each
    assert "…" not in stream.getvalue()
    for line in shown:
        assert line == line.rstrip()
        assert not stream.terminal or cell_len(line) <= printer(stream).width
    assert shown[2].split()[0] == "9/12"
    assert {"0.8765"} <= set(shown[2].split())
    if printer(stream).width >= 77:
        assert " ".join(shown[0].split()) == "epoch lr train loss train acc val loss val acc images/s sec"


@pytest.mark.parametrize("best_metric", ["loss", "accuracy"])
def test_the_bold_column_is_the_metric_that_best_follows_and_the_bar_estimates_the_run(best_metric: str) -> None:
    config = reader.load("digits", [reader.Override(("best_metric",), best_metric, "")])
    run = build_run(config)
    out = io.StringIO()
    table = training.GrowingTable(Console(file=out, force_terminal=True, width=100, color_system="standard"))
    table.expect(run)
    table.epoch(epoch(1))
    bold = re.findall(r"\x1b\[1m *([0-9.]+)\x1b", out.getvalue())
    assert bold == ["0.4567" if best_metric == "loss" else "0.8765"]
    table.began = time.monotonic() - 60
    batches = run.train.epoch(1)
    for images, labels in itertools.islice(table.track(batches, 0, 1), 2):
        run.tally.add(torch.tensor(0.25), torch.zeros(len(labels), 10), labels)
        run.tally.images += len(images)
        time.sleep(training.REFRESH)
    shown = out.getvalue()
    assert "loss 0.2500" in shown
    assert re.search(r"run (\d+:)?\d+:\d\d left", shown)


def test_the_time_left_is_that_of_all_images_still_to_come() -> None:
    assert training.time_left(10.0, 100, 900) == "run 1:30 left"
    assert training.time_left(36.0, 10, 1000) == "run 1:00:00 left"


def test_columns_go_in_the_order_of_their_worth() -> None:
    names = ("epoch", "lr", "train loss", "train acc", "val loss", "val acc", "images/s", "sec", "best")
    shown = [{names[i] for i in training.columns_that_fit(width)} for width in range(120, 0, -1)]
    assert shown[0] == set(names)
    gone = [name for before, after in itertools.pairwise(shown) for name in before - after]
    assert gone == ["images/s", "lr", "sec", "train acc", "train loss", "best", "val loss"]


@pytest.mark.parametrize("stream", [80], indirect=True)
def test_the_heat_of_a_confusion_matrix_needs_no_background(stream: Stream) -> None:
    """On a light terminal a dark background is a black block; 16 colors have few of them."""
    for fraction in (0.0, 0.01, 0.3, 1.0):
        for correct in (True, False):
            assert " on " not in evaluation._shade(fraction, correct)
            assert "rgb" not in evaluation._shade(fraction, correct)
    assert all("yellow" not in style for style in laws.STYLES.values())


def test_of_256_colors_a_pixel_map_uses_those_that_are_exact() -> None:
    """Otherwise a dark gray with a touch of red would be drawn as dark red."""
    values = np.linspace(-1, 1, 48)[None, :].repeat(2, axis=0)
    (line,) = terminal_art.signed_map(values, 1.0, color=True, true_color=False)
    assert len(line.spans) == 48
    for span, value in zip(line.spans, values[0], strict=True):
        red, green, blue = map(int, re.findall(r"\d+", str(span.style))[:3])
        shown = Color.from_rgb(red, green, blue).downgrade(ColorSystem.EIGHT_BIT)
        assert shown.get_truecolor() == (red, green, blue)
        if abs(value) < 0.005:
            assert red == green == blue
        elif abs(value) > 0.05:
            assert (red > blue) == (value > 0)
            assert green == 0


@pytest.mark.parametrize("stream", [60, 0], indirect=True)
def test_a_note_is_wrapped_once_on_a_terminal_and_not_in_a_pipe(stream: Stream) -> None:
    text = "word " * 40
    console.print_text(text.strip(), printer(stream))
    shown = lines(stream)
    assert (len(shown) == 1) == (not stream.terminal)
    assert all(len(line) > 40 for line in shown[:-1])


def test_a_value_of_a_config_is_no_python_in_a_table() -> None:
    crop = {"name": "random_crop", "padding": 8, "padding_mode": "reflect"}
    assert comparison.value_text([crop, {"name": "flip"}]) == "random_crop(padding=8, padding_mode=reflect), flip"
    assert comparison.value_text([]) == "none"
    assert comparison.value_text([16, 0.5, True]) == "16, 0.5, true"
