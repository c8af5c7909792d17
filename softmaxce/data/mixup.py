"""Mixup and CutMix: batches of mixed images with mixed labels."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .batches import Batch


def mixing(
    mixup_alpha: float, cutmix_alpha: float, num_classes: int, *, with_previous: bool = False
) -> Callable[[Tensor, Tensor], Batch] | None:
    """mixup, CutMix, or one of the two at random for each batch; None if both are off.

    Args:
        mixup_alpha: mixup's Beta parameter; 0 is off.
        cutmix_alpha: CutMix's, likewise.
        num_classes: K.
        with_previous: the batch begins with an image that the next is mixed with, and that is then dropped; see
            Batches.
    Returns: (images [B, C, H, W], labels [B]) -> (images, [B, K] probabilities).

    Zhang et al. 2018; Yun et al. 2019. torchvision's implementations, which draw one mixing ratio per batch.
    """
    if not mixup_alpha and not cutmix_alpha:
        return None
    from torchvision.transforms import v2

    choices = [
        make(alpha=float(alpha), num_classes=num_classes)
        for make, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        if alpha
    ]
    return partial(_mixed, choices, int(with_previous))


def _mixed(choices: list[Callable[[Tensor, Tensor], Batch]], dropped: int, images: Tensor, labels: Tensor) -> Batch:
    choice = choices[int(torch.randint(len(choices), ()))] if len(choices) > 1 else choices[0]
    mixed, targets = choice(images, labels)
    return mixed[dropped:], targets[dropped:]
