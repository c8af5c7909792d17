"""`softmaxce calibrate`: make a trained run's probabilities mean what they say."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce.errors import RunError

from .options import AllowChangedData, Device
from .trust import TrustCode


def calibrate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder; the newest run under runs/ if left out.")
    ] = None,
    device: Device = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Fit a run's softmax temperature on its validation split; eval, predict and report then use it.

    Dividing the logits by one number changes no prediction, only how sure of it the model says to be
    (Guo et al. 2017). It is kept in the run folder as calibration.json; delete that file to forget it.
    """
    from softmaxce.runs.folder import newest

    chosen = run if run is not None else newest()
    if chosen is None:
        raise RunError("there is no run under runs/ here; train one, or name a run folder: softmaxce calibrate RUN")

    from softmaxce.inference.calibration import calibrate as fit
    from softmaxce.report import calibration, console

    fitted = fit(chosen, device, trust_code=trust_code, allow_changed_data=allow_changed_data)
    if json:
        import json as jsonlib

        typer.echo(jsonlib.dumps(fitted.to_dict()))
    else:
        calibration.print_calibration(fitted, console.stdout())
