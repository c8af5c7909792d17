"""The images that a network of timm's or torchvision's was pretrained on, as these libraries describe them."""

import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainedImages:
    """What a network expects of its images.

    Attributes:
        size: (H, W) in pixels.
        interpolation: by which they were resized: bilinear or bicubic, or another name that Pillow knows.
        mean, std: of each channel, of pixels in [0, 1].
    """

    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def of_timm(architecture: str) -> PretrainedImages | None:
    """As timm's pretrained_cfg says; None if it describes no weights of this name.

    Args:
        architecture: its name in timm, with or without the tag of pretrained weights.
    """
    from timm.models import get_pretrained_cfg

    with contextlib.suppress(RuntimeError, ValueError):  # a tag that does not exist; building the model reports it
        if (described := get_pretrained_cfg(architecture)) is not None:
            _, height, width = described.input_size
            return PretrainedImages(
                (height, width), described.interpolation, tuple(described.mean), tuple(described.std)
            )
    return None


def of_torchvision(architecture: str, weights: str | None) -> PretrainedImages:
    """As the transforms of torchvision's weights say.

    Args:
        architecture: what torchvision.models calls it.
        weights: the name of one of its pretrained weights; anything else stands for DEFAULT.
    """
    from torchvision.models import get_model_weights

    choices = get_model_weights(architecture)
    preset = choices[weights if weights in choices.__members__ else "DEFAULT"].transforms()
    (side,) = preset.crop_size
    return PretrainedImages((side, side), preset.interpolation.value, tuple(preset.mean), tuple(preset.std))
