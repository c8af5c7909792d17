"""`softmaxce eval`: the metrics of a trained classifier, and whether they meet requirements."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.errors import FAILED
from softmaxce.inference import requirements

from .options import (
    AllowChangedData,
    Device,
    FirstSplit,
    RunOrExportedModel,
    Temperature,
    TrustCode,
    Tta,
    check_folder_or_table,
    run_or_newest,
)
from .startup import fast_imports


def evaluate(
    run: RunOrExportedModel = None,
    split: FirstSplit = None,
    data: Annotated[
        Path | None,
        typer.Option(
            callback=check_folder_or_table,
            help="Other images: a folder with one sub-folder per class, a table of images and labels, or a shard "
            "(.tar). With --split, or a folder without class folders: where the run's data set is now.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per batch; default: the run's data.eval_batch_size.")
    ] = None,
    device: Device = None,
    temperature: Temperature = None,
    tta: Annotated[
        Tta | None,
        typer.Option(help="Average the logits of several views of each image; default: the run's own."),
    ] = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC>=N", help="Require a metric, e.g. 'accuracy>=0.99'; exit 1 if not met."),
    ] = None,
    save_predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a row per image to FILE.csv or FILE.parquet: label, prediction, loss, probabilities.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Evaluate a trained classifier: accuracy, per-class metrics, confusion matrix, calibration."""
    required = requirements.parse(require or [])
    run = run_or_newest(run, "eval")
    if save_predictions is not None:
        from softmaxce.report import prediction_table

        prediction_table.check_table(save_predictions, "--save-predictions")

    with fast_imports():
        from softmaxce.inference.evaluate import evaluate as evaluate_run
        from softmaxce.report import console, evaluation, step_summary

    result = evaluate_run(
        run,
        split.value if split else None,
        data,
        device or "auto",
        temperature,
        batch_size,
        tta=None if tta is None else tta.value,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    if result.environment_changes:
        folder = result.checkpoint.parent
        streams.warning(f"{folder}: this run was trained with {'; '.join(result.environment_changes)}")
    has_loss = result.metrics.loss is not None
    requirements.check_classes(required, [row.name for row in result.metrics.classes], has_loss=has_loss)
    checked = requirements.judge(required, result.metrics.by_name())
    step_summary.of_evaluation(result, checked)
    if save_predictions is not None:
        names = [row.name for row in result.metrics.classes]
        prediction_table.write_table(result.images, names, save_predictions)
    if json:
        streams.json_text(evaluation.to_json(result, checked))
    else:
        evaluation.print_evaluation(result, console.stdout())
    for requirement in checked:
        streams.line(requirement, err=json)
    if not all(requirement.met for requirement in checked):
        raise typer.Exit(FAILED)
