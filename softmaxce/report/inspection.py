"""A data set as text or as a page, and some of its augmented images as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..data.progressive_resizing import describe_sizes
from ..inspection import Files, Inspection
from .console import plain_table, print_table
from .html.figures import picture_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

COLUMNS = 8  # images in a row of the picture
SAMPLE_COLUMNS = 22  # of a terminal, for an image
SHOWN = 10  # files or sets of duplicates in a list


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print a row per class, the files' sizes and modes, the pixels' statistics, and what is wrong with the images."""
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
    for line in _about_pixels(inspection):
        console.print(Text(line), soft_wrap=True)
    for heading, lines in findings(inspection):
        console.print()
        console.print(Text(heading), soft_wrap=True)
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)


def print_samples(images: "Tensor", names: Sequence[str], console: Console) -> None:
    """Draw images [N, H, W, C] in [0, 1] with their classes' names beneath, as many in a row as fit the terminal."""
    from .terminal_art import picture, side_by_side

    pixels = (images * 255).round().byte().permute(0, 3, 1, 2)
    drawn = [picture(image, console.is_terminal and not console.no_color, SAMPLE_COLUMNS) for image in pixels]
    console.print()
    for line in side_by_side(list(zip(drawn, names, strict=True)), console.width):
        console.print(line, soft_wrap=True)


def findings(inspection: Inspection) -> list[tuple[str, list[str]]]:
    """What is wrong with the images: a heading, and lines with the first of them. Empty if nothing is."""
    result = []
    if bad := inspection.unreadable:
        heading = f"unreadable: {_files(len(bad))}; training leaves them out with data.skip_bad: true"
        result.append((heading, _first([f"{file}: {reason}" for file, reason in bad.items()])))
    duplicates = inspection.duplicates
    for what, sets in (
        ("in two splits, which make held-out metrics too good", duplicates.across_splits),
        ("under two classes", duplicates.with_two_classes),
    ):
        if sets:
            lines = ["; ".join(f"{copy.name} ({copy.label}, {copy.split})" for copy in each) for each in sets]
            result.append((f"duplicates {what}: {_images(len(sets))}", _first(lines)))
    if duplicates.others:
        result.append((f"other duplicates, in one split under one class: {_images(duplicates.others)}", []))
    return result


def _first(lines: Sequence[str]) -> list[str]:
    return [*lines[:SHOWN], *([f"... and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else [])]


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _about_pixels(inspection: Inspection) -> list[str]:
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (inspection.mean, inspection.std))
    unit = "" if inspection.depth == "float32" else " in [0, 1]"
    lines = [f"training pixels{unit}: mean {mean}; standard deviation {std}"]
    return [*lines, sizes] if (sizes := describe_sizes(inspection.sizes)) else lines


def page(inspection: Inspection, images: "Tensor", names: Sequence[str]) -> str:
    """The same as one HTML page, with the contact sheet of images [N, H, W, C] in [0, 1] and their classes' names."""
    from .html.common import data_url, render_template

    lines = [] if inspection.files is None else _lines_of(inspection.files)
    return render_template(
        "inspection_page.html",
        inspection=inspection,
        lines=[*lines, *_about_pixels(inspection)],
        findings=findings(inspection),
        sheet=data_url(contact_sheet(images, names), "png"),
    )


def _lines_of(files: Files) -> list[str]:
    smallest, median, largest = (f"{w}x{h}" for w, h in (files.smallest, files.median, files.largest))
    lines = [f"width x height: {smallest}" + (f" to {largest}, median {median}" if smallest != largest else "")]
    for what, counts in (("modes", files.modes), ("formats", files.formats)):
        lines.append(f"{what}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return lines


def contact_sheet(images: "Tensor", names: Sequence[str]) -> bytes:
    """Images [N, H, W, C] in [0, 1], under their classes' names, as a PNG file."""
    return picture_file(lambda colors: _sheet(images, names), ".png")


def _sheet(images: "Tensor", names: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for each in axes:
        each.axis("off")
    for each, image, name in zip(axes, images.numpy(), names, strict=False):
        each.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1)
        each.set_title(name if len(name) <= 18 else f"{name[:17]}…", fontsize=8, fontweight="normal", loc="center")
    return figure
