"""Test-time augmentation: the logits of several transformed copies of an image are averaged."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SHIFT = 1  # pixels


class TestTimeAugmentation(nn.Module):
    """A model whose logits are the weighted mean over several views of each image, in float32.

    Args:
        model: images [B, C, H, W] -> logits [B, K].
        flip: the image and its mirror image, with weight 1/2 each.
        crops: the image, with weight 1/2, and two copies of it shifted by one pixel, up and left and down and right,
            with weight 1/4 each; the border is filled by reflection. With `flip`, each of the three is also mirrored:
            six views.

    The views and weights of Jordan 2024, section 3.5. The mean of logits is the geometric mean of probabilities, up to
    normalization.
    """

    __test__ = False  # its name begins as a test's does: pytest is not to collect it

    def __init__(self, model: nn.Module, flip: bool, crops: bool) -> None:
        super().__init__()
        self.model = model
        self.flip = flip
        self.crops = crops
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        if not self.crops:
            return self._logits(images)
        _, _, height, width = images.shape
        padded = functional.pad(images, (SHIFT,) * 4, mode="reflect")
        shifted = [padded[:, :, start : start + height, start : start + width] for start in (0, 2 * SHIFT)]
        return self._logits(images) / 2 + (self._logits(shifted[0]) + self._logits(shifted[1])) / 4

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).float()
        return torch.lerp(logits, self.model(images.flip(3)).float(), 0.5) if self.flip else logits


def with_tta(model: nn.Module, tta: str) -> nn.Module:
    """The model with a config's `tta`: none, flip, crops or flip_crops."""
    return model if tta == "none" else TestTimeAugmentation(model, flip="flip" in tta, crops="crops" in tta)
