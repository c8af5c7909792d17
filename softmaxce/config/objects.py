"""Python objects in the place of names: a model, a loss or a data set that a config does not have to name.

A run folder records such an object as `<module.Class>`, which says what it was and cannot be built. So whoever resumes,
evaluates or predicts with that run passes the object again.
"""

from dataclasses import replace
from typing import Any

from .components import Component
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


def objects_of(config: Config) -> list[str]:
    """The keywords of the objects that a config stands for: `model`, `loss`, `dataset`."""
    return [key for key, field in FIELDS.items() if getattr(config, field).is_object]
