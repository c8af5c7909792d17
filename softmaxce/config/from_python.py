"""A config from Python: a recipe's name, a file or a dict, with values that replace some of its own."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from . import yamlfile
from .keys import Config
from .objects import FIELDS, name_augmentations, with_augmentations
from .reader import Override, check, load

ConfigLike = str | PathLike[str] | Mapping[str, Any] | Config


def load_config(config: ConfigLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a config, without importing torch.

    Args:
        config: the name of a recipe, a YAML file, or a dict with the keys of one. A Config is taken as it is. In a
            dict, `data.augment` may hold objects beside names; so may an override of it.
        overrides: values that replace the config's, by their dotted keys: {"optimizer.lr": 0.003, "epochs": 5}.
    Raises: errors.ConfigError with every mistake, each with its location.

    >>> load_config("digits", {"optimizer.lr": 0.003}).optimizer.arguments["lr"]
    0.003
    """
    config, overrides, augmentations = _take_augmentations(config, dict(overrides or {}))
    changes = [
        Override(tuple(key.split(".")), yamlfile.plain(value, key), f"{key}={value!r}"[:100])
        for key, value in overrides.items()
    ]
    if isinstance(config, Config):
        if not changes:
            return config
        changed = check(yamlfile.Document("the config", config.to_dict(), {}, {}), changes, recipe=config.recipe)
        return with_augmentations(_with_instances_of(config, changed), augmentations)
    if isinstance(config, Mapping):
        document = yamlfile.Document("the config", yamlfile.plain(config, "the config"), {}, {})
        return with_augmentations(check(document, changes), augmentations)
    return with_augmentations(load(fspath(config), changes), augmentations)


def _take_augmentations(
    config: ConfigLike, overrides: dict[str, Any]
) -> tuple[ConfigLike, dict[str, Any], dict[int, Any]]:
    """The config and the overrides with names in place of the objects in `data.augment`; and these by position."""
    instances: dict[int, Any] = {}
    data = config.get("data") if isinstance(config, Mapping) else None
    if isinstance(config, Mapping) and isinstance(data, Mapping) and "augment" in data:
        names, instances = name_augmentations(data["augment"])
        config = {**config, "data": {**data, "augment": names}}
    if "data.augment" in overrides:
        overrides["data.augment"], instances = name_augmentations(overrides["data.augment"])
    return config, overrides, instances


def _with_instances_of(config: Config, changed: Config) -> Config:
    """The changed config with the objects of the first, where it still stands for them."""
    components = {
        name: getattr(config, name)
        for name in FIELDS.values()
        if getattr(config, name).instance is not None and getattr(config, name) == getattr(changed, name)
    }
    known = [each for each in config.augment if each.instance is not None]
    augment = tuple(known[known.index(each)] if each in known else each for each in changed.augment)
    return replace(changed, augment=augment, **components)
