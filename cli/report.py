"""`softmaxce report`: a trained run as an HTML page and figures."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.files import check_page

from .options import AllowChangedData, DataRoot, Device, FirstSplit, Force, RunFolder, TrustCode, run_or_newest
from .startup import fast_imports


def report(
    run: RunFolder = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page; default: report.html in the run folder.")
    ] = None,
    force: Force = False,
    split: FirstSplit = None,
    data: DataRoot = None,
    device: Device = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
) -> None:
    """Write a run's report: one self-contained HTML page, and its figures as SVG and PNG."""
    from softmaxce.runs.folder import read_record

    if output is not None:
        check_page(output, "--output", force=force)
    if run is not None:
        read_record(run)
    run = run_or_newest(run, "report")  # a folder without a run is refused before torch is imported

    with fast_imports():
        from softmaxce.report.html.write import write_report

    name = split.value if split else None
    written = write_report(
        run,
        output,
        name,
        device or "auto",
        data_root=data,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    streams.line(f"page: {written.page}")
    streams.line(f"pictures: {written.pictures}", err=True)
