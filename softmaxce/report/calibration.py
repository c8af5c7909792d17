"""A fitted temperature as a person reads it: the number, and what it changes on each split."""

from rich import box
from rich.console import Console
from rich.table import Table

from ..inference.calibration import Calibration


def print_calibration(fitted: Calibration, console: Console) -> None:
    """Print everything, and say so where the calibration error did not fall."""
    direction = "less sure of itself" if fitted.temperature > 1 else "surer of itself"
    console.print(
        f"{fitted.checkpoint} (epoch {fitted.epoch}): temperature {fitted.temperature:.4f}, {direction}", soft_wrap=True
    )
    console.print()
    splits = {"validation": fitted.validation} | ({"test": fitted.test} if fitted.test is not None else {})
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("split")
    table.add_column("images", justify="right")
    for name in ("nll before", "after", "ece before", "after"):
        table.add_column(name, justify="right")
    for name, split in splits.items():
        table.add_row(name, f"{split.images:,}", *(f"{value:.4f}" for value in (*split.nll, *split.ece)))
    console.print(table)
    console.print()
    console.print("nll: negative log-likelihood, nats an image; ece: expected calibration", style="dim")
    console.print("error, 15 bins. The temperature was fitted on the validation nll alone.", style="dim")
    for name, split in splits.items():
        if split.ece[1] >= split.ece[0]:
            console.print(
                f"On {name} the ece did not fall: the fit lowers the nll of the validation images,\n"
                "and the ece, which counts in bins, need not follow. More validation images make\n"
                "both firmer; --temperature 1 shows the probabilities as trained."
            )
