"""`softmaxce export`: a trained model as one file for other programs, with its certificate."""

import enum
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from softmaxce import streams

from .options import AllowChangedData, DataRoot, RunOrCheckpoint, TrustCode, Tta, run_or_newest
from .startup import fast_imports


class Quantize(enum.StrEnum):
    """What the numbers inside are rounded to."""

    none = "none"
    int8 = "int8"


class Format(enum.StrEnum):
    """The formats of exported models."""

    onnx = "onnx"
    torch_export = "torch_export"
    hub = "hub"


def export(
    run: RunOrCheckpoint = None,
    format: Annotated[
        Format,
        typer.Option(
            help="onnx runs in ONNX Runtime and many others; torch_export in PyTorch alone; hub is a folder for the "
            "Hugging Face Hub, with weights, ONNX file and model card."
        ),
    ] = Format.onnx,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file or folder; default: model.onnx, model.pt2, ... in the run folder."),
    ] = None,
    tta: Annotated[
        Tta | None,
        typer.Option(help="Average the logits of several views of each image; default: the run's own."),
    ] = None,
    quantize: Annotated[
        Quantize,
        typer.Option(help="int8: smaller, calibrated on training images; what it costs is measured, not promised."),
    ] = Quantize.none,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no exported model, or the files in a hub folder.")
    ] = False,
    data: DataRoot = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Export a trained model as one file that turns image bytes into probabilities, and prove it right.

    Normalization, test-time augmentation, temperature and softmax are inside the file; class names and the decoding of
    images are its metadata. Before it gets its name, it is run on the run's test images, and refused with exit status 1
    if a probability differs by more than 1e-4 from the run's in float32. The comparison is printed, and stored beside
    the file as FILE.json. `eval` and `predict` take the ONNX file in place of a run.
    """
    run = run_or_newest(run, "export")

    with fast_imports():
        from softmaxce.inference.export import export as export_run
        from softmaxce.report import console, json_values
        from softmaxce.report import export as report
        from softmaxce.report.hub import export_hub

    options: dict[str, Any] = {
        "tta": None if tta is None else tta.value,
        "quantize": quantize.value,
        "force": force,
        "data_root": data,
        "trust_code": trust_code,
        "allow_changed_data": allow_changed_data,
    }
    folder = None
    if format is Format.hub:
        exported, folder = export_hub(run, output, **options)
    else:
        exported = export_run(run, "onnx" if format is Format.onnx else "torch_export", output, **options)
    if json:
        streams.json_text(json_values.dumps(exported.to_dict()))
        return
    report.print_export(exported, console.stdout())
    if folder is not None:
        streams.line(f"next: add a license to {folder / 'README.md'}, then: hf upload NAME {shlex.quote(str(folder))}")
