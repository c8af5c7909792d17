"""The pages behind a report's gallery: each mistake's loss, step by step, as `softmaxce explain --html` tells it."""

from pathlib import Path

from ...explain.trained import explain_image
from ...inference.analysis import Findings
from .explanation_page import write_page


def write_explanations(findings: Findings, folder: Path) -> dict[int, Path]:
    """Write a page for each mistake.

    Args:
        findings: whose mistakes.
        folder: where the pages go; made if there is something to write.
    Returns: the pages, by the mistake's index.
    """
    pages = {}
    for mistake in findings.mistakes:
        folder.mkdir(parents=True, exist_ok=True)
        what = mistake.file or f"{findings.split} image {mistake.index} of {findings.config.source.name}"
        explanation = explain_image(
            findings.evaluation,
            mistake.image,
            findings.classes.index(mistake.label),
            title=f"{what}, by {findings.folder}",
            temperature=findings.final.temperature,
        )
        pages[mistake.index] = folder / f"{findings.split}-{mistake.index}.html"
        write_page(explanation, pages[mistake.index])
    return pages
