"""A short Markdown table for GitHub Actions' summary page: appended to the file that $GITHUB_STEP_SUMMARY names."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..inference.evaluate import EvaluationResult
from ..inference.requirements import RequirementResult
from .training import Outcome


def of_training(outcome: Outcome) -> None:
    """Append how a run ended."""
    rows = {"status": outcome.status.replace("_", " "), "epochs": str(outcome.epochs)}
    if outcome.best_epoch and outcome.best_value is not None:
        rows["best epoch"] = f"{outcome.best_epoch} (validation {outcome.best_metric} {outcome.best_value:.4f})"
    if outcome.scores is not None:
        rows[f"{outcome.split} loss"] = f"{outcome.scores.loss:.4f}"
        rows[f"{outcome.split} accuracy"] = f"{outcome.scores.accuracy:.4f} ({outcome.scores.images:,} images)"
    rows["time"] = f"{outcome.seconds:.1f} s"
    if outcome.message:
        rows["message"] = outcome.message
    _append(f"softmaxce train: {outcome.folder}", rows, outcome.verdicts)


def of_evaluation(evaluated: EvaluationResult, verdicts: Sequence[RequirementResult]) -> None:
    """Append what was measured."""
    figures = evaluated.figures
    names = ("loss", "accuracy", "top5_accuracy", "nll", "brier", "ece")
    rows = {"images": f"{figures.images:,} ({evaluated.split})"}
    rows |= {name: f"{value:.4f}" for name in names if (value := getattr(figures, name)) is not None}
    _append(f"softmaxce eval: {evaluated.checkpoint}", rows, verdicts)


def _append(title: str, rows: Mapping[str, str], verdicts: Sequence[RequirementResult]) -> None:
    """Append a table, if there is a file to append to; one that cannot be written is told and fails nothing."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    lines = [f"### {_plain(title)}", "", "| | |", "| --- | --- |"]
    lines += [f"| {_plain(key)} | {_plain(value)} |" for key, value in rows.items()]
    for verdict in verdicts:
        mark = "✅ met" if verdict.met else "❌ not met"
        lines.append(f"| {_plain(str(verdict.requirement))} | {mark}: {verdict.value:.6g} |")
    try:
        with Path(name).open("a", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n\n")
    except OSError as error:
        print(f"warning: GITHUB_STEP_SUMMARY={name}: cannot be written: {error.strerror}", file=sys.stderr)


def _plain(text: str) -> str:
    """Anybody's text as Markdown that shows it and does nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&])", r"\\\1", " ".join(text.split()))
