"""A data set as text, and some of its augmented images as a picture."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..files import writable
from ..inspection import Files, Inspection
from .console import plain_table, print_table
from .html.figures import LIGHT, themed

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 8  # images in a row of the picture
PROGRAM = "softmaxce"  # which has made the picture, as the file says


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print a row per class, then the files' sizes and modes, and the pixels' statistics."""
    shape = "x".join(map(str, inspection.shape))
    console.print(Text(f"{inspection.name}, {shape}, {len(inspection.classes)} classes"))
    console.print()
    table = plain_table()
    table.add_column("class")
    for split in inspection.images:
        table.add_column(split, justify="right")
    for i, name in enumerate(inspection.classes):
        table.add_row(name, *(f"{counts[i]:,}" for counts in inspection.images.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(counts):,}" for counts in inspection.images.values()))
    print_table(table, console)
    console.print()
    if inspection.files is not None:
        for line in _lines_of(inspection.files):
            console.print(Text(line), soft_wrap=True)
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (inspection.mean, inspection.std))
    console.print(Text(f"training pixels in [0, 1]: mean {mean}; standard deviation {std}"), soft_wrap=True)


def _lines_of(files: Files) -> list[str]:
    smallest, median, largest = (f"{w}x{h}" for w, h in (files.smallest, files.median, files.largest))
    lines = [f"width x height: {smallest}" + (f" to {largest}, median {median}" if smallest != largest else "")]
    for what, counts in (("modes", files.modes), ("formats", files.formats)):
        lines.append(f"{what}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return lines


def is_contact_sheet(file: Path) -> bool:
    """Whether a file is one that contact_sheet has made."""
    with writable(file), file.open("rb") as stream:
        return f"Software\0{PROGRAM}".encode() in stream.read(4096)


def contact_sheet(images: "Tensor", names: Sequence[str]) -> bytes:
    """Images [N, H, W, C] in [0, 1], under their classes' names, as a PNG file."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    content = io.BytesIO()
    with themed(LIGHT):
        figure = Figure(figsize=(1.3 * columns, 1.5 * rows), layout="constrained", facecolor="white")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for each in axes:
            each.axis("off")
        for each, image, name in zip(axes, images.numpy(), names, strict=False):
            each.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1)
            each.set_title(name if len(name) <= 18 else f"{name[:17]}…", fontsize=8, fontweight="normal", loc="center")
        figure.savefig(content, format="png", dpi=150, metadata={"Software": PROGRAM})
    return content.getvalue()
