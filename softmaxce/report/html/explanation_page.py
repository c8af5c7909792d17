"""An explanation as one self-contained HTML page, with sliders for the logits."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from ...data.pictures import as_picture
from ...explain.explanation import Explanation
from ..attribution import CAUTION, HEADING, TITLES, by_method, meaning, name_of, overlay, scale
from ..explanation import print_explanation
from ..explanation_tables import shown_classes
from .common import SMALL, photo_url, png_url, render_template, write_file

SCRIPT = Path(__file__).with_name("explanation_page.js")
LARGEST = 512  # pixels: the longer side that a larger image is reduced to


def write_page(explanation: Explanation, file: Path) -> None:
    """Write the page to a file, whole or not at all. Raises: OSError."""
    write_file(html(explanation), file)


def html(explanation: Explanation) -> str:
    """The page. Names are escaped; nothing is loaded from outside the page."""
    steps, image = explanation.steps, explanation.image
    shown = shown_classes(steps)
    data = {
        "classes": explanation.classes,
        "names": [explanation.name_in_text(index) for index in range(len(explanation.classes))],
        "shown": shown,
        "raw_logits": steps.raw_logits,
        "temperature": steps.temperature,
        "label": steps.label,
        "label_smoothing": steps.label_smoothing,
        "weight": steps.weight,
    }
    return render_template(
        "explanation_page.html",
        title=explanation.title,
        notes=explanation.notes,
        text=_as_text(explanation),
        data=data,
        script=Markup(SCRIPT.read_text(encoding="utf-8")),
        image=None if image is None else png_url(_as_image(image), LARGEST),
        pixels="" if image is None else f"{image.shape[1]} x {image.shape[2]}",
        pixelated=image is not None and max(image.shape[1:]) <= SMALL,
        maps=_maps(explanation, shown),
        attribution={"heading": HEADING, "caution": CAUTION, "methods": _attributions(explanation)},
        own_loss=explanation.own_loss,
        formats=explanation.formats,
    )


def _as_text(explanation: Explanation) -> str:
    """The terminal's text, for a browser without JavaScript."""
    console = Console(file=io.StringIO(), width=80, color_system=None, highlight=False, markup=False, emoji=False)
    print_explanation(explanation, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def _maps(explanation: Explanation, shown: list[int]) -> list[dict[str, Any]]:
    """For each shown class a map of its pixels' contributions, on one scale."""
    contributions = explanation.contributions
    if contributions is None:
        return []
    pixels = contributions.pixels.double().numpy()[shown]
    largest = max(float(np.abs(pixels).max()), 1e-300)
    return [
        {
            "name": explanation.classes[index],
            "logit": f"{explanation.steps.raw_logits[index]:.4f}",
            "source": png_url(_diverging(values / largest), LARGEST),
        }
        for index, values in zip(shown, pixels, strict=True)
    ]


def _attributions(explanation: Explanation) -> list[dict[str, Any]]:
    """For each method its title, what it is and is not, and its maps over the image."""
    image = explanation.image
    if image is None:
        return []
    methods = []
    for maps in by_method(explanation.attributions):
        largest = scale(maps)
        pictures = [
            {
                "name": name_of(explanation, one),
                "source": photo_url(_as_image(overlay(image, one.values, largest)), LARGEST),
            }
            for one in maps
        ]
        shown = pictures if largest else []
        methods.append({"title": TITLES[maps[0].method], "meaning": meaning(maps[0]), "maps": shown})
    return methods


def _diverging(values: NDArray[np.float64]) -> Image.Image:
    """[H, W] in [-1, 1]: positive red, negative blue, 0 transparent, for any background."""
    rgba = np.zeros((*values.shape, 4))
    rgba[values > 0] = (207, 34, 46, 0)
    rgba[values < 0] = (9, 105, 218, 0)
    rgba[:, :, 3] = 255 * np.sqrt(np.abs(values))  # the square root looks linear to the eye
    return Image.fromarray(rgba.round().astype(np.uint8), "RGBA")


def _as_image(image: Tensor) -> Image.Image:
    pixels = as_picture(image).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
