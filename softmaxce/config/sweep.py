"""Many runs from one config: every combination of some values, several seeds, or the folds of a cross-validation.

Needs no torch.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

from ..errors import ConfigError, Problem
from . import reader as configs
from . import yamlfile
from .keys import Config
from .reader import Override
from .values import show

MAX_RUNS = 1000  # more is almost certainly a mistake
MAX_NAME = 100  # characters of a folder's name


@dataclass(frozen=True)
class Point:
    """One run of several.

    Attributes:
        label: the values that differ between runs, `lr=0.01,model=lenet`.
        config: the complete config.
        folder_name: the label as a folder's name; no two of one sweep are the same, in any case.
    """

    label: str
    config: Config
    folder_name: str


def parse_choices(text: str) -> list[Override]:
    """`optimizer.lr=0.01,0.03` as one Override per value; the values are parsed as a YAML list. Raises: ConfigError."""
    key, equals, values = text.partition("=")
    base = configs.parse_override(f"{key}{equals}null")  # checks the key
    try:
        parsed = yamlfile.parse(f"[{values}]", f"--set {text}").data
    except ConfigError as error:
        raise ConfigError([Problem(f"--set {text}", error.problems[0].message)]) from None
    if not parsed:
        raise ConfigError([Problem(f"--set {text}", "needs a value, or several between commas")])
    return [Override(base.path, value, f"--set {key}={_text(value)}") for value in parsed]


def grid(config: str, sets: Sequence[str], overrides: Sequence[Override] = ()) -> list[Point]:
    """Every combination of the values, the last key's changing fastest.

    Args:
        config: a file, or the name of a recipe.
        sets: `key=value,value` texts; a key with one value is set in all.
        overrides: values set in all, after `sets`.
    Returns: the combinations whose configs differ: of equal ones (`1e-3,0.001`) the first.
    Raises: ConfigError with every mistake of every combination.
    """
    axes = [parse_choices(text) for text in sets]
    paths = [axis[0].path for axis in axes]
    if repeated := [".".join(path) for index, path in enumerate(paths) if path in paths[:index]]:
        raise ConfigError([Problem(f"--set {repeated[0]}", "is given twice; put all its values into one --set")])
    if (count := math.prod(map(len, axes))) > MAX_RUNS:
        raise ConfigError([Problem("--set", f"requests {count:,} runs; at most {MAX_RUNS:,} are allowed")])
    labelled: list[tuple[str, Config]] = []
    problems: list[Problem] = []
    for combination in product(*axes):
        label = ",".join(
            f"{override.path[-1]}={_text(override.value)}"
            for override, axis in zip(combination, axes, strict=True)
            if len(axis) > 1
        )
        try:
            labelled.append((label or "all", configs.load(config, [*combination, *overrides])))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return _points(labelled)


def _points(labelled: Sequence[tuple[str, Config]]) -> list[Point]:
    """Points without those whose config another has, each with a folder's name of its own."""
    points: list[Point] = []
    seen: set[str] = set()
    names: set[str] = set()
    for label, config in labelled:
        written = json.dumps(config.to_dict(), sort_keys=True, default=str)
        if written in seen:
            continue
        seen.add(written)
        name = re.sub(r"[^\w.=,+-]+", "_", label)[:MAX_NAME]
        if name.casefold() in names:  # `a:b` and `a/b`, or a file system that ignores case
            name = f"{name}-{blake2b(written.encode(), digest_size=4).hexdigest()}"
        names.add(name.casefold())
        points.append(Point(label, config, name))
    return points


def seeds(config: str, count: int, overrides: Sequence[Override] = ()) -> list[Point]:
    """One config with `count` consecutive seeds, its own first. Raises: ConfigError."""
    first = configs.load(config, overrides).seed
    points = []
    for seed in range(first, first + count):
        seeded = configs.load(config, [*overrides, Override(("seed",), seed, f"--seeds {count}")])
        points.append(Point(f"seed-{seed}", seeded, f"seed-{seed}"))
    return points


def folds(config: str, count: int, overrides: Sequence[Override] = ()) -> list[Point]:
    """One config with each of `count` folds as its test split. Raises: ConfigError."""
    option, points = f"--folds {count}", []
    for fold in range(1, count + 1):
        own = [Override(("data", "folds"), count, option), Override(("data", "fold"), fold, option)]
        points.append(Point(f"fold-{fold}", configs.load(config, [*overrides, *own]), f"fold-{fold}"))
    return points


def _text(value: object) -> str:
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        rest = [f"{key}={_text(item)}" for key, item in value.items() if key != "name"]
        return "-".join([value["name"], *rest])
    if not isinstance(value, str):
        return show(value)
    try:
        is_plain = yamlfile.parse(value, "").data == value
    except ConfigError:  # a text that is no YAML, `a: b: c` for example, is shown in quotes
        is_plain = False
    return value if is_plain else show(value)  # the text 'null' is not null
