"""A report as one HTML page that needs nothing beside it: pictures and images lie inside, and there is no script."""

import base64
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from ...config import yamlfile
from ...inference.analysis import Findings, Judgement
from ...inference.metrics import ClassMetrics, Metrics
from ...runs import listing
from ..evaluation import CONFUSIONS, MEANINGS
from .figures import DARK, LIGHT, PICTURES, render

LARGEST = 192  # pixels: the side that a larger image of the gallery is reduced to
MOST_ROWS = 30  # classes; more are sorted, the weakest first
SURE = 2  # standard deviations that chance may account for

STATUS = {
    "completed": "completed",
    "stopped_early": "stopped early",
    "running": "still running, or killed",
    "failed": "failed",
    "interrupted": "interrupted",
    "terminated": "terminated",
}


def html(findings: Findings, links: Mapping[int, str]) -> str:
    """The page.

    Args:
        findings: what it shows.
        links: the addresses of the mistakes' explanations, by their index.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, files and folders are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "whole_percent": lambda share: f"{100 * share:.0f}%",
        "figure": lambda value: f"{value:.4f}",
        "count": lambda n: f"{n:,}",
    }
    return environment.get_template("report_page.html").render(
        findings=findings,
        record=findings.record,
        status=STATUS.get(str(findings.record.get("status")), findings.record.get("status")),
        verdict=verdict(findings),
        figures=_figure_rows(findings),
        classes=_class_rows(findings.judged[0].figures),
        weakest_first=len(findings.classes) > MOST_ROWS,
        confusions=_confusions(findings.judged[0].figures),
        pictures={picture.name: _picture(picture, findings) for picture in PICTURES},
        images={mistake.index: _image(mistake.image) for mistake in findings.mistakes},
        pixelated=max(findings.mistakes[0].image.shape[1:]) <= LARGEST if findings.mistakes else False,
        tail=_tail(findings.losses),
        links=links,
        commands=_commands(findings),
        config=yamlfile.dump(findings.config.to_dict()),
        environment=listing.flat(findings.record.get("environment", {})),
    )


def percent(share: float) -> str:
    """0.99243 as 99.24%."""
    return f"{100 * share:.2f}%"


def verdict(findings: Findings) -> list[str]:
    """What one look should tell, in a few sentences."""
    figures = findings.final.figures
    right = int(findings.hits.sum())
    lines = [f"{right:,} of {figures.images:,} {findings.split} images are right: {percent(figures.accuracy)}."]
    confusions = _confusions(figures)[:3]
    if confusions:
        told = ", ".join(f"{label} taken for {other} ({_times(count)})" for label, other, count in confusions)
        lines.append(f"Most often confused: {told}.")
    return [*lines, _belief(findings.final)]


def _belief(judgement: Judgement) -> str:
    excess = judgement.confidence - judgement.figures.accuracy
    sure = f"on average it is {percent(judgement.confidence)} sure and {percent(judgement.figures.accuracy)} right"
    if abs(excess) <= SURE * judgement.deviation:
        return f"On the whole its probabilities mean what they say: {sure}; chance alone may differ by so much."
    return f"It is {'surer than it should be' if excess > 0 else 'less sure than it could be'}: {sure}."


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _figure_rows(findings: Findings) -> list[tuple[str, str, list[str]]]:
    """(name, meaning, its value at each temperature)."""
    rows = []
    for name, meaning in MEANINGS.items():
        values = [getattr(judgement.figures, name) for judgement in findings.judged]
        if values[0] is not None:
            told = [f"{value:.4f}" for value in values]
            if name == "loss":
                told[1:] = ["–"] * (len(told) - 1)  # it is of the logits as they are, whatever the temperature
            rows.append((name, meaning, told))
    return rows


def _class_rows(figures: Metrics) -> list[tuple[ClassMetrics, str]]:
    """A row a class, with what its images are most often taken for."""
    rows = []
    for index, (row, counts) in enumerate(zip(figures.classes, figures.confusion, strict=True)):
        wrong = [(count, other) for other, count in enumerate(counts) if other != index and count]
        most = max(wrong, key=lambda pair: (pair[0], -pair[1]), default=None)
        taken = f"{figures.classes[most[1]].name} ({most[0]:,})" if most else "–"
        rows.append((row, taken))
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda entry: entry[0].f1)
    return rows


def _confusions(figures: Metrics) -> list[tuple[str, str, int]]:
    """(label, prediction, how often), the most frequent first."""
    names = [row.name for row in figures.classes]
    pairs = [
        (names[i], names[j], count)
        for i, counts in enumerate(figures.confusion)
        for j, count in enumerate(counts)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:CONFUSIONS]


def _tail(losses: Tensor) -> float | None:
    """The share of the summed loss that the costliest 1% of the images (at least one) have; None if there is none."""
    total = losses.sum().item()
    return losses.topk(max(1, len(losses) // 100)).values.sum().item() / total if total else None


def _commands(findings: Findings) -> list[str]:
    return [shlex.join(["softmaxce", *command[1:]]) for command in findings.record.get("commands", []) if command]


def _picture(picture: Any, findings: Findings) -> dict[str, str]:
    light, dark = (_data(render(picture, findings, ink, "svg"), "svg+xml") for ink in (LIGHT, DARK))
    return {"light": light, "dark": dark, "alt": picture.alt(findings)}


def _image(pixels: Tensor) -> str:
    """A [C, H, W] uint8 image as a data address: grey, or the first three channels as red, green and blue."""
    channels = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    array = channels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array.squeeze(2) if len(channels) == 1 else array)
    image.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return _data(out.getvalue(), "png")


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
