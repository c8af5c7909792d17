"""Markdown tables for a GitHub Actions job summary, appended to the file that $GITHUB_STEP_SUMMARY names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import streams
from ..inference.evaluate import EvaluationResult
from ..inference.requirements import RequirementResult
from ..session import Outcome, Reporter
from .evaluation import MEANINGS
from .markdown import escape


class StepSummary(Reporter):
    """Appends how a run ended."""

    def end(self, outcome: Outcome) -> None:
        """Append the result."""
        of_training(outcome)


def of_training(outcome: Outcome) -> None:
    """Append the result of `softmaxce train`."""
    rows = {"status": outcome.status.replace("_", " "), "epochs": str(outcome.epochs)}
    if outcome.best_epoch and outcome.best_value is not None:
        rows["best epoch"] = f"{outcome.best_epoch} (validation {outcome.best_metric} {outcome.best_value:.4f})"
    if outcome.scores is not None:
        rows[f"{outcome.split} loss"] = f"{outcome.scores.loss:.4f}"
        rows[f"{outcome.split} accuracy"] = f"{outcome.scores.accuracy:.4f} ({outcome.scores.images:,} images)"
        rows |= {f"{outcome.split} {name}": f"{value:.4f}" for name, value in outcome.scores.others.items()}
    rows["time"] = f"{outcome.seconds:.1f} s"
    if outcome.message:
        rows["message"] = outcome.message
    _append(f"softmaxce train: {outcome.folder}", rows, outcome.requirements)


def of_evaluation(evaluated: EvaluationResult, requirements: Sequence[RequirementResult]) -> None:
    """Append the result of `softmaxce eval`."""
    metrics = evaluated.metrics
    rows = {"images": f"{metrics.images:,} ({evaluated.split})"}
    rows |= {name: f"{value:.4f}" for name in MEANINGS if (value := getattr(metrics, name)) is not None}
    _append(f"softmaxce eval: {evaluated.checkpoint}", rows, requirements)


def _append(title: str, rows: Mapping[str, str], requirements: Sequence[RequirementResult]) -> None:
    """Append a table, if the variable is set. A file that cannot be written is a warning, not an error."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    lines = [f"### {escape(title)}", "", "| | |", "| --- | --- |"]
    lines += [f"| {escape(key)} | {escape(value)} |" for key, value in rows.items()]
    for result in requirements:
        mark = "✅ met" if result.met else "❌ not met"
        lines.append(f"| {escape(str(result.requirement))} | {mark}: {result.value:.6g} |")
    try:
        with Path(name).open("a", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n\n")
    except OSError as error:
        streams.warning(f"GITHUB_STEP_SUMMARY={name}: cannot be written: {error.strerror}")
