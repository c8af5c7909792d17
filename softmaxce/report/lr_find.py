"""A learning-rate range test as text, as a picture and as JSON."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from ..training.range_test import RangeTest
from .console import print_text
from .html.figures import Colors, new_axes, picture_file, plain_log
from .terminal_art import HEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 72, 12  # characters of the curve
ROOM = 0.5  # above the first loss, as a fraction of what it falls by: a loss that diverges is cut off there


def print_range_test(result: RangeTest, unchanged: Sequence[str], command: str, console: Console) -> None:
    """Print the curve, the rates that it suggests or why there are none, and the next command.

    Args:
        result: the test's.
        unchanged: the keys with learning rates that it did not vary.
        command: that trains with the rate.
        console: where to.
    """
    for row in curve(result, console.width):
        console.print(row, soft_wrap=True)
    console.print()
    rules = {
        "a tenth of the rate with the smallest smoothed loss": result.tenth_of_minimum,
        "where the smoothed loss falls fastest (over the logarithm of the rate)": result.steepest,
    }
    for rule, rate in rules.items():
        if rate is not None:
            print_text(f"lr {rate:.2g}: {rule}", console, "bold" if rate == result.suggested else "")
    if result.suggested is None:
        print_text(f"no learning rate: {result.reason}", console, "bold")
    if result.stopped_at is not None:
        print_text(f"stopped at {result.stopped_at:.2g}, where the loss diverged", console)
    if result.suggested is not None and result.reason:
        print_text(result.reason, console)
    if unchanged:
        verb = "has its own rate and was" if len(unchanged) == 1 else "have their own rates and were"
        print_text(f"lr is optimizer.lr; {' and '.join(unchanged)} {verb} not varied", console)
    if result.suggested is not None:
        console.print(f"next: {command}", soft_wrap=True)


def train_command(words: Sequence[str], rate: float | None) -> str:
    """The command line that trains with a rate; empty if there is none."""
    return "" if rate is None else shlex.join(["softmaxce", "train", *words, "--lr", f"{rate:.2g}"])


def to_dict(result: RangeTest, unchanged: Sequence[str], command: str) -> dict[str, Any]:
    """The result for JSON: losses in nats per image."""
    return {
        "lr": None if result.suggested is None else float(f"{result.suggested:.2g}"),
        "tenth_of_minimum": result.tenth_of_minimum,
        "steepest": result.steepest,
        "stopped_at": result.stopped_at,
        "reason": result.reason,
        "unchanged": list(unchanged),
        "command": command,
        "rates": result.rates,
        "losses": result.losses,
        "smoothed": result.smoothed,
    }


def _top(result: RangeTest) -> float:
    """The largest loss that is shown."""
    first, low, high = result.smoothed[0], min(result.smoothed), max(result.smoothed)
    return min(high, first + ROOM * (first - low)) if low < first and result.suggested is not None else high


def curve(result: RangeTest, columns: int) -> list[Text]:
    """The smoothed loss over the logarithm of the rate, filled below, with the steepest rate marked."""
    if not result.smoothed:
        return []
    top, low = _top(result), min(result.smoothed)
    labels = [f"{top:.3g}", f"{low:.3g}"]
    margin = max(map(len, labels)) + 2
    width = max(10, min(WIDTH, columns - margin - 12))
    steps = np.arange(len(result.smoothed))
    heights = np.interp(np.linspace(0, steps[-1], width), steps, result.smoothed)
    scale = (heights.clip(low, top) - low) / ((top - low) or 1.0)
    eighths = 1 + np.round(scale * (HEIGHT * 8 - 1)).astype(int)
    marked = -1
    if result.suggested is not None and result.suggested >= result.rates[0]:
        marked = round(
            float(np.interp(np.log(result.suggested), np.log(result.rates), steps)) / steps[-1] * (width - 1)
        )
    lines = []
    for row in range(HEIGHT):
        label = labels[0] if row == 0 else labels[1] if row == HEIGHT - 1 else ""
        line = Text(f"{label:>{margin - 2}} ").append("┤" if label else "│", "dim")
        for column, filled in enumerate(eighths - (HEIGHT - 1 - row) * 8):
            line.append(HEIGHTS[min(8, max(0, filled))], "bold green" if column == marked else "dim")
        line.rstrip()
        lines.append(line)
    lines.append(Text(" " * (margin - 1)).append("└" + "─" * width, "dim"))
    first, last = f"{result.rates[0]:.2g}", f"{result.rates[-1]:.2g}"
    axis = Text(" " * margin + first + " " * max(1, width - len(first) - len(last)) + last + "  lr")
    if marked >= 0:
        text = f"▲ {result.suggested:.2g}"
        lines.append(Text(" " * (margin + marked)).append(text, "bold green"))
    return [*lines, axis]


def picture(result: RangeTest, suffix: str) -> bytes:
    """The curve as the content of an SVG or PNG file."""
    return picture_file(lambda colors: _draw(result, colors), suffix)


def _draw(result: RangeTest, colors: Colors) -> "Figure":
    figure, axes = new_axes(6.4, 4.0)
    axes.plot(result.rates, result.losses, color=colors.faint, linewidth=0.8, alpha=0.6, label="each step")
    axes.plot(result.rates, result.smoothed, color=colors.blue, label="smoothed")
    for rate, style, what in ((result.tenth_of_minimum, "-", "minimum / 10"), (result.steepest, ":", "steepest")):
        if rate is not None:
            axes.axvline(rate, color=colors.orange, linewidth=1.2, linestyle=style, label=f"{what}, {rate:.2g}")
    axes.set_xscale("log")
    axes.set_xlim(result.rates[0], result.rates[-1])
    plain_log(axes.xaxis)
    low, top = min(result.smoothed), _top(result)
    margin = 0.05 * (top - low) or 0.05
    axes.set_ylim(low - margin, top + margin)
    axes.set(title="Learning-rate range test", xlabel="learning rate (optimizer.lr)", ylabel="training loss")
    axes.legend(fontsize=9)
    return figure
