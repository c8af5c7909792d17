"""An explanation as one HTML page that needs nothing beside it: sliders move the logits, and every step follows."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from ...explain.explanation import Explanation
from ...files import replace_file
from ..explanation import print_explanation, rows_for

SCRIPT = Path(__file__).with_name("explanation_page.js")
SMALL = 96  # pixels: the sides of an image whose pixels should be seen as squares
LARGEST = 512  # pixels: the side that a larger image is reduced to


def write_page(explanation: Explanation, file: Path) -> None:
    """Write the page to a file, whole or not at all. Raises: OSError."""
    replace_file(file, html(explanation).encode())


def html(explanation: Explanation) -> str:
    """The page. What comes from names and files is escaped; nothing is loaded from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    steps, image = explanation.steps, explanation.image
    shown = rows_for(steps)
    data = {
        "classes": explanation.classes,
        "shown": shown,
        "raw_logits": steps.raw_logits,
        "temperature": steps.temperature,
        "label": steps.label,
        "label_smoothing": steps.label_smoothing,
        "weight": steps.weight,
    }
    return environment.get_template("explanation_page.html").render(
        title=explanation.title,
        notes=explanation.notes,
        text=_as_text(explanation),
        data=data,
        script=Markup(SCRIPT.read_text(encoding="utf-8")),
        image=None if image is None else _source(_as_image(image)),
        pixels="" if image is None else f"{image.shape[1]} x {image.shape[2]}",
        pixelated=image is not None and max(image.shape[1:]) <= SMALL,
        maps=_maps(explanation, shown),
        own_loss=explanation.own_loss,
        formats=explanation.formats,
    )


def _as_text(explanation: Explanation) -> str:
    """What the terminal shows, for a browser without scripts."""
    console = Console(file=io.StringIO(), width=80, color_system=None, highlight=False, markup=False, emoji=False)
    print_explanation(explanation, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def _maps(explanation: Explanation, shown: list[int]) -> list[dict[str, Any]]:
    """Each shown class's map of what its pixels pushed, red up and blue down, on one scale."""
    found = explanation.contributions
    if found is None:
        return []
    pixels = found.pixels.double().numpy()[shown]
    largest = max(float(np.abs(pixels).max()), 1e-300)
    return [
        {
            "name": explanation.classes[index],
            "logit": f"{explanation.steps.raw_logits[index]:.4f}",
            "source": _source(_diverging(values / largest)),
        }
        for index, values in zip(shown, pixels, strict=True)
    ]


def _diverging(values: NDArray[np.float64]) -> Image.Image:
    """[H, W] in [-1, 1] as red for more than 0 and blue for less, clear at 0, so that it stands on any ground."""
    rgba = np.zeros((*values.shape, 4))
    rgba[values > 0] = (207, 34, 46, 0)
    rgba[values < 0] = (9, 105, 218, 0)
    rgba[:, :, 3] = 255 * np.sqrt(np.abs(values))  # the eye takes the root for even
    return Image.fromarray(rgba.round().astype(np.uint8), "RGBA")


def _as_image(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def _source(image: Image.Image) -> str:
    """The picture inside an address."""
    image.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
