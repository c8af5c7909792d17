"""A report as one self-contained HTML page, with its figures, images and script inside."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from ...config import yamlfile
from ...inference.analysis import RunAnalysis, TemperatureResult
from ...inference.metrics import ClassMetrics, Metrics
from ...runs import listing
from ..evaluation import CONFUSIONS, MEANINGS
from .common import data_url, percent, render_template
from .figures import PICTURES, Drawing
from .gallery import gallery

SCRIPT = Path(__file__).with_name("report_page.js")
MOST_PREDICTIONS = 10_000  # rows of the table of all predictions; of more it is left out
MOST_ROWS = 30  # classes; more are sorted by F1, the lowest first
SIGNIFICANT = 2  # standard deviations between confidence and accuracy that are not explained by chance

STATUS = {
    "completed": "completed",
    "stopped_early": "stopped early",
    "running": "still running, or killed",
    "failed": "failed",
    "interrupted": "interrupted",
    "terminated": "terminated",
}


def html(
    analysis: RunAnalysis,
    drawings: Mapping[str, Drawing],
    links: Mapping[int, str],
    most_predictions: int = MOST_PREDICTIONS,
) -> str:
    """The page.

    Args:
        analysis: of the run.
        drawings: its pictures, by name.
        links: the addresses of the mistakes' explanations, by the mistake's index.
        most_predictions: with more images, the table of all predictions is left out.
    """
    metrics = analysis.results[0].metrics
    return render_template(
        "report_page.html",
        analysis=analysis,
        config=analysis.model.config,
        record=analysis.record,
        status=STATUS.get(str(analysis.record.get("status")), analysis.record.get("status")),
        summary=summary(analysis),
        metrics=_metric_rows(analysis),
        classes=_class_rows(metrics),
        weakest_first=len(analysis.classes) > MOST_ROWS,
        pictures={
            picture.name: {**_themed_urls(drawings[picture.name]), "alt": picture.alt(analysis)} for picture in PICTURES
        },
        gallery=gallery(analysis, links),
        predictions=_predictions(analysis, links) if len(analysis.correct) <= most_predictions else None,
        save_command=shlex.join(
            ["softmaxce", "eval", str(analysis.folder), "--split", analysis.split, "--save-predictions", "all.csv"]
        ),
        most_predictions=most_predictions,
        script=Markup(SCRIPT.read_text(encoding="utf-8")),
        tail=_tail_fraction(analysis.losses),
        commands=_commands(analysis),
        config_text=yamlfile.dump(analysis.model.config.to_dict()),
        environment=listing.flat(analysis.record.get("environment", {})),
    )


def summary(analysis: RunAnalysis) -> list[str]:
    """The main results in a few sentences."""
    metrics = analysis.final.metrics
    correct = int(analysis.correct.sum())
    accuracy = percent(metrics.accuracy)
    lines = [f"{correct:,} of {metrics.images:,} {analysis.split} images are classified correctly: {accuracy}."]
    confusions = _confusions(metrics)[:3]
    if confusions:
        listed = ", ".join(f"{label} predicted as {other} ({_times(count)})" for label, other, count in confusions)
        lines.append(f"Most frequent confusions: {listed}.")
    return [*lines, _calibration_sentence(analysis.final)]


def _calibration_sentence(result: TemperatureResult) -> str:
    excess = result.confidence - result.metrics.accuracy
    means = f"mean confidence {percent(result.confidence)}, accuracy {percent(result.metrics.accuracy)}"
    if abs(excess) <= SIGNIFICANT * result.deviation:
        return f"Its probabilities are calibrated on average: {means}; the difference is within chance."
    return f"It is {'overconfident' if excess > 0 else 'underconfident'}: {means}."


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _metric_rows(analysis: RunAnalysis) -> list[tuple[str, str, list[str]]]:
    """(name, meaning, its value at each temperature)."""
    rows = []
    for name, meaning in MEANINGS.items():
        values = [getattr(result.metrics, name) for result in analysis.results]
        if values[0] is not None:
            cells = [f"{value:.4f}" for value in values]
            if name == "loss":
                cells[1:] = ["–"] * (len(cells) - 1)  # it is of the logits as they are, whatever the temperature
            rows.append((name, meaning, cells))
    return rows


def _class_rows(metrics: Metrics) -> list[tuple[ClassMetrics, str]]:
    """A row per class, with the wrong class that its images are most often predicted as."""
    rows = []
    for index, (row, counts) in enumerate(zip(metrics.classes, metrics.confusion, strict=True)):
        wrong = [(count, other) for other, count in enumerate(counts) if other != index and count]
        most = max(wrong, key=lambda pair: (pair[0], -pair[1]), default=None)
        confused = f"{metrics.classes[most[1]].name} ({most[0]:,})" if most else "–"
        rows.append((row, confused))
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda entry: entry[0].f1)
    return rows


def _confusions(metrics: Metrics) -> list[tuple[str, str, int]]:
    """(label, prediction, count), the most frequent first."""
    names = [row.name for row in metrics.classes]
    pairs = [
        (names[i], names[j], count)
        for i, counts in enumerate(metrics.confusion)
        for j, count in enumerate(counts)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:CONFUSIONS]


def _tail_fraction(losses: Tensor) -> float | None:
    """The fraction of the total loss in the 1% of images (at least one) with the largest losses; None if it is 0."""
    total = losses.sum().item()
    return losses.topk(max(1, len(losses) // 100)).values.sum().item() / total if total else None


def _commands(analysis: RunAnalysis) -> list[str]:
    return [shlex.join(["softmaxce", *command[1:]]) for command in analysis.record.get("commands", []) if command]


def _themed_urls(drawing: Drawing) -> dict[str, str]:
    return {"light": data_url(drawing.light, "svg+xml"), "dark": data_url(drawing.dark, "svg+xml")}


def _predictions(analysis: RunAnalysis, links: Mapping[int, str]) -> dict[str, Any]:
    """The columns of the table of all predictions, for the page's script."""
    images = analysis.predictions
    confidence, predicted = images.probabilities.max(1)
    return {
        "classes": analysis.classes,
        "label": images.labels.tolist(),
        "prediction": predicted.tolist(),
        "confidence": _rounded(confidence),
        "loss": _rounded(images.losses),
        "files": None if images.files is None else list(images.files),
        "links": {str(index): link for index, link in links.items()},
    }


def _rounded(values: Tensor) -> list[float | None]:
    """To six significant digits; null for what is not finite, which JSON does not have."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in (values + 0.0).tolist()]
