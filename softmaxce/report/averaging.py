"""An average of runs as text and as JSON."""

import shlex
from typing import Any

from rich.console import Console

from ..inference.averaging import Average
from .console import plain_table, print_table


def print_average(result: Average, console: Console) -> None:
    """Print a row for each run and one for the average, and the next command."""
    table = plain_table()
    table.add_column("run")
    if result.value is not None:
        table.add_column(f"validation {result.metric}", justify="right")
    table.add_column("")
    rows = [(one.run, one.value, "averaged" if one.averaged else "left out") for one in result.ingredients]
    count = sum(one.averaged for one in result.ingredients)
    for name, value, what in [*rows, (f"{result.method} average of {count}", result.value, "")]:
        table.add_row(name, *([] if value is None else [f"{value:.4f}"]), what)
    print_table(table, console)
    console.print()
    if result.recomputed:
        text = "the statistics of batch normalization are computed anew on the training images"
        console.print(text, soft_wrap=True)
    console.print(f"run folder: {result.folder}", soft_wrap=True)
    console.print(f"next: softmaxce eval {shlex.quote(str(result.folder))}", soft_wrap=True)


def to_dict(result: Average) -> dict[str, Any]:
    """The result for JSON."""
    return {**vars(result), "folder": str(result.folder), "ingredients": [vars(one) for one in result.ingredients]}
