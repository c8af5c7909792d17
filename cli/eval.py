"""`softmaxce eval`: how good a trained classifier is, and whether that is good enough."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce.errors import FAILED, RunError
from softmaxce.inference import requirements

from .options import AllowChangedData, Device, SplitName, Temperature, Tta
from .startup import fast_imports
from .trust import TrustCode


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run folder or a checkpoint; the newest run under runs/ if left out."),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which of the run's splits.")] = SplitName.test,
    data: Annotated[
        Path | None, typer.Option(help="Another folder: of images, one sub-folder a class; or the data set's root.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once; the run's data.eval_batch_size if left out.")
    ] = None,
    device: Device = None,
    temperature: Temperature = None,
    tta: Annotated[
        Tta | None,
        typer.Option(help="Average the logits of several views of each image; the run's own if left out."),
    ] = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="FIGURE>=N", help="Demand a figure, e.g. 'accuracy>=0.99'; exit 1 if not met."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Evaluate a trained classifier: accuracy, a row a class, confusions, calibration."""
    demands = requirements.parse(require or [])
    from softmaxce.runs.folder import newest

    chosen = run if run is not None else newest()
    if chosen is None:
        raise RunError("there is no run under runs/ here; train one, or name a run folder: softmaxce eval RUN")

    with fast_imports():
        from softmaxce.inference.calibration import temperature_of
        from softmaxce.inference.evaluate import evaluate as measure
        from softmaxce.report import console, evaluation, step_summary
        from softmaxce.runs.header import find_checkpoint

    if temperature is None:
        temperature = temperature_of(chosen)
    file, views = find_checkpoint(chosen), tta.value if tta is not None else None
    evaluated = measure(
        file,
        split.value,
        data,
        device,
        temperature,
        batch_size,
        tta=views,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    if evaluated.differs:
        place = evaluated.checkpoint.parent
        typer.echo(f"warning: {place}: this run was trained with {'; '.join(evaluated.differs)}", err=True)
    requirements.check_classes(demands, [row.name for row in evaluated.figures.classes])
    verdicts = requirements.judge(demands, evaluated.figures.by_name())
    step_summary.of_evaluation(evaluated, verdicts)
    if json:
        import json as jsonlib

        answers = {"requirements": [verdict.to_dict() for verdict in verdicts]} if verdicts else {}
        typer.echo(jsonlib.dumps({**evaluation.plain(evaluated), **answers}))
    else:
        evaluation.print_figures(evaluated, console.stdout())
    for verdict in verdicts:
        typer.echo(verdict, err=json)
    if not all(verdict.met for verdict in verdicts):
        raise typer.Exit(FAILED)
