"""The table of `softmaxce runs`. Needs no torch."""

from rich.console import Console

from ..runs.listing import RunRow
from .console import print_rows

NUMBERS = ("epochs", "validation", "test", "time")
DROPPED = ("loss", "recipe", "time", "model", "epochs", "validation", "status")  # on a narrow terminal, in this order


def print_runs(rows: list[RunRow], console: Console) -> None:
    """Print a row per run; the recipe is a column of its own where the folders do not name it."""
    folder_names_recipe = all(row.folder.parent.name == row.recipe for row in rows)
    names = ["run", *([] if folder_names_recipe else ["recipe"]), "model", "loss", *NUMBERS, "status"]
    cells = []
    for row in rows:
        recipe = [] if folder_names_recipe else [row.recipe]
        epochs = f"{row.epochs_done}/{row.epochs}" if row.epochs is not None else str(row.epochs_done)
        accuracies = [f"{value:.4f}" if value is not None else "" for value in (row.validation, row.test)]
        status = row.status.replace("_", " ")
        cells.append(
            [str(row.folder), *recipe, row.model, row.loss, epochs, *accuracies, duration(row.seconds), status]
        )
    print_rows(names, cells, console, numbers=NUMBERS, drop=DROPPED)


def duration(seconds: float) -> str:
    """Seconds as text: `1.5 s`, `3 min`, `2.0 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
