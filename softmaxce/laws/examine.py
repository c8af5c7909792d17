"""A loss before the laws: one verdict after the other."""

from collections.abc import Collection, Iterator

from ..config.components import load_object
from ..config.registry import LAWS
from .law import Law, LawResult, judge
from .subject import Subject


def law_named(name: str) -> Law:
    """The law behind an id of menus.LAWS."""
    law = load_object(LAWS[name])
    assert isinstance(law, Law)
    return law


def examine(subject: Subject, skip: Collection[str] = (), only: Collection[str] = ()) -> Iterator[LawResult]:
    """Try the laws in the menu's order.

    Args:
        subject: the loss. What it says it does not claim is not tried.
        skip: ids of laws that are not tried either.
        only: ids of the laws to go through; all of them if empty.
    """
    for name in LAWS:
        if only and name not in only:
            continue
        law = law_named(name)
        if name in skip:
            yield LawResult(name, law.claim, "not claimed", "skipped by --skip")
        elif name in subject.not_claimed:
            yield LawResult(name, law.claim, "not claimed", str(subject.not_claimed[name]))
        else:
            yield judge(name, law, subject)
