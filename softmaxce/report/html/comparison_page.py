"""A comparison as one self-contained HTML page: overlaid learning curves and the tables."""

import io
from pathlib import Path
from typing import Any

from ...files import check_page
from ...inference.compare import METRICS, Comparison
from ..comparison import conclusions, value_text
from .common import data_url, render_template, write_file
from .figures import DARK, LIGHT, Colors, integer_ticks, new_axes, themed

CURVES = {"loss": "Loss", "accuracy": "Accuracy"}


def write_page(comparison: Comparison, file: Path) -> None:
    """Write the page, whole or not at all. Raises: RunError if `file` is a folder; OSError if it cannot be written."""
    check_page(file, "--html", force=True)
    write_file(html(comparison), file)


def html(comparison: Comparison) -> str:
    """The page."""
    pictures = [
        {
            "light": data_url(draw(comparison, metric, LIGHT), "svg+xml"),
            "dark": data_url(draw(comparison, metric, DARK), "svg+xml"),
            "alt": f"{title} of each run over its epochs: solid where held out, dotted in training",
        }
        for metric, title in CURVES.items()
    ]
    return render_template(
        "comparison_page.html",
        comparison=comparison,
        names=METRICS,
        lines=conclusions(comparison),
        pictures=pictures,
        value_text=value_text,
    )


def draw(comparison: Comparison, metric: str, colors: Colors) -> bytes:
    """The runs' overlaid learning curves, as SVG.

    Args:
        comparison: the runs.
        metric: loss or accuracy.
        colors: of the text and the axes; the curves have matplotlib's ten colors.
    """
    out = io.BytesIO()
    with themed(colors):
        picture, axes = new_axes(6.4, 4.2)
        for number, run in enumerate(comparison.runs):
            for held_out in (False, True):
                xs, ys = _series(run.epochs, metric, held_out=held_out)
                style: dict[str, Any] = {"linestyle": "-", "label": str(number + 1)} if held_out else {"linestyle": ":"}
                axes.plot(xs, ys, color=f"C{number % 10}", marker="." if len(xs) == 1 else None, **style)
        axes.set_title(CURVES[metric])
        axes.set_xlabel("epoch (solid: held out, dotted: training)")
        integer_ticks(axes)
        axes.legend(title="run", ncols=1 + len(comparison.runs) // 8)
        picture.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _series(epochs: list[dict[str, Any]], metric: str, *, held_out: bool) -> tuple[list[int], list[float]]:
    names = ("validation", "test") if held_out else ("train",)
    points = [
        (line["epoch"], line[name][metric])
        for line in epochs
        for name in names
        if line.get(name, {}).get(metric) is not None
    ]
    return [x for x, _ in points], [y for _, y in points]
