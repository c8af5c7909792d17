"""The arguments of `softmaxce explain` that are text: rows of numbers, and labels. Needs no torch."""

import math
from collections.abc import Sequence
from typing import Any, get_args

from softmaxce.argument_types import AttributionMethod
from softmaxce.config.values import show
from softmaxce.errors import ConfigError, Problem, suggestion


def numbers(text: str, option: str) -> list[float]:
    """The finite numbers in `2.0,1.0,0.1`. Raises: ConfigError that names the option."""
    values = []
    for part in text.replace(",", " ").split():
        try:
            values.append(float(part))
        except ValueError:
            raise _mistake(option, f"'{part}' is not a number; write them like {option} 2.0,1.0,0.1") from None
        if not math.isfinite(values[-1]):
            raise _mistake(option, f"numbers must be finite, got {part}")
    return values


def logits(text: str) -> list[float]:
    """The numbers of --logits: two or more."""
    values = numbers(text, "--logits")
    if len(values) < 2:
        raise _mistake("--logits", f"needs two numbers or more, one per class, got {len(values)}")
    return values


def class_names(text: str | None, count: int) -> tuple[str, ...]:
    """The names of --classes, or class 0, class 1, ...; as many as there are logits."""
    if text is None:
        return tuple(f"class {index}" for index in range(count))
    names = tuple(part.strip() for part in text.split(","))
    if len(names) != count:
        raise _mistake("--classes", f"needs one name for each of the {count} logits, got {len(names)}")
    if len(set(names)) < count or not all(names):
        raise _mistake("--classes", f"names must differ and not be empty, got '{text}'")
    return names


def weights(text: str, count: int) -> list[float]:
    """The numbers of --weight: one per class, none negative."""
    values = numbers(text, "--weight")
    if len(values) != count or min(values) < 0:
        raise _mistake("--weight", f"needs {count} numbers, one per class, none negative, got '{text}'")
    return values


def label(text: str, classes: Sequence[str]) -> int | list[float]:
    """A class by its name or number, or a soft label: `cat=0.7,dog=0.3`.

    Returns: the class id, or one probability per class; they add up to 1.
    Raises: ConfigError if there is no such class, or the probabilities do not add up to 1.
    """
    try:
        return _class_id(text, classes)
    except ConfigError:
        if "=" not in text:
            raise
    probabilities = [0.0] * len(classes)
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        values = numbers(number, "--label")
        if len(values) != 1 or not 0 <= values[0] <= 1:
            raise _mistake("--label", f"'{part}': needs one probability from 0 to 1, like {classes[0]}=0.7")
        probabilities[_class_id(name.strip(), classes)] += values[0]
    if abs(sum(probabilities) - 1) > 1e-6:
        raise _mistake("--label", f"the probabilities must add up to 1, got {sum(probabilities):g}")
    return probabilities


def mix(text: str) -> tuple[int, float]:
    """The image and its weight in `5` (0.5) or `5=0.3`. Raises: ConfigError."""
    index, equals, weight = text.partition("=")
    value = numbers(weight, "--mix") if equals else [0.5]
    if not index.isdecimal() or len(value) != 1 or not 0 <= value[0] <= 1:
        raise _mistake("--mix", f"needs an image's number and its weight from 0 to 1, like 5=0.3; got '{text}'")
    return int(index), value[0]


def attributions(methods: str | None, of: str | None, layer: str | None) -> dict[str, Any]:
    """The arguments of `explain.trained.Attributions`. Raises: ConfigError if they do not fit together."""
    names = None if methods is None else _methods(methods)
    if layer is not None and names is not None and "grad_cam" not in names:
        raise _mistake("--layer", f"is for --attribution grad_cam, got {show(methods)}")
    if of is not None and names == ():
        raise _mistake("--of", "says what the maps of --attribution explain, and --attribution none has no maps")
    return {"methods": ("grad_cam",) if names is None and (layer or of) else names, "of": of or "logit", "layer": layer}


def _methods(text: str) -> tuple[AttributionMethod, ...]:
    """The methods in `grad_cam,occlusion`, `all` or `none`."""
    methods: tuple[AttributionMethod, ...] = get_args(AttributionMethod)
    if text in ("all", "none"):
        return methods if text == "all" else ()
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in methods:
            rule = f"must be some of {', '.join(methods)}, or all, or none, got {show(name)}"
            raise _mistake("--attribution", rule + suggestion(name, [*methods, "all", "none"]))
    return tuple(method for method in methods if method in names)


def _class_id(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise _mistake("--label", f"there is no class '{name}'; the classes are {shown}, or 0 to {len(classes) - 1}")


def _mistake(option: str, message: str) -> ConfigError:
    return ConfigError([Problem(option, message)])
