"""`softmaxce runs`: list runs, the newest first."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to search.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List runs, newest first: model, loss, epochs, accuracy, time and status."""
    from softmaxce.report import console
    from softmaxce.runs.listing import list_runs

    rows, errors = list_runs(folder)
    for error in errors:
        streams.warning(f"skipped {error}")
    if json:
        import json as jsonlib

        for row in rows:
            streams.json_text(jsonlib.dumps(row.to_dict()))
    elif rows:
        from softmaxce.report.run_list import print_runs

        print_runs(rows, console.stdout())
    else:
        streams.line(f"there are no runs under {folder}", err=True)
