"""Under which id a run folder is logged elsewhere, so that a resumed run continues its own log."""

import json
import re
from pathlib import Path

from ...files import read_json, replace_file

MAX_BYTES = 4096
ID = re.compile(r"[0-9A-Za-z][\w-]{0,63}")


def read_id(folder: Path, name: str) -> str | None:
    """The id that `write_id` stored; None if there is none, or what is there is no id."""
    try:
        stored = read_json(folder / f"{name}.json", MAX_BYTES)
    except (OSError, ValueError):  # missing or damaged: the run gets a new log
        return None
    text = stored.get("id") if isinstance(stored, dict) else None
    return text if isinstance(text, str) and ID.fullmatch(text) else None


def write_id(folder: Path, name: str, text: str) -> None:
    """Store an id as NAME.json in the run folder. Raises: OSError."""
    replace_file(folder / f"{name}.json", (json.dumps({"id": text}) + "\n").encode())
