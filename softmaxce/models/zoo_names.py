"""The names of torchvision's classification models, found without importing torchvision."""

import importlib.util
import re
from functools import cache
from pathlib import Path


@cache
def torchvision_names() -> tuple[str, ...]:
    """What `torchvision:NAME` can name: the functions under @register_model in the files of torchvision/models."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    names: set[str] = set()
    for file in Path(spec.origin).parent.joinpath("models").glob("*.py"):
        names.update(re.findall(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", file.read_text("utf-8"), re.MULTILINE))
    return tuple(sorted(names))
