"""Python objects in the place of names: a model, a loss, a data set or augmentations that a config need not name.

A run folder records such an object as `<module.Class>`, which says what it was and cannot be built. So whoever resumes,
evaluates or predicts with that run passes the object again; augmentations only to resume.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .components import Component, is_object
from .keys import Config

FIELDS = {"model": "model", "loss": "loss", "dataset": "source"}  # keyword -> field of a Config


def object_name(value: Any) -> str:
    """How a config records an object: the class, or the function, in angle brackets."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"<{named.__module__}.{named.__qualname__.replace('<', '').replace('>', '')}>"


def with_objects(config: Config, *, model: Any = None, loss: Any = None, dataset: Any = None) -> Config:
    """The config with these objects in place of what it names; None leaves the name.

    Args:
        config: is not changed.
        model: a torch.nn.Module, images [B, C, H, W] -> logits [B, K].
        loss: (logits [B, K], targets [B] or [B, K]) -> a scalar or [B].
        dataset: a softmaxce.data.splits.Dataset.
    """
    objects = {"model": model, "loss": loss, "dataset": dataset}
    components = {
        FIELDS[key]: Component(object_name(value), object_name(value), {}, {}, f"{key}=", value)
        for key, value in objects.items()
        if value is not None
    }
    return replace(config, **components) if components else config  # type: ignore[arg-type]


def name_augmentations(augment: Any) -> tuple[Any, dict[int, Any]]:
    """The value of `data.augment` with every object in it replaced by its name, and the objects by their position."""
    if not isinstance(augment, list | tuple):
        return augment, {}
    instances = {i: item for i, item in enumerate(augment) if callable(item)}
    return [object_name(item) if i in instances else item for i, item in enumerate(augment)], instances


def with_augmentations(config: Config, instances: Mapping[int, Any]) -> Config:
    """The config with these objects in place of the augmentations at these positions."""
    if not instances:
        return config
    return replace(
        config,
        augment=tuple(replace(each, instance=instances.get(i, each.instance)) for i, each in enumerate(config.augment)),
    )


def changed_objects(config: Config, objects: Mapping[str, Any]) -> list[str]:
    """What differs between the objects that a run was trained with and those passed now, a line each.

    Args:
        config: as the run recorded it.
        objects: by keyword; None where none is passed.
    """
    lines = []
    for key, value in objects.items():
        recorded = getattr(config, FIELDS[key]).name
        if value is not None and is_object(recorded) and object_name(value) != recorded:
            lines.append(f"this run was trained with the {key} {recorded}, but {object_name(value)} is passed")
    return lines


def objects_of(config: Config) -> list[str]:
    """The keywords of the objects that a config stands for: `model`, `loss`, `dataset`."""
    return [key for key, field in FIELDS.items() if getattr(config, field).is_object]
