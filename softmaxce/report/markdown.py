"""Text from outside in Markdown."""

import re

from .. import streams


def escape(text: str) -> str:
    """Text as Markdown that shows it literally, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&])", r"\\\1", streams.escaped(" ".join(text.split())))
