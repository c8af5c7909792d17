"""Tests a loss on the laws, one after the other."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import platformdirs

from ..config.components import load_object
from ..config.registry import LAWS
from .law import Law, LawResult, check_law
from .subject import Subject


def law_named(name: str) -> Law:
    """The law registered under this name in config.registry.LAWS."""
    law = load_object(LAWS[name])
    assert isinstance(law, Law)
    return law


def examine(subject: Subject, skip: Collection[str] = (), only: Collection[str] = ()) -> Iterator[LawResult]:
    """Test the laws in the order of the registry.

    Args:
        subject: the loss. Laws in its `not_claimed` are not tested.
        skip: names of laws that are not tested either.
        only: names of the laws to test; all if empty.
    """
    # hypothesis stores what it has read of the user's code; keep that out of the current folder
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(platformdirs.user_cache_dir("softmaxce"), "laws")))
    for name in LAWS:
        if only and name not in only:
            continue
        law = law_named(name)
        if name in skip:
            yield LawResult(name, law.claim, "exempt", "skipped by --skip")
        elif name in subject.not_claimed:
            yield LawResult(name, law.claim, "exempt", str(subject.not_claimed[name]))
        else:
            yield check_law(name, law, subject)
