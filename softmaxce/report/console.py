"""Consoles for stdout (results) and stderr (everything else), and tables; plain text when not a terminal."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..streams import escaped

UNBOUNDED = 100_000  # columns


class _Escaping(Console):
    """A console that shows control characters escaped, newlines within a text included."""

    def render_str(self, text: str, **options: Any) -> Text:
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
        print_table(grid, console)
    else:
        console.print(head + Text("  ") + tail, soft_wrap=True)


def plain_table() -> Table:
    """An empty table with a line below its header and no frame."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def print_table(table: RenderableType, console: Console) -> None:
    """Print a table, or what holds one, without trailing blanks; fitted to a terminal, elsewhere as wide as needed."""
    width = console.width
    if not console.file.isatty():
        width = max(1, console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum)
    _print_lines(table, width, console)


def print_rows(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console,
    *,
    numbers: Sequence[str],
    drop: Sequence[str],
) -> None:
    """Print a table whose cells are never folded or cut, so that paths can be copied.

    Args:
        names: of the columns.
        rows: their cells.
        console: where to.
        numbers: the columns that are aligned to the right.
        drop: the columns that a narrow terminal does without, the least important first.
    """
    shown = list(range(len(names)))
    while True:
        table = plain_table()
        for index in shown:
            table.add_column(names[index], justify="right" if names[index] in numbers else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(row[index] for index in shown))
        width = console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum
        droppable = [index for name in drop for index in shown if names[index] == name]
        if width <= console.width or not droppable or not console.file.isatty():
            break
        shown.remove(droppable[0])
    _print_lines(table, width, console)


def _print_lines(table: RenderableType, width: int, console: Console) -> None:
    for segments in console.render_lines(table, console.options.update(width=width), pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        console.print(line, soft_wrap=True)


def print_text(text: str, console: Console, style: str = "") -> None:
    """Print sentences: wrapped on a terminal, and one line elsewhere."""
    console.print(text, style=style, soft_wrap=not console.file.isatty())
