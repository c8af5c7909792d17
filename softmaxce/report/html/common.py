"""What the pages share: the template environment, images inside the page, writing a page to a file."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ...files import replace_file, writable
from ...streams import escaped_lines

SMALL = 96  # pixels: an image with no longer side is enlarged without interpolation

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # names of classes, files, folders and models come from outside
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "percent": lambda fraction: percent(fraction),
    "whole_percent": lambda fraction: f"{100 * fraction:.0f}%",
    "decimals": lambda value: f"{value:.4f}",
    "count": lambda n: f"{n:,}",
}


def percent(fraction: float) -> str:
    """0.99243 as 99.24%."""
    return f"{100 * fraction:.2f}%"


def render_template(name: str, **values: Any) -> str:
    """A page from one of the templates in this folder, its control characters escaped."""
    return escaped_lines(ENVIRONMENT.get_template(name).render(**values))


def data_url(content: bytes, kind: str) -> str:
    """An image's bytes as the address of an image; `kind` is svg+xml, png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png_url(image: Image.Image, largest: int, *, optimize: bool = False) -> str:
    """An image as a data URL, reduced so that no side is longer than `largest` pixels."""
    image.thumbnail((largest, largest))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=optimize)
    return data_url(stream.getvalue(), "png")


def photo_url(image: Image.Image, largest: int) -> str:
    """As png_url, for RGB or gray images; larger ones than SMALL as JPEG, which is a tenth as large."""
    if max(image.size) <= SMALL:
        return png_url(image, largest, optimize=True)
    image.thumbnail((largest, largest))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return data_url(stream.getvalue(), "jpeg")


def write_file(page: str, file: Path) -> None:
    """Write a page, whole or not at all; its folder is made. Raises: RunError if it cannot be written."""
    with writable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, page.encode("utf-8", "backslashreplace"))
