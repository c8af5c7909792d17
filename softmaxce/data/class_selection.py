"""`classes` of a data set of one's own: the order of its classes, which of them are left out, and which are merged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import streams
from ..argument_types import Classes
from ..errors import DataError, suggestion

SHOWN = 20  # classes named in one message


@dataclass(frozen=True)
class ClassIds:
    """The classes of a data set.

    Attributes:
        names: K names.
        ids: a class's name in the folder or table -> its id in [0, K), or None if it is left out.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int | None]

    def uses(self, name: str) -> bool:
        """Whether the images of a class are used. Of a name that the data set does not know, too: it is an error."""
        return self.ids.get(name, 0) is not None


def select_classes(existing: Sequence[str], requested: Classes | None) -> ClassIds:
    """The classes that a config requests of those that the training images have.

    Args:
        existing: their names, in their order, which holds if nothing is requested.
        requested: names, in the order of their ids; or new name -> a name or names, whose classes are merged. Classes
            that it does not name are left out.
    Raises: DataError.
    """
    if requested is None:
        return ClassIds(tuple(existing), {name: index for index, name in enumerate(existing)})
    merged = _merged(requested)
    ids: dict[str, int | None] = dict.fromkeys(existing)
    for index, (_, names) in enumerate(merged):
        for name in names:
            if name not in ids:
                rest = f" and {len(existing) - SHOWN} more" if len(existing) > SHOWN else ""
                hint = f"{suggestion(name, existing)}; the classes are {', '.join(existing[:SHOWN])}{rest}"
                raise DataError(f"data.classes: there is no class '{name}'{hint}")
            if ids[name] is not None:
                raise DataError(f"data.classes: names the class '{name}' twice")
            ids[name] = index
    if len(merged) < 2:
        raise DataError(f"data.classes: names {len(merged)} class, and a classifier needs at least two")
    if len({new for new, _ in merged}) < len(merged):
        raise DataError("data.classes: names a class twice")
    return ClassIds(tuple(new for new, _ in merged), ids)


def classes_of_model(
    classes: tuple[str, ...], requested: Classes | None, present: Iterable[str], location: str | Path
) -> ClassIds:
    """How a model's classes are called in images other than those of its run: by their names, or those before merging.

    Args:
        classes: of the model.
        requested: the config's key.
        present: the names in these images; others than the known ones are left out, with a warning, if the run left
            out some; otherwise they are errors where they are used.
        location: of the images, for the warning.
    """
    ids: dict[str, int | None] = {name: index for index, name in enumerate(classes)}
    if requested is None:
        return ClassIds(classes, ids)
    ids |= {name: index for index, (_, names) in enumerate(_merged(requested)) for name in names}
    if others := sorted(set(present) - set(ids)):
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        streams.warning(
            f"{location}: images of classes that the run's data.classes does not name are left out: "
            f"{', '.join(others[:SHOWN])}{more}"
        )
    return ClassIds(classes, {**ids, **dict.fromkeys(others)})


def names_before_merging(requested: Any) -> list[str]:
    """The names in the data that a config's key names; none if there is no such key."""
    return [name for _, names in _merged(requested) for name in names] if isinstance(requested, dict) else []


def _merged(requested: Classes) -> list[tuple[str, list[str]]]:
    """Each class with the names of those that it is made of. Raises: DataError."""
    if isinstance(requested, list):
        return [(name, [name]) for name in requested]
    merged: list[tuple[str, list[str]]] = []
    for new, value in requested.items():
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name for name in (new, *names)):
            raise DataError(
                f"data.classes: {new}: must be a class's name or a list of names, got {value!r}; "
                "write it as {pet: [cat, dog], car: car}, with numbers in quotes"
            )
        merged.append((new, names))
    return merged
