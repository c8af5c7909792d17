"""Consoles for stdout (results) and stderr (everything else), and tables; plain text when not a terminal."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 160  # columns where there is no terminal


def stdout() -> Console:
    """For results. Rich obeys NO_COLOR and FORCE_COLOR; text is not interpreted as markup."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def stderr() -> Console:
    """For everything else."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_entry(console: Console, indent: int, head: Text, tail: Text) -> None:
    """Print a name and its description, which is wrapped beside it on a terminal and one line elsewhere."""
    head = Text(" " * indent) + head
    if console.file.isatty():  # FORCE_COLOR makes is_terminal true for a pipe
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column()
        grid.add_row(head, tail)
        console.print(grid)
    else:
        console.print(head + Text("  ") + tail, soft_wrap=True)


def plain_table() -> Table:
    """An empty table with a line below its header and no frame."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def print_table(table: Table, console: Console) -> None:
    """Print a table, fitted to the terminal, or without a terminal as wide as it needs."""
    if not console.file.isatty():
        console.width = max(console.width, WIDE)
    console.print(table)
