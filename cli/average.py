"""`softmaxce average`: the mean of the weights of several runs, as a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.errors import RunError

from .options import AllowChangedData, DataRoot, Device, TrustCode
from .startup import fast_imports


def average(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders or checkpoints, at least two.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The new run folder; default: runs/<recipe>/<number>.")
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Average only runs that do not make the average worse on the validation split."),
    ] = False,
    data: DataRoot = None,
    device: Device = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Average the weights of several runs of one model into a run folder for eval, predict, report and export.

    Uniform or greedy model soups (Wortsman et al. 2022). It works for runs that started with the same weights, such as
    fine-tuned ones (train --from); the mean of runs that did not is usually a poor model.
    """
    from softmaxce.runs.folder import create
    from softmaxce.runs.header import find_checkpoint, read_header

    if len(runs) < 2:
        raise RunError("an average needs at least two runs: softmaxce average RUN RUN")
    headers = [read_header(find_checkpoint(run)) for run in runs]
    if output is not None and output.exists():
        create(str(headers[0]["recipe"]), output)  # refuses what is not empty, before the images are read

    with fast_imports():
        from softmaxce.inference.averaging import average as average_runs
        from softmaxce.report import console
        from softmaxce.report.averaging import print_average, to_dict
        from softmaxce.report.json_values import dumps

    result = average_runs(
        runs,
        output,
        greedy=greedy,
        device=device,
        data_root=data,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    if json:
        streams.json_text(dumps(to_dict(result)))
    else:
        print_average(result, console.stdout())
