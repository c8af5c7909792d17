"""`softmaxce calibrate`: fit a run's softmax temperature, so that its probabilities match its accuracy."""

from typing import Annotated

import typer

from softmaxce import streams

from .options import AllowChangedData, DataRoot, Device, RunFolder, TrustCode, run_or_newest
from .startup import fast_imports


def calibrate(
    run: RunFolder = None,
    data: DataRoot = None,
    device: Device = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Fit a run's softmax temperature on its validation split; eval, predict and report then use it.

    Dividing the logits by one number changes no prediction, only its probability (Guo et al. 2017). The temperature is
    stored in the run folder as calibration.json; delete that file to undo it.
    """
    run = run_or_newest(run, "calibrate")

    with fast_imports():
        from softmaxce.inference.calibration import calibrate as calibrate_run
        from softmaxce.report import calibration, console, json_values

    result = calibrate_run(
        run, device or "auto", data_root=data, trust_code=trust_code, allow_changed_data=allow_changed_data
    )
    for warning in result.warnings():
        streams.warning(warning)
    if json:
        streams.json_text(json_values.dumps(result.to_dict()))
    else:
        calibration.print_calibration(result, console.stdout())
