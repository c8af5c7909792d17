"""Test-time augmentation: several views of an image, one answer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SHIFT = 1  # pixels


class Views(nn.Module):
    """A model asked about several views of each image; its answer is their logits' weighted mean, in float32.

    Args:
        model: images [B, C, H, W] -> logits [B, K].
        flip: the image and its mirror image, half each.
        crops: the image, half, and the same shifted by a pixel up and left and down and right, a quarter each; the
            border is mirrored. With `flip`, each of the three and its mirror image: six views.

    The views and their weights are those of Jordan 2024, section 3.5. A mean of logits is a geometric mean of
    probabilities.
    """

    def __init__(self, model: nn.Module, flip: bool, crops: bool) -> None:
        super().__init__()
        self.model = model
        self.flip = flip
        self.crops = crops
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        if not self.crops:
            return self._mirrored(images)
        _, _, height, width = images.shape
        padded = functional.pad(images, (SHIFT,) * 4, mode="reflect")
        shifted = [padded[:, :, start : start + height, start : start + width] for start in (0, 2 * SHIFT)]
        return self._mirrored(images) / 2 + (self._mirrored(shifted[0]) + self._mirrored(shifted[1])) / 4

    def _mirrored(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).float()
        return torch.lerp(logits, self.model(images.flip(3)).float(), 0.5) if self.flip else logits


def with_views(model: nn.Module, tta: str) -> nn.Module:
    """The model, asked as the config's `tta` says: none, flip, crops or flip_crops."""
    return model if tta == "none" else Views(model, flip="flip" in tta, crops="crops" in tta)
