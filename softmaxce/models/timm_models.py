"""Any of timm's models, as `timm:NAME`, from scratch or with weights from a file. timm is the extra `timm`."""

from typing import Any, Literal

from torch import nn

from ..argument_types import Fraction, PositiveInt
from ..errors import DataError, in_one_line, ran_out_of_memory
from ..files import expanded
from .layers import last_layer
from .torchvision_models import Adapted
from .weights_file import is_file_name, load_file


def timm_model(
    architecture: str,
    weights: str | None = None,
    input_size: PositiveInt | None = None,
    dropout: Fraction | None = None,
    drop_path: Fraction | None = None,
    *,
    in_channels: int,
    num_classes: int,
    pretrained_weights: Literal["download", "local", "none"] = "download",
) -> nn.Module:
    """A model of timm's by name, its last layer made for the data's classes.

    Args:
        architecture: its name in timm, with or without the tag of pretrained weights: resnet50, resnet50.a1_in1k.
        weights: a file of weights, safetensors or torch's; DEFAULT downloads timm's own; null starts from scratch.
        input_size: images are resized to this height and width, in pixels, on the device.
        dropout: timm's drop_rate, before the last layer; null keeps the architecture's own.
        drop_path: timm's drop_path_rate, of stochastic depth; null keeps the architecture's own.
        in_channels: C; gray images are repeated to three channels; for other numbers see layers.adapt_first_layer.
        num_classes: K.
        pretrained_weights: download, where `weights` is DEFAULT; local, which takes a file and downloads nothing; or
            none, for a model whose weights are then loaded from a checkpoint.
    Returns: images [B, C, H, W] -> logits [B, K].
    Raises:
        ValueError: if `weights` is neither a file nor DEFAULT.
        DataError: if the weights cannot be read or downloaded, or are of another model.
    """
    import timm

    weights = None if weights == "none" or pretrained_weights == "none" else weights
    if weights is not None and weights != "DEFAULT" and not is_file_name(weights):
        raise ValueError(f"weights must be a file, such as weights.safetensors, or DEFAULT, got '{weights}'")
    download = weights == "DEFAULT"
    if download and pretrained_weights == "local":
        raise DataError(
            f"timm:{architecture}: a config that was read from a run downloads nothing; pass your own by --config"
        )
    options: dict[str, Any] = {"drop_rate": dropout, "drop_path_rate": drop_path}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        model = timm.create_model(architecture, pretrained=download, num_classes=num_classes, **options)
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"timm's {architecture} does not take {' and '.join(options)}: {in_one_line(error)}") from None
    except Exception as error:  # the network's errors, through several libraries
        if not download or ran_out_of_memory(error):
            raise
        raise DataError(
            f"timm:{architecture}: its weights cannot be downloaded ({in_one_line(error)}); "
            "name a file of them: --set model.weights=FILE"
        ) from None
    if weights is not None and not download:
        load_file(model, expanded(weights))
    last = last_layer(model)[1]
    published: Any = model.pretrained_cfg
    if download and published["num_classes"] != num_classes:  # the last layer is new; timm's is large
        last.reset_parameters()  # type: ignore[operator]
    return Adapted(model, last, False, in_channels, input_size)
