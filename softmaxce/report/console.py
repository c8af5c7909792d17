"""The consoles: stdout for results, stderr for everything else; plain text when not a terminal."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 160  # columns where no terminal sets a limit


def stdout() -> Console:
    """For results. Rich obeys NO_COLOR and FORCE_COLOR; nothing here guesses meaning from the text."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def stderr() -> Console:
    """For everything else."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_entry(console: Console, indent: int, head: Text, tail: Text) -> None:
    """A name and what it is: on a terminal the text wraps beside the name, elsewhere it stays one line."""
    head = Text(" " * indent) + head
    if console.file.isatty():  # FORCE_COLOR is about colour, not about lines
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column()
        grid.add_row(head, tail)
        console.print(grid)
    else:
        console.print(head + Text("  ") + tail, soft_wrap=True)


def plain_table() -> Table:
    """An empty table with a line under its head and no frame."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def print_table(table: Table, console: Console) -> None:
    """Print a table: as wide as the terminal, or elsewhere as wide as it has to be."""
    if not console.file.isatty():
        console.width = max(console.width, WIDE)
    console.print(table)
