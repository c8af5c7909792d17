"""A report's files: the page, the explanations that it links to, and the figures in the run folder."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...files import check_page, make_folder, replace_file, writable
from ...inference.analysis import analyze
from .common import write_file
from .explanations import write_explanations
from .figures import render_all
from .report_page import html

PAGE, PICTURE_FOLDER = "report.html", "pictures"


@dataclass(frozen=True)
class Written:
    """Where a report was written.

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
    data_root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Written:
    """Evaluate a run's model and write its report.

    Args:
        folder: the run folder.
        output: the page's file; None for report.html in the run folder. The explanations go to a folder beside it,
            of the same name without its ending. The pictures go to the run's `pictures` folder, or, with `output`, to
            that of the explanations, so that nothing is written to the run.
        split: test, validation or train; None for the first of these that the run has.
        device: as in TrainedModel.open.
        data_root: where the data set is now, as in TrainedModel.open.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: use the run's splits although their images are not those of the training.
    Raises: RunError, ConfigError, DataError; OSError if a file cannot be written.
    """
    page = output if output is not None else folder / PAGE
    check_page(page, "--output" if output is not None else "", force=True)
    analysis = analyze(
        folder, split, device, data_root=data_root, trust_code=trust_code, allow_changed_data=allow_changed_data
    )
    explanations = page.with_suffix("") if page.suffix else page.with_name(page.name + "-explained")
    with writable(explanations):
        pages = write_explanations(analysis, explanations)
    links = {index: quote(file.relative_to(page.parent).as_posix()) for index, file in pages.items()}
    drawings = render_all(analysis)
    write_file(html(analysis, drawings, links), page)
    pictures = (folder if output is None else explanations) / PICTURE_FOLDER
    with writable(pictures):
        if output is not None:
            make_folder(explanations)  # it is not there yet if there was no mistake to explain
        make_folder(pictures)
        for name, drawing in drawings.items():
            replace_file(pictures / f"{name}.svg", drawing.light)
            replace_file(pictures / f"{name}.png", drawing.png)
    return Written(page, pictures, explanations)
