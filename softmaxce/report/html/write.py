"""A report's files: the page, the explanations that it links to, and in the run folder its pictures."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...errors import RunError
from ...files import replace_file
from ...inference.analysis import find
from .explanations import write_explanations
from .figures import LIGHT, PICTURES, render
from .report_page import html

PAGE, PICTURE_FOLDER = "report.html", "pictures"


@dataclass(frozen=True)
class Written:
    """Where a report is.

    Attributes:
        page: the HTML file.
        pictures: the folder with the pictures, each as SVG and PNG.
        explanations: the folder with a page for each image of the gallery.
    """

    page: Path
    pictures: Path
    explanations: Path


def write_report(
    folder: Path,
    output: Path | None = None,
    split: str | None = None,
    device: str | None = None,
    *,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Written:
    """Measure a run's model and write its report.

    Args:
        folder: the run folder; the pictures go to its `pictures` folder.
        output: the page's file; None for report.html in the run folder. The explanations go to a folder beside it,
            of the same name without its ending.
        split: test, validation or train; None for the first of these that the run has.
        device: where to compute; None for auto.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: use the run's splits although their images are others than at training.
    Raises: RunError, ConfigError, DataError; OSError if a file cannot be written.
    """
    page = output if output is not None else folder / PAGE
    if page.is_dir():
        raise RunError(f"--output {page}: is a folder; name the page's file, for example {page / PAGE}")
    findings = find(folder, split, device, trust_code=trust_code, allow_changed_data=allow_changed_data)
    page.parent.mkdir(parents=True, exist_ok=True)
    explanations = page.with_suffix("") if page.suffix else page.with_name(page.name + "-explained")
    pages = write_explanations(findings, explanations)
    links = {index: quote(file.relative_to(page.parent).as_posix()) for index, file in pages.items()}
    replace_file(page, html(findings, links).encode())
    pictures = folder / PICTURE_FOLDER
    pictures.mkdir(exist_ok=True)
    for picture in PICTURES:
        for kind in ("svg", "png"):
            replace_file(pictures / f"{picture.name}.{kind}", render(picture, findings, LIGHT, kind))
    return Written(page, pictures, explanations)
