"""Values as JSON, which has no NaN and no infinity: they become null."""

import json
import math
from typing import Any


def finite(value: Any) -> Any:
    """The same value, with null for every number in it that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(finite(value), allow_nan=False)
