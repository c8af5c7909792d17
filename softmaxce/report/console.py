"""Consoles for stdout (results) and stderr (everything else), and tables; plain text when not a terminal."""

import sys
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..streams import escaped

WIDE = 160  # columns where there is no terminal


class _Escaping(Console):
    """A console that shows control characters escaped, newlines within a text included."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text) and (plain := escaped(renderable.plain)) != renderable.plain:
            renderable = Text(
                plain,
                renderable.style,
                justify=renderable.justify,
                overflow=renderable.overflow,
                no_wrap=renderable.no_wrap,
                end=renderable.end,
            )
        return super().render(renderable, options)


def stdout() -> Console:
    """For results. Rich obeys NO_COLOR and FORCE_COLOR; text is not interpreted as markup."""
    return _Escaping(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def stderr() -> Console:
    """For everything else."""
    return _Escaping(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


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
