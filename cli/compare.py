"""`softmaxce compare`: how runs differ, and whether the difference is statistically significant."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.errors import ConfigError, Problem
from softmaxce.files import check_page

from .options import AllowChangedData, DataRoot, Device, Force, Split, SplitName, TrustCode, run_or_newest
from .startup import fast_imports


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders or exported models; the first is the baseline.")
    ],
    split: Split = SplitName.test,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with the overlaid learning curves.")
    ] = None,
    force: Force = False,
    data: DataRoot = None,
    device: Device = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Compare runs: the config keys that differ, the metrics, and whether the difference is significant.

    Each run's best weights are evaluated on the split. Where two runs have the same images, McNemar's exact test says
    whether their difference is significant. Runs that differ only by seed are summarized by mean and deviation.
    """
    if len(runs) < 2:
        raise ConfigError([Problem("compare", "takes two runs or more: softmaxce compare runs/mnist/1 runs/mnist/2")])
    if html is not None:
        check_page(html, "--html", force=force)
    for run in runs:
        run_or_newest(run, "compare")
    with fast_imports():
        from softmaxce.inference.compare import compare as compare_runs
        from softmaxce.report import comparison, console, json_values

    result = compare_runs(
        runs,
        split.value,
        device or "auto",
        roots=[data] * len(runs),
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    if html is not None:
        from softmaxce.report.html.comparison_page import write_page

        write_page(result, html)
        streams.line(f"page: {html}", err=True)
    if json:
        streams.json_text(json_values.dumps(result.to_dict()))
    else:
        comparison.print_comparison(result, console.stdout())
