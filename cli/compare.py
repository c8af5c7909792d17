"""`softmaxce compare`: runs beside each other, and whether their difference is more than chance."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce.errors import ConfigError, Problem

from .options import AllowChangedData, Device, SplitName
from .trust import TrustCode


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is the yardstick.")],
    split: Annotated[SplitName, typer.Option(help="Which of the runs' splits.")] = SplitName.test,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with the overlaid learning curves.")
    ] = None,
    device: Device = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Compare runs: the config keys that differ, the figures, and whether the difference is larger than chance.

    Each run's kept weights are measured on the split; where two runs had the same images, McNemar's exact test says
    whether chance explains their difference. Runs that differ by seed alone are told as mean and deviation.
    """
    if len(runs) < 2:
        raise ConfigError([Problem("compare", "takes two runs or more: softmaxce compare runs/mnist/1 runs/mnist/2")])
    from softmaxce.inference.compare import compare as measure
    from softmaxce.report import comparison, console

    found = measure(runs, split.value, device, trust_code=trust_code, allow_changed_data=allow_changed_data)
    if html is not None:
        from softmaxce.report.html.comparison_page import write_page

        write_page(found, html)
        typer.echo(f"page: {html}", err=True)
    if json:
        import json as jsonlib

        typer.echo(jsonlib.dumps(found.to_dict()))
    else:
        comparison.print_comparison(found, console.stdout())
