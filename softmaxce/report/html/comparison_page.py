"""A comparison as one HTML page that needs nothing beside it: the learning curves over each other, and the tables."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...errors import RunError
from ...files import replace_file
from ...inference.compare import FIGURES, Comparison
from ..comparison import conclusions, value_text
from .figures import DARK, LIGHT, Ink, axes_of, in_style, whole_numbers

CURVES = {"loss": "Loss", "accuracy": "Accuracy"}


def write_page(found: Comparison, file: Path) -> None:
    """Write the page, whole or not at all. Raises: RunError if `file` is a folder; OSError if it cannot be written."""
    if file.is_dir():
        raise RunError(f"--html {file}: is a folder; name the page's file, for example {file / 'compare.html'}")
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, html(found).encode())


def html(found: Comparison) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of folders, classes and models are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value_text"] = value_text
    pictures = [
        {
            "light": _address(draw(found, figure, LIGHT)),
            "dark": _address(draw(found, figure, DARK)),
            "alt": f"{title} of each run, epoch by epoch: solid where held out, dashed in training",
        }
        for figure, title in CURVES.items()
    ]
    return environment.get_template("comparison_page.html").render(
        found=found, names=FIGURES, lines=conclusions(found), pictures=pictures
    )


def draw(found: Comparison, figure: str, ink: Ink) -> bytes:
    """The runs' learning curves over each other, as SVG.

    Args:
        found: whose.
        figure: loss or accuracy.
        ink: the colours of the text and the axes; the curves take matplotlib's own ten.
    """
    out = io.BytesIO()
    with in_style(ink):
        picture, axes = axes_of(6.4, 4.2)
        for number, run in enumerate(found.runs):
            for held_out in (False, True):
                xs, ys = _series(run.epochs, figure, held_out=held_out)
                style: dict[str, Any] = {"linestyle": "-", "label": str(number + 1)} if held_out else {"linestyle": ":"}
                axes.plot(xs, ys, color=f"C{number % 10}", marker="." if len(xs) == 1 else None, **style)
        axes.set_title(CURVES[figure])
        axes.set_xlabel("epoch (solid: held out, dotted: training)")
        whole_numbers(axes)
        axes.legend(title="run", ncols=1 + len(found.runs) // 8)
        picture.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _series(epochs: list[dict[str, Any]], figure: str, *, held_out: bool) -> tuple[list[int], list[float]]:
    names = ("validation", "test") if held_out else ("train",)
    points = [
        (line["epoch"], line[name][figure])
        for line in epochs
        for name in names
        if line.get(name, {}).get(figure) is not None
    ]
    return [x for x, _ in points], [y for _, y in points]


def _address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
