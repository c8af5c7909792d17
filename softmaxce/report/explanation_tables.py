"""The layout of an explanation in a terminal: headings, wrapped text, drawings and tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ..explain.explanation import Explanation
from ..explain.steps import Steps
from ..streams import escaped
from . import terminal_art

WIDEST = 80  # columns
INDENT = 3
WIDEST_NAME = 24  # columns of a class's name
FEW_CLASSES, SHOWN = 12, 8  # with more classes than the first, tables show the second, and the label's

LABEL, HIGHLIGHT, FADED, WRONG = "bold green", "bold magenta", "dim", "bold red"

Cell = str | Text


@dataclass
class ExplanationPrinter:
    """Prints headings, text and tables about one explanation."""

    explanation: Explanation
    console: Console
    decimals: int
    number: int = 0
    shown: list[int] = field(init=False)  # the classes that have a row in the tables

    def __post_init__(self) -> None:
        steps = self.explanation.steps
        self.steps = steps
        self.classes = tuple(map(escaped, self.explanation.classes))
        self.names = tuple(map(self.explanation.name_in_text, range(len(self.classes))))
        self.shown = shown_classes(steps)
        self.rest = [index for index in range(len(self.classes)) if index not in self.shown]
        self.width = min(WIDEST, console_width(self.console))
        draws_blocks = self.console.encoding.lower().startswith("utf")
        self.has_color = self.console.color_system is not None and not self.console.no_color and draws_blocks

    @property
    def half_width(self) -> int:
        """The columns of each of two drawings side by side."""
        return min((self.width - INDENT - 4) // 2, terminal_art.WIDEST)

    # -- text ---------------------------------------------------------------------------------------------------------

    def heading(self, text: str) -> None:
        """Begin the next step."""
        self.number += 1
        self.console.print()
        self.console.print(Text(f"{self.number:>2} {text}", "bold"))

    def text(self, text: str) -> None:
        """Print sentences, wrapped."""
        for line in Text(text).wrap(self.console, self.width - INDENT):
            line.rstrip()
            self.console.print(Text(" " * INDENT) + line, soft_wrap=True)

    def draw(self, lines: Sequence[Text]) -> None:
        """Print a drawing."""
        self.console.print()
        for line in lines:
            indented = Text(" " * INDENT) + line
            indented.rstrip()
            self.console.print(indented, soft_wrap=True)

    def draw_pair(self, names: Sequence[Text], drawings: Sequence[Sequence[Text]]) -> None:
        """Print one or two drawings of one height side by side, each below its name."""
        wide = max(drawings[0][0].cell_len, 12)
        lines = []
        for row in [names, *zip(*drawings, strict=True)]:
            line = Text("    ").join([*(_to_width(cell, wide) for cell in row[:-1]), row[-1]])
            line.rstrip()
            lines.append(line)
        self.draw(lines)

    # -- tables -------------------------------------------------------------------------------------------------------

    def num(self, value: float, *, sign: bool = False) -> str:
        """A number with `decimals` decimal places, or with an exponent where it is too small or large for them."""
        value += 0.0  # 0 instead of -0
        plus = "+" if sign and value > 0 else ""
        if not math.isfinite(value):
            return str(value)
        if value == 0 or 1e-3 <= abs(value) < 1e6:
            return f"{plus}{value:.{self.decimals}f}"
        if sign and abs(value) < 1e-15:
            return f"{0:.{self.decimals}f}"
        return f"{plus}{value:.{self.decimals - 1}e}"

    def percent(self, value: float) -> str:
        """A probability as a percentage."""
        return f"{100 * value:.2f} %"

    def label_entry(self, value: float) -> str:
        """An entry of a label: 0 and 1 without decimal places."""
        return f"{value:g}" if value in (0, 1) else self.num(value)

    def name(self, index: int) -> Text:
        """A class's name, highlighted if it is the label."""
        text = self.classes[index]
        if cell_len(text) > WIDEST_NAME:
            text = set_cell_size(text, WIDEST_NAME - 1) + "…"
        return Text(text, LABEL if self.steps.label[index] == max(self.steps.label) else "")

    def table(self, header: Sequence[str], row: Callable[[int], Sequence[Cell]], *after: Sequence[Cell]) -> None:
        """Print a row per class, then the rows `after`; the first column and those without a heading are left-aligned.

        Args:
            header: the columns' headings, the class's first; empty strings for no heading.
            row: class id -> the cells after the name.
            after: complete rows.
        """
        rows: list[list[Cell]] = [[self.name(index), *row(index)] for index in self.shown]
        rows += [list(cells) for cells in after if cells]
        self.rows(header, rows)

    def rows(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Print rows of cells under a heading."""
        cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
        heads = [Text(text, FADED) for text in header]
        count = max(len(row) for row in [*cells, heads])
        widths = [max(row[i].cell_len for row in [heads, *cells] if i < len(row)) for i in range(count)]
        self.console.print()
        for row in [heads, *cells] if any(header) else cells:
            line = Text(" " * INDENT)
            for i, cell in enumerate(row):
                space = " " * (widths[i] - cell.cell_len)
                left = i == 0 or not header[i]
                line += (cell + Text(space) if left else Text(space) + cell) + Text("  ")
            line.rstrip()
            self.console.print(line, soft_wrap=True)

    def others(self, *cells: str) -> list[Cell]:
        """A row for all classes that have none, together."""
        return [Text(f"{len(self.rest)} others", FADED), *cells] if self.rest else []

    def rest_of(self, values: Sequence[float]) -> float:
        """The sum over the classes without a row."""
        return math.fsum(values[index] for index in self.rest)


def _to_width(text: Text, width: int) -> Text:
    if text.cell_len > width:
        text.truncate(width, overflow="ellipsis")
    return text + Text(" " * (width - text.cell_len))


def shown_classes(steps: Steps) -> list[int]:
    """The classes with a row in the tables: all, or of many the ones with the largest logits, and the label's."""
    ids = range(len(steps.logits))
    if len(ids) <= FEW_CLASSES:
        return list(ids)
    largest = sorted(ids, key=lambda index: -steps.logits[index])[:SHOWN]
    labels = sorted((index for index in ids if steps.label[index] > 0), key=lambda index: -steps.label[index])
    return largest + [index for index in labels[:2] if index not in largest]


def console_width(console: Console) -> int:
    """The console's columns; 80 if it is not a terminal."""
    return console.width if console.is_terminal else WIDEST
