"""The folds of a cross-validation: each class in proportion, and all images of a group in one fold."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .splits import Split, name_hash

SALT = "folds"  # hashed with the names, so that folds do not follow the test split


def assign_folds(split: Split, folds: int) -> Tensor:
    """The fold of each image, [N] int64 in [0, folds): the same for every seed, and in whatever order images come.

    Args:
        split: its names, or else the images' positions, decide the folds; its groups, if it has any, are not divided.
        folds: 2 or more.
    Returns: without groups, the numbers of images in two folds differ by one at most, as do those of each class.
    Raises: ValueError if there are fewer images or groups than folds.

    Without groups the images are sorted by class, and within it by a hash of their names, and dealt out in turn, as
    scikit-learn's StratifiedKFold does.
    """
    labels = split.labels.tolist()
    names = split.names or [str(index) for index in range(len(split))]
    result = [0] * len(labels)
    if split.groups is not None:
        fold_of = _folds_of_groups(split.groups, labels, folds)
        return torch.tensor([fold_of[group] for group in split.groups])
    if len(labels) < folds:
        raise ValueError(f"{len(labels)} images cannot be divided into {folds} folds")
    order = sorted(range(len(labels)), key=lambda i: (labels[i], name_hash(names[i], SALT), names[i]))
    for position, index in enumerate(order):
        result[index] = position % folds
    return torch.tensor(result)


def _folds_of_groups(groups: Sequence[str], labels: Sequence[int], folds: int) -> dict[str, int]:
    """The fold of each group.

    Largest groups first, by the sum of the squares of their shares of the classes, each goes where it increases the sum
    over folds and classes of the squared share of the class that the fold has the least: that sum is smallest where
    every fold has an equal share of every class. Ties go to the fold with the fewest images. scikit-learn's
    StratifiedGroupKFold does likewise with the standard deviation of the shares.
    """
    totals = Counter(labels)
    classes: dict[str, Counter[int]] = {}
    for group, label in zip(groups, labels, strict=True):
        classes.setdefault(group, Counter())[label] += 1
    if len(classes) < folds:
        raise ValueError(f"{len(classes)} groups cannot be divided into {folds} folds")

    def order(group: str) -> tuple[float, list[int], float, str]:
        weight = math.fsum((count / totals[label]) ** 2 for label, count in classes[group].items())
        return -weight, sorted(classes[group]), name_hash(group, SALT), group

    shares: list[Counter[int]] = [Counter() for _ in range(folds)]

    def cost(fold: int, group: str) -> tuple[float, int, int]:
        # fsum: the same to the last bit on every machine
        increase = math.fsum(
            shares[fold][label] * count / totals[label] ** 2 for label, count in classes[group].items()
        )
        return increase, shares[fold].total(), fold

    result: dict[str, int] = {}
    for group in sorted(classes, key=order):
        result[group] = min(range(folds), key=lambda fold: cost(fold, group))
        shares[result[group]].update(classes[group])
    return result
