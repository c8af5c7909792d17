"""`softmaxce report`: a trained run as one page and its pictures."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce.errors import RunError

from .options import AllowChangedData, SplitName
from .trust import TrustCode


def report(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder; the newest run under runs/ if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page; report.html in the run folder if left out.")
    ] = None,
    split: Annotated[
        SplitName | None, typer.Option(help="Which of the run's splits; test if it has one.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
) -> None:
    """Write a run's report: one HTML page that needs nothing beside it, and pictures as SVG and PNG."""
    from softmaxce.runs.folder import newest, read_record

    folder = run if run is not None else newest()
    if folder is None:
        raise RunError("there is no run under runs/ here; train one, or name a run folder: softmaxce report RUN")

    read_record(folder)  # what is no run is said so before torch is loaded

    from softmaxce.report.html.write import write_report

    name = split.value if split else None
    written = write_report(folder, output, name, device, trust_code=trust_code, allow_changed_data=allow_changed_data)
    typer.echo(f"page: {written.page}")
    typer.echo(f"pictures: {written.pictures}", err=True)
