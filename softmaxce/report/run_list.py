"""The table of `softmaxce runs`. Needs no torch."""

from rich.console import Console

from ..runs.listing import RunRow
from .console import plain_table, print_table


def print_runs(rows: list[RunRow], console: Console) -> None:
    """Print a row per run; the recipe is a column of its own where the folders do not name it."""
    table = plain_table()
    folder_names_recipe = all(row.folder.parent.name == row.recipe for row in rows)
    for name in ("run", *(["recipe"] if not folder_names_recipe else []), "model", "loss"):
        table.add_column(name, overflow="fold")
    for name in ("epochs", "validation", "test", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for row in rows:
        recipe = [] if folder_names_recipe else [row.recipe]
        epochs = f"{row.epochs_done}/{row.epochs}" if row.epochs is not None else str(row.epochs_done)
        accuracies = [f"{value:.4f}" if value is not None else "" for value in (row.validation, row.test)]
        names = [str(row.folder), *recipe, row.model, row.loss]
        table.add_row(*names, epochs, *accuracies, duration(row.seconds), row.status.replace("_", " "))
    print_table(table, console)


def duration(seconds: float) -> str:
    """Seconds as text: `1.5 s`, `3 min`, `2.0 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
