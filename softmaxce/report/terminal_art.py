"""Images, bars and curves as terminal text: half blocks in color, shaded characters without."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.text import Text
from torch import Tensor

from ..data.pictures import as_picture

SHADES = " .:-=+*#%@"  # from dark to light
EIGHTHS = " ▏▎▍▌▋▊▉█"
HEIGHTS = " ▁▂▃▄▅▆▇█"
RAMP, GRAY = np.array([0.0, 95, 135, 175, 215, 255]), 28.0  # of the palette of 256 colors
WIDEST, NARROWEST = 56, 24  # columns of an image

Rows = NDArray[np.float64]  # [H, W, ...]


def resized(pixels: Rows, widest: int = WIDEST) -> Rows:
    """[H, W, channels] reduced to at most `widest` columns; small images are enlarged by an integer factor."""
    height, width = pixels.shape[:2]
    if width > widest:
        size = (widest, max(1, round(height * widest / width)))
        planes = [
            np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BOX), dtype=np.float64)
            for plane in np.moveaxis(pixels, 2, 0)
        ]
        return np.stack(planes, axis=2)
    factor = max(1, min(NARROWEST, widest) // width)
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def picture(image: Tensor, color: bool, widest: int = WIDEST) -> list[Text]:
    """An image [C, H, W] as lines, two rows of pixels each."""
    pixels = resized(as_picture(image).permute(1, 2, 0).double().numpy(), widest)
    pixels = pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)
    if not color:
        gray = (pixels @ np.array([0.299, 0.587, 0.114])) / 255
        return [
            Text("".join(SHADES[round(value * 9)] for value in row.clip(0, 1)).rstrip()) for row in _halved(gray, 0.0)
        ]
    return _half_blocks(pixels, (0, 0, 0))


def side_by_side(pictures: Sequence[tuple[list[Text], str]], width: int) -> list[Text]:
    """Pictures of one size, each above its caption, as many in a row as fit in `width` columns."""
    each = max(map(len, pictures[0][0]))
    per_row = max(1, (width + 2) // (each + 2))
    lines: list[Text] = []
    for start in range(0, len(pictures), per_row):
        row = pictures[start : start + per_row]
        captions = [Text(name if len(name) <= each else f"{name[: each - 1]}…") for _, name in row]
        for parts in [*zip(*(picture for picture, _ in row), strict=True), captions, [Text()]]:
            line = Text()
            for part in parts:
                padded = part.copy()
                padded.pad_right(each + 2 - len(part))
                line.append_text(padded)
            line.rstrip()
            lines.append(line)
    return lines


def signed_map(
    values: Rows, largest: float, color: bool, widest: int = WIDEST, *, true_color: bool = True
) -> list[Text]:
    """A map [H, W]: positive values are red, or + and #, negative blue, or - and =; `largest` has full strength."""
    values = resized(values[:, :, None], widest)[:, :, 0] / max(largest, 1e-300)
    if not color:
        return [Text("".join(map(_sign, row))) for row in _halved(values, 0.0)]
    strength = np.sqrt(np.abs(values).clip(0, 1))  # the square root looks linear to the eye
    if not true_color:  # of the 256 colors, the reds, the blues and a gray that are exact
        level = np.round(strength * 5).astype(int)
        red, blue = RAMP[level] * (values > 0), RAMP[level] * (values < 0)
        colors = np.stack([red, np.zeros_like(red), blue], axis=2)
        colors[level == 0] = GRAY
        return _half_blocks(colors, (GRAY, GRAY, GRAY))
    rgb = np.full((*values.shape, 3), 24.0)
    rgb[:, :, 0] += np.where(values > 0, 231 * strength, 0)
    rgb[:, :, 1] += np.where(values > 0, 60 * strength, 110 * strength)
    rgb[:, :, 2] += np.where(values < 0, 231 * strength, 0)
    return _half_blocks(rgb, (24, 24, 24))


def _sign(value: float) -> str:
    if abs(value) < 0.08:
        return "·"
    if value > 0:
        return "#" if value > 0.4 else "+"
    return "=" if value < -0.4 else "-"


def _halved(values: Rows, fill: float) -> Rows:
    """Pairs of pixel rows averaged: a character is twice as high as wide."""
    if len(values) % 2:
        values = np.concatenate([values, np.full((1, values.shape[1]), fill)])
    halves: Rows = (values[0::2] + values[1::2]) / 2
    return halves


def _half_blocks(pixels: Rows, fill: tuple[float, float, float]) -> list[Text]:
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, np.broadcast_to(np.array(fill, float), (1, *pixels.shape[1:]))])
    lines = []
    for upper, lower in zip(pixels[0::2].round().astype(int), pixels[1::2].round().astype(int), strict=True):
        line = Text()
        for above, below in zip(upper, lower, strict=True):
            line.append("▀", f"rgb({_rgb(above)}) on rgb({_rgb(below)})")
        lines.append(line)
    return lines


def _rgb(pixel: NDArray[np.int64]) -> str:
    return ",".join(str(min(255, max(0, value))) for value in pixel.tolist())


def bar(value: float, low: float, high: float, width: int) -> str:
    """A bar from 0 to `value` on an axis from `low` (at most 0) to `high` (at least 0)."""
    span = high - low or 1.0
    left = round(-low / span * width)
    axis = "│" if left else ""
    if value >= 0:
        eighths = round(value / span * width * 8)
        return " " * left + axis + "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    halves = min(2 * left, round(-value / span * width * 2))
    drawn = "▐" * (halves % 2) + "█" * (halves // 2)
    return drawn.rjust(left) + axis


def curve(probability: float, loss: float, name: str, color: str, width: int = 48, height: int = 7) -> list[Text]:
    """The curve of -log over (0, 1], filled below, with `probability` marked on it.

    Args:
        probability: in [0, 1].
        loss: -log of it, nats.
        name: of the horizontal axis.
        color: the style of the mark.
    """
    top = 5.0
    marked = min(width - 1, int(probability * width))
    lines = []
    for row in range(height):
        line = Text(f"{top:.0f} " if row == 0 else "  ")
        line.append("┤" if row == 0 else "│", "dim")
        for column in range(width):
            at = -math.log((column + 0.5) / width) if column != marked else min(loss, top)
            eighths = round(at / top * height * 8) - (height - 1 - row) * 8
            if column == marked and row == height - 1:
                eighths = max(1, eighths)
            line.append(HEIGHTS[min(8, max(0, eighths))], color if column == marked else "dim")
        lines.append(_right_stripped(line))
    lines.append(Text("0 ").append("└" + "─" * width, "dim").append(f" 1  {name}"))
    mark = f"▲ {loss:.4f}" + (" (outside the plot)" if loss > top else "")
    fits = 3 + marked + len(mark) <= 3 + width + 6
    lines.append(Text(" " * (3 + marked) + mark if fits else f"{loss:.4f} ▲".rjust(3 + marked + 1), color))
    return lines


def _right_stripped(line: Text) -> Text:
    line.rstrip()
    return line
