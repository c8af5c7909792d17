"""A config from Python: a recipe's name, a file or a dict, with values that replace some of its own."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from . import yamlfile
from .keys import Config
from .objects import FIELDS
from .reader import Override, check, load

ConfigLike = str | PathLike[str] | Mapping[str, Any] | Config


def load_config(config: ConfigLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a config, without importing torch.

    Args:
        config: the name of a recipe, a YAML file, or a dict with the keys of one. A Config is taken as it is.
        overrides: values that replace the config's, by their dotted keys: {"optimizer.lr": 0.003, "epochs": 5}.
    Raises: errors.ConfigError with every mistake, each with its location.

    >>> load_config("digits", {"optimizer.lr": 0.003}).optimizer.arguments["lr"]
    0.003
    """
    changes = [
        Override(tuple(key.split(".")), yamlfile.plain(value, key), f"{key}={value!r}"[:100])
        for key, value in (overrides or {}).items()
    ]
    if isinstance(config, Config):
        if not changes:
            return config
        changed = check(yamlfile.Document("the config", config.to_dict(), {}, {}), changes, recipe=config.recipe)
        return _with_instances_of(config, changed)
    if isinstance(config, Mapping):
        return check(yamlfile.Document("the config", yamlfile.plain(config, "the config"), {}, {}), changes)
    return load(fspath(config), changes)


def _with_instances_of(config: Config, changed: Config) -> Config:
    """The changed config with the objects of the first, where it still stands for them."""
    components = {
        name: getattr(config, name)
        for name in FIELDS.values()
        if getattr(config, name).instance is not None and getattr(config, name) == getattr(changed, name)
    }
    return replace(changed, **components)
