"""Values from the command line that replace those of a config file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, Problem
from . import yamlfile
from .keys import DEFAULT_COMPONENTS
from .registry import REGISTRIES

Path_ = tuple[str | int, ...]  # the keys and list positions that lead to a value


@dataclass(frozen=True)
class Override:
    """A value from the command line: the keys that lead to it, the value, and the option that set it."""

    path: tuple[str, ...]
    value: Any
    option: str


def parse_override(text: str, option: str | None = None) -> Override:
    """`optimizer.lr=0.05` as an Override; the value is read as YAML.

    Args:
        text: the keys and the value.
        option: the option that stands for it, `--lr` for example; --set if left out.
    Raises: ConfigError.
    """
    option = f"--set {text}" if option is None else f"{option} {text.partition('=')[2]}"
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError([Problem(option, "write it as key=value, for example --set optimizer.lr=0.05")])
    try:
        data = yamlfile.parse(value, option).data
    except ConfigError as error:
        message = error.problems[0].message
        raise ConfigError([Problem(option, message)]) from None
    return Override(path, data, option)


def apply(
    data: dict[str, Any], overrides: Sequence[Override]
) -> tuple[dict[str, Any], dict[Path_, str], list[Problem]]:
    """The data with the overrides applied in order, and which option set which path. `data` is not changed.

    An override whose path leads through a plain value, or outside a list, is a problem instead.
    """
    options: dict[Path_, str] = {}
    problems: list[Problem] = []
    for override in overrides:
        data = dict(data)
        if message := _insert(data, override):
            problems.append(Problem(override.option, message))
        else:
            options[tuple(int(key) if key.isdigit() else key for key in override.path)] = override.option
    return data, options, problems


def _insert(data: dict[str, Any], override: Override) -> str | None:
    """Set the value at the override's path in `data`, copying each container on the way. Returns: what is wrong."""
    container: Any = data
    for depth, key in enumerate(override.path[:-1]):
        child = container[int(key)] if isinstance(container, list) else container.get(key)
        if child is None:
            default = DEFAULT_COMPONENTS.get(key) if depth == 0 else None
            child = {"name": default} if default else {}
        elif isinstance(child, str) and (depth > 0 or key in REGISTRIES):
            child = {"name": child}  # `model: resnet18` is short for `model: {name: resnet18}`
        elif not isinstance(child, dict | list):
            return f"'{key}' is a plain value and holds no keys"
        child = list(child) if isinstance(child, list) else dict(child)
        container[int(key) if isinstance(container, list) else key] = container = child
        following = override.path[depth + 1]
        if isinstance(child, list) and not (following.isdigit() and int(following) < len(child)):
            return f"'{following}' must be a position in a list of {len(child)}, counted from 0"
    last = override.path[-1]
    container[int(last) if isinstance(container, list) else last] = override.value
    return None
