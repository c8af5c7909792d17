"""The pages that a report's mistakes link to: each image's loss, step by step, as `softmaxce explain --html`."""

from pathlib import Path

from ...explain.trained import explain_image
from ...files import make_folder
from ...inference.analysis import MISTAKES, RunAnalysis
from .explanation_page import write_page


def write_explanations(analysis: RunAnalysis, folder: Path) -> dict[int, Path]:
    """Write a page for each of the most confident mistakes.

    Args:
        analysis: of the run.
        folder: where the pages go; made if there is something to write.
    Returns: the pages, by the mistake's index.
    """
    pages = {}
    if analysis.mistakes:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_folder(folder)
    for mistake in analysis.mistakes[:MISTAKES]:
        image = mistake.file or f"{analysis.split} image {mistake.index} of {analysis.model.config.source.name}"
        explanation = explain_image(
            analysis.model,
            mistake.image,
            analysis.classes.index(mistake.label),
            title=f"{image}, classified by {analysis.folder}",
        )
        pages[mistake.index] = folder / f"{analysis.split}-{mistake.index}.html"
        write_page(explanation, pages[mistake.index])
    return pages
