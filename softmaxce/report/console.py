"""The consoles: stdout for results, stderr for everything else; plain text when not a terminal."""

import sys

from rich.console import Console


def stdout() -> Console:
    """For results. Rich obeys NO_COLOR and FORCE_COLOR; nothing here guesses meaning from the text."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def stderr() -> Console:
    """For everything else."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
