"""`softmaxce sweep`: every combination of some values of a config's keys, and which is best."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce.config.reader import Override
from softmaxce.errors import FAILED
from softmaxce.inference import requirements

from .options import AllowChangedData, Device


def sweep(
    config: Annotated[str, typer.Option("--config", "-c", help="A YAML file, or a recipe's name.")],
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE,VALUE", help="A key and its values, e.g. optimizer.lr=0.01,0.03."),
    ],
    device: Device = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs to train each.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder for all the run folders; else runs/<recipe>/<number> each.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="auto", help="auto: go on with the runs that are there; start the others.")
    ] = None,
    allow_changed_data: AllowChangedData = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="FIGURE>=N", help="Demand a final figure of every run; exit 1 if one does not meet it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON Lines on stdout and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the results alone.")] = False,
) -> None:
    """Train every combination of the values, then compare the runs, the best on the validation split first.

    Every combination is checked before the first is trained. Each run keeps its own run folder.
    """
    from softmaxce.config.sweep import grid

    from .several import check_options, make_plans, split_of, train_each
    from .train import Telling

    check_options(resume, dry_run=False)
    flags = (("device", device), ("epochs", epochs))
    overrides = [Override((name,), value, f"--{name}") for name, value in flags if value is not None]
    demands = requirements.parse(require or [])
    points = grid(config, set_, overrides)
    plans = make_plans(points, output, resume == "auto", allow_changed_data=allow_changed_data)
    telling = Telling(json=json, quiet=quiet)
    ended = train_each(points, plans, demands, telling)
    if len(ended) > 1:
        from softmaxce.inference.compare import compare
        from softmaxce.report import comparison, console
        from softmaxce.runs.listing import best_first

        roots = {entry.folder: entry.point.config.root for entry in ended}  # a finished run's data may have moved
        folders = best_first([entry.folder for entry in ended])
        found = compare(
            folders,
            split_of(ended),
            device,
            roots=[roots[folder] for folder in folders],
            trust_code=True,
            allow_changed_data=allow_changed_data,
        )
        if json:
            import json as jsonlib

            typer.echo(jsonlib.dumps({"event": "comparison", **found.to_dict()}))
        else:
            comparison.print_comparison(found, console.stdout())
    if len(ended) < len(points) or not all(entry.met for entry in ended):
        raise typer.Exit(FAILED)
