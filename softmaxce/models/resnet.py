"""Residual networks for small images."""

from typing import Any

import torch
from torch import Tensor, nn

from ..argument_types import Fraction, PositiveInt
from .max_pool import MaxPool2x2


def resnet18(*, in_channels: int, num_classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2016) with the small-image stem: 3x3, stride 1, no max-pooling."""
    return _small_stem("resnet18", in_channels, num_classes)


def resnet34(*, in_channels: int, num_classes: int) -> nn.Module:
    """ResNet-34 (He et al. 2016) with the small-image stem: 3x3, stride 1, no max-pooling."""
    return _small_stem("resnet34", in_channels, num_classes)


def resnet50(*, in_channels: int, num_classes: int) -> nn.Module:
    """ResNet-50 (He et al. 2016) with the small-image stem: 3x3, stride 1, no max-pooling."""
    return _small_stem("resnet50", in_channels, num_classes)


def _small_stem(architecture: str, in_channels: int, num_classes: int) -> nn.Module:
    import torchvision

    model: Any = torchvision.models.get_model(architecture, num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model  # type: ignore[no-any-return]


def resnet9(width: PositiveInt = 64, *, in_channels: int, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """ResNet-9, the small residual network of David Page's 2018 DAWNBench entries.

    Args:
        width: channels of the first layer; the later ones have 2, 4 and 8 times as many.
        in_channels: C.
        image_size: (H, W) in pixels, each at least 8.
        num_classes: K.
    Returns: images [B, C, H, W] -> logits [B, K], scaled by 1/8 as there.
    Raises: ValueError if the images are smaller.
    """
    if min(image_size) < 8:
        raise ValueError(f"images must be at least 8x8, got {image_size[0]}x{image_size[1]}")

    def conv(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
        activation = MaxPool2x2(relu=True) if pool else nn.ReLU()
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation)

    return nn.Sequential(
        conv(in_channels, width),
        conv(width, 2 * width, pool=True),
        Residual(nn.Sequential(conv(2 * width, 2 * width), conv(2 * width, 2 * width))),
        conv(2 * width, 4 * width, pool=True),
        conv(4 * width, 8 * width, pool=True),
        Residual(nn.Sequential(conv(8 * width, 8 * width), conv(8 * width, 8 * width))),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes, bias=False),
        Scaled(1 / 8),
    )


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, images: Tensor) -> Tensor:
        return images + self.branch(images)  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


def wide_resnet(
    depth: PositiveInt = 28,
    width: PositiveInt = 10,
    dropout: Fraction = 0.0,
    *,
    in_channels: int,
    num_classes: int,
) -> nn.Module:
    """Wide ResNet (Zagoruyko & Komodakis 2016): pre-activation blocks; WRN-28-10 has 36.5 million parameters.

    Args:
        depth: 6 n + 4 layers.
        width: how many times wider than a plain ResNet.
        dropout: the fraction dropped between a block's two convolutions in training.
        in_channels: C.
        num_classes: K.
    Returns: images [B, C, H, W] -> logits [B, K].
    Raises: ValueError if depth is no 6 n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, 40, ...), got {depth}")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
    inputs = 16
    for stage, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range(blocks):
            layers.append(WideBlock(inputs, outputs, 2 if stage and not block else 1, dropout))
            inputs = outputs
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class WideBlock(nn.Module):
    """Pre-activation block; where the shape changes, the shortcut is a 1x1 convolution of the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        activated = self.activate(images)
        shortcut = images if self.shortcut is None else self.shortcut(activated)
        return torch.add(shortcut, self.branch(activated))
