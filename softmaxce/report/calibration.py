"""A fitted temperature and its effect on each split, as a table."""

from rich.console import Console

from ..inference.calibration import Calibration
from .console import plain_table, print_table, print_text


def print_calibration(fitted: Calibration, console: Console) -> None:
    """Print the temperature, the metrics before and after, and a note where the calibration error did not fall."""
    direction = "overconfident" if fitted.temperature > 1 else "underconfident"
    console.print(
        f"{fitted.checkpoint} (epoch {fitted.epoch}): temperature {fitted.temperature:.4f}; the model was {direction}",
        soft_wrap=True,
    )
    console.print()
    splits = {"validation": fitted.validation} | ({"test": fitted.test} if fitted.test is not None else {})
    table = plain_table()
    table.add_column("split")
    table.add_column("images", justify="right")
    for name in ("nll before", "after", "ece before", "after"):
        table.add_column(name, justify="right")
    for name, split in splits.items():
        table.add_row(name, f"{split.images:,}", *(f"{value:.4f}" for value in (*split.nll, *split.ece)))
    print_table(table, console)
    console.print()
    print_text(
        "nll: negative log-likelihood, nats per image; ece: expected calibration error, 15 bins. The temperature was "
        "fitted on the validation nll alone.",
        console,
        "dim",
    )
    for name, split in splits.items():
        if split.ece[1] >= split.ece[0]:
            print_text(
                f"On {name} the ece did not decrease: the temperature minimizes the nll of the validation images, and "
                "the binned ece need not follow. More validation images make both estimates more reliable; "
                "--temperature 1 gives the uncalibrated probabilities.",
                console,
            )
