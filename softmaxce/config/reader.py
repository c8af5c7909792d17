"""The config, read and checked as a whole before torch is imported; every mistake is reported with its location."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem
from . import yamlfile
from .checker import Checker
from .components import Component, resolve
from .keys import Config
from .overrides import Override, parse_override
from .recipes import find
from .registry import REGISTRIES
from .values import show

__all__ = ["Override", "as_recorded", "check", "from_dict", "load", "named", "parse_override"]

# What lies beside a config.yaml that a run has written.
IN_A_RUN_FOLDER = ("run.json", "last.safetensors")


def load(config: str, overrides: Sequence[Override] = ()) -> Config:
    """Read and check a config.

    Args:
        config: a file, or the name of a recipe.
        overrides: values that replace the file's, in order.
    Raises: ConfigError with every mistake, each with its location.
    """
    file, location = find(config)
    document = yamlfile.read(file, location)
    recorded = file.name == "config.yaml" and any((file.parent / name).is_file() for name in IN_A_RUN_FOLDER)
    if recorded:
        document = replace(document, data=as_recorded(document.data))
    elif file == Path(config):  # no recipe
        document = replace(document, folder=file.parent)
    recipe = file.stem.lstrip(".") or "run"
    return replace(check(document, overrides, recipe=recipe), recorded=recorded)


def from_dict(data: Any, source: str = "the config", recipe: str = "run") -> Config:
    """Check a config that is a dict already, such as `json.load` returns.

    Args:
        data: what a YAML file would hold; tuples count as lists. The limits of a file hold for it too (yamlfile.plain).
        source: what to call it in messages.
        recipe: the name of the run.
    Raises: ConfigError with every mistake.
    """
    return check(yamlfile.Document(source, yamlfile.plain(data, source), {}, {}), recipe=recipe)


def as_recorded(data: Any) -> Any:
    """The config of an earlier run, with the keys it lacks set to what was the default when it was written.

    It downloads nothing, whatever it says: the run may be someone else's.

    Args:
        data: from a run folder's config.yaml or a checkpoint's header; it is not changed.
    """
    section = data.get("data") if isinstance(data, dict) else None
    if not isinstance(section, dict):
        return dict(data) if isinstance(data, dict) else data
    changed = {**section, "download": False} if "download" in section else dict(section)
    if section.get("name") == "image_folder":
        changed.setdefault("split_by", "shuffle")
    if section.get("name") == "synthetic" and "seed" in data:
        changed.setdefault("image_seed", data["seed"])
    return {**data, "data": changed}


def check(document: yamlfile.Document, overrides: Sequence[Override] = (), recipe: str = "run") -> Config:
    """A document as a Config. Raises: ConfigError with every mistake, each with its location."""
    if document.data is None:
        raise ConfigError([Problem(document.name, "is empty; `softmaxce config new digits` writes one to start from")])
    if not isinstance(document.data, dict):
        message = f"must be a mapping of keys (data, model, ...), got {show(document.data)}"
        raise ConfigError([Problem(document.location(()), message)])
    return Checker(document, overrides).config(recipe)


def named(section: str, name: str, overrides: Sequence[Override] = (), option: str = "") -> Component:
    """A component that the command line names, checked as in a config.

    Args:
        section: loss, model, optimizer or schedule.
        name: as in a config.
        overrides: its arguments, `label_smoothing=0.1`.
        option: the option with the name, for messages.
    Raises: ConfigError with every mistake.
    """
    options = {override.path[0]: override.option for override in overrides}
    arguments = {override.path[0]: override.value for override in overrides}
    try:
        component, problems = resolve(REGISTRIES[section], name, arguments, option)
    except ValueError as error:
        raise ConfigError([Problem(option, str(error))]) from None
    if problems:
        raise ConfigError([Problem(options.get(p.argument or "", option), p.message) for p in problems])
    return component
