"""An exported model's certificate as a table: the file beside its run."""

from rich.console import Console

from ..inference.certificate import BATCHES, LIMIT, Column
from ..inference.export import Export
from .console import plain_table, print_table, print_text


def print_export(exported: Export, console: Console) -> None:
    """Print what was written and how it compares with the run."""
    certificate, metadata = exported.certificate, exported.metadata
    weights = f"{metadata.run} (epoch {metadata.epoch})"
    console.print(f"{exported.file}: {weights}, {_rounded(exported.bytes / 1e6)} MB", soft_wrap=True)
    images = f"{certificate.images:,} {certificate.split} images"
    print_text(f"run by {exported.runtime} on {images}, and compared with the run:", console, "dim")
    console.print()
    references = [certificate.run] if certificate.run == certificate.float32 else [certificate.run, certificate.float32]
    before = [] if certificate.unquantized is None else [certificate.unquantized]
    columns = [certificate.exported, *before, *references]
    table = plain_table()
    table.add_column("")
    for column in columns:
        table.add_column(f"run ({column.name})" if column in references else column.name, justify="right")
    for name in ("accuracy", "nll", "ece"):
        table.add_row(name, *(f"{getattr(column, name):.4f}" for column in columns))
    table.add_row("largest difference", *(_difference(column) for column in columns))
    table.add_row("answers that differ", *(_answers(column) for column in columns))
    if exported.unquantized_bytes is not None:
        sizes = (exported.bytes, exported.unquantized_bytes)
        table.add_row("MB", *(_rounded(size / 1e6) for size in sizes), *("" for _ in references))
    for size in BATCHES:
        label = f"ms per image, {size} at once"
        table.add_row(label, *(_rounded(1000 * column.seconds[size]) for column in columns))
    print_table(table, console)
    console.print()
    limit = f"{LIMIT:.0e}".replace("e-0", "e-")
    what = (
        f"it is refused above {limit} in float32."
        if certificate.unquantized is None
        else f"it has no limit for int8. The file before was within {limit} of the run in float32, else it is refused."
    )
    print_text(
        f"Largest difference of a probability to the exported file's; {what} The certificate is stored as "
        f"{exported.certificate_file.name}.",
        console,
        "dim",
    )


def _rounded(number: float) -> str:
    """A positive number with at least two significant digits: those of a small network are far below 1."""
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}"


def _difference(column: Column) -> str:
    return "" if column.largest_difference is None else f"{column.largest_difference:.1e}"


def _answers(column: Column) -> str:
    return "" if column.different_answers is None else f"{column.different_answers:,}"
