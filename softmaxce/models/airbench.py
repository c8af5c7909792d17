"""The small convolutional network of the airbench speed records."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..argument_types import PositiveFloat, PositiveInt
from .max_pool import MaxPool2x2

PATCH = 2  # the whitening layer's kernel, in pixels
RIDGE = 5e-4  # added to a principal component's variance, so that components of tiny variance are not amplified


class Airbench(nn.Module):
    """Whitened 2x2 patches, then three groups of two 3x3 convolutions (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds").

    Args:
        widths: channels of the groups; each halves the image. The paper's 94% network has 64, 256, 256.
        train_whitening: train the first layer's filters too; else they stay what `prepare` makes them.
        whitening_bias: give the first layer a bias, which is trained. If neither is trained, the backward pass ends
            before the largest images: a tenth of a step is saved.
        scale: what the logits are multiplied by; 1/9 in the paper.
        in_channels: C.
        image_size: (H, W) in pixels, each at least 2 ** groups + 1.
        num_classes: K.
    Raises: ValueError if the images are smaller.

    Images [B, C, H, W] -> logits [B, K]. GELU (Hendrycks & Gimpel 2016); batch normalization learns a bias and no
    scale; as many filters as a convolution has inputs start as the identity.
    """

    def __init__(
        self,
        widths: list[PositiveInt] | tuple[PositiveInt, ...] = (64, 256, 256),
        train_whitening: bool = False,
        whitening_bias: bool = True,
        scale: PositiveFloat = 0.1111,
        *,
        in_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        smallest = 2 ** len(widths) + PATCH - 1
        if min(image_size) < smallest:
            raise ValueError(
                f"{len(widths)} groups need images of at least {smallest}x{smallest}, "
                f"got {image_size[0]}x{image_size[1]}"
            )
        self.scale = scale
        self.whitening = nn.Conv2d(in_channels, 2 * in_channels * PATCH**2, PATCH, bias=whitening_bias)
        self.whitening.weight.requires_grad_(train_whitening)
        groups: list[nn.Module] = [nn.GELU()]
        inputs = self.whitening.out_channels
        for outputs in widths:
            groups += [_conv(inputs, outputs), MaxPool2x2(), _norm(outputs), nn.GELU()]
            groups += [_conv(outputs, outputs), _norm(outputs), nn.GELU()]
            inputs = outputs
        self.groups = nn.Sequential(*groups, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, num_classes, bias=False)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the first layer's filters from training images [N, C, H, W], normalized, before training starts.

        They are the principal components of the 2x2 patches, each divided by its standard deviation, and their
        negatives: the layer's outputs are uncorrelated and of variance 1 (but for the ridge).
        """
        values = self.whitening.in_channels * PATCH**2
        moments = torch.zeros(values, values, dtype=torch.float64)
        count = 0
        for chunk in images.split(500):
            patches = functional.unfold(chunk, PATCH).transpose(0, 1).flatten(1)  # [C * 2 * 2, patches]
            moments += (patches @ patches.T).cpu().double()
            count += patches.shape[1]
        variances, components = torch.linalg.eigh(moments / count)  # [V] and [V, V], a component a column
        filters = (components / (variances + RIDGE).sqrt()).T.reshape(-1, *self.whitening.weight.shape[1:])
        self.whitening.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        return self.head(self.groups(self.whitening(images))) * self.scale  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)  # torch's momentum is the weight of the new batch
    norm.weight.requires_grad_(False)
    return norm
