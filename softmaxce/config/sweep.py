"""Many runs from one config: every combination of some values, or several seeds. Needs no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ..errors import ConfigError, Problem
from . import reader as configs
from . import yamlfile
from .keys import Config
from .reader import Override
from .values import show

MAX_RUNS = 1000  # more is almost certainly a mistake


@dataclass(frozen=True)
class Point:
    """One run of several.

    Attributes:
        label: the values that differ between runs, `lr=0.01,model=lenet`.
        config: the complete config.
    """

    label: str
    config: Config

    @property
    def folder_name(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^\w.=,+-]+", "_", self.label)[:100]


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
    Raises: ConfigError with every mistake of every combination.
    """
    axes = [parse_choices(text) for text in sets]
    paths = [axis[0].path for axis in axes]
    if repeated := [".".join(path) for index, path in enumerate(paths) if path in paths[:index]]:
        raise ConfigError([Problem(f"--set {repeated[0]}", "is given twice; put all its values into one --set")])
    if (count := math.prod(map(len, axes))) > MAX_RUNS:
        raise ConfigError([Problem("--set", f"requests {count:,} runs; at most {MAX_RUNS:,} are allowed")])
    points: list[Point] = []
    problems: list[Problem] = []
    for combination in product(*axes):
        label = ",".join(
            f"{override.path[-1]}={_text(override.value)}"
            for override, axis in zip(combination, axes, strict=True)
            if len(axis) > 1
        )
        try:
            points.append(Point(label or "all", configs.load(config, [*combination, *overrides])))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return points


def seeds(config: str, count: int, overrides: Sequence[Override] = ()) -> list[Point]:
    """One config with `count` consecutive seeds, its own first. Raises: ConfigError."""
    first = configs.load(config, overrides).seed
    points = []
    for seed in range(first, first + count):
        seeded = configs.load(config, [*overrides, Override(("seed",), seed, f"--seeds {count}")])
        points.append(Point(f"seed-{seed}", seeded))
    return points


def _text(value: object) -> str:
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        rest = [f"{key}={_text(item)}" for key, item in value.items() if key != "name"]
        return "-".join([value["name"], *rest])
    return value if isinstance(value, str) else show(value)
