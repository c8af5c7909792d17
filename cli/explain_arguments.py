"""What `softmaxce explain` is told as text: rows of numbers, and labels. Needs no torch."""

import math
from collections.abc import Sequence

from softmaxce.errors import ConfigError, Problem


def numbers(text: str, option: str) -> list[float]:
    """The finite numbers in `2.0,1.0,0.1`. Raises: ConfigError that names the option."""
    found = []
    for part in text.replace(",", " ").split():
        try:
            found.append(float(part))
        except ValueError:
            raise _mistake(option, f"'{part}' is no number; write them like {option} 2.0,1.0,0.1") from None
        if not math.isfinite(found[-1]):
            raise _mistake(option, f"numbers must be finite, got {part}")
    return found


def logits(text: str) -> list[float]:
    """The numbers of --logits: two or more."""
    found = numbers(text, "--logits")
    if len(found) < 2:
        raise _mistake("--logits", f"needs two numbers or more, one a class, got {len(found)}")
    return found


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
    """The numbers of --weight: one a class, none negative."""
    found = numbers(text, "--weight")
    if len(found) != count or min(found) < 0:
        raise _mistake("--weight", f"needs {count} numbers, one a class, none negative, got '{text}'")
    return found


def label(text: str, classes: Sequence[str]) -> int | list[float]:
    """A class by its name or its number, or the shares of several: `cat=0.7,dog=0.3`.

    Returns: the class id, or one share a class; they add up to 1.
    Raises: ConfigError if there is no such class, or the shares do not add up.
    """
    try:
        return _class_id(text, classes)
    except ConfigError:
        if "=" not in text:
            raise
    shares = [0.0] * len(classes)
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        (value,) = numbers(share, "--label") or [math.nan]
        if not 0 <= value <= 1:
            raise _mistake("--label", f"'{part}': a share is a number from 0 to 1, like {classes[0]}=0.7")
        shares[_class_id(name.strip(), classes)] += value
    if abs(sum(shares) - 1) > 1e-6:
        raise _mistake("--label", f"the shares must add up to 1, got {sum(shares):g}")
    return shares


def mix(text: str) -> tuple[int, float]:
    """The image and its share in `5` (half) or `5=0.3`. Raises: ConfigError."""
    index, equals, share = text.partition("=")
    value = numbers(share, "--mix") if equals else [0.5]
    if not index.isdecimal() or len(value) != 1 or not 0 <= value[0] <= 1:
        raise _mistake("--mix", f"is an image's number and its share from 0 to 1, like 5=0.3; got '{text}'")
    return int(index), value[0]


def _class_id(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise _mistake("--label", f"there is no class '{name}'; the classes are {shown}, or 0 to {len(classes) - 1}")


def _mistake(option: str, message: str) -> ConfigError:
    return ConfigError([Problem(option, message)])
