"""Any of torchvision's classification models, as `torchvision:NAME`, from scratch or fine-tuned."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import streams
from ..argument_types import Fraction, PositiveInt
from ..errors import DataError
from ..files import expanded
from .layers import adapt_first_layer, last_layer
from .weights_file import is_file_name, load_file


def torchvision_model(
    architecture: str,
    weights: str | None = None,
    freeze: Literal["none", "backbone"] = "none",
    input_size: PositiveInt | None = None,
    dropout: Fraction | None = None,
    drop_path: Fraction | None = None,
    *,
    in_channels: int,
    num_classes: int,
    pretrained_weights: Literal["download", "local", "none"] = "download",
) -> nn.Module:
    """A model of torchvision's by name, its head made for the data's classes.

    Args:
        architecture: what torchvision.models calls it.
        weights: DEFAULT, or the name of one of its pretrained weights; or a file of weights, safetensors or torch's;
            null starts from scratch.
        freeze: as fine_tuning.freeze, for the whole run.
        input_size: images are resized to this height and width, in pixels, on the device.
        dropout: the probability of its dropout layers; null keeps the architecture's own.
        drop_path: the probability with which the last residual block is left out (stochastic depth); it rises from 0 at
            the first. null keeps the architecture's own.
        in_channels: C; gray images are repeated to three channels; for other numbers see layers.adapt_first_layer.
        num_classes: K.
        pretrained_weights: download them if they are not on this machine; take them from this machine only; or none,
            the same model without them, because a checkpoint's weights follow.
    Returns: images [B, C, H, W] -> logits [B, K].
    Raises:
        ValueError: if there are no such weights, or the architecture drops nothing.
        DataError: if they are not on this machine and cannot be downloaded; if a file cannot be read.
    """
    from torchvision.models import get_model

    weights = None if weights == "none" else weights
    file = expanded(weights) if weights is not None and is_file_name(weights) else None

    if weights is None and freeze == "backbone" and pretrained_weights != "none":
        streams.warning(
            f"torchvision:{architecture}: freeze: backbone without weights trains a head on random features that are "
            "never trained; add weights: DEFAULT, or leave freeze out"
        )
    if weights is None or file is not None:
        options: dict[str, Any] = {}
        if architecture in ("inception_v3", "googlenet"):  # no auxiliary heads, so that forward returns logits alone
            options = {"aux_logits": False, "init_weights": False}
        model = get_model(architecture, num_classes=num_classes, **options)
        head = last_layer(model)[1]
        if file is not None and pretrained_weights != "none":
            load_file(model, file)
    else:
        model = _pretrained(architecture, weights, pretrained_weights)
        if hasattr(model, "aux_logits"):
            model.aux_logits = False  # the auxiliary heads are trained for the old classes
        head = _replace_head(model, num_classes)
    if dropout is not None:
        _set_dropout(model, dropout, architecture)
    if drop_path is not None:
        _set_drop_path(model, drop_path, architecture)
    return Adapted(model, head, freeze == "backbone", in_channels, input_size)


class Adapted(nn.Module):
    """A torchvision or timm model behind what the data needs: its channels, another size, a frozen backbone."""

    def __init__(
        self, model: nn.Module, head: nn.Module, frozen: bool, in_channels: int, input_size: int | None
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            adapt_first_layer(model, in_channels)
        self.model = model
        self.frozen = frozen
        self.input_size = input_size
        self._head = [head]  # in a list, so that it is not registered a second time
        if frozen:
            model.requires_grad_(False)
            head.requires_grad_(True)

    def train(self, mode: bool = True) -> "Adapted":
        """Training mode; a frozen backbone stays in evaluation mode, its statistics untouched."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
            self._head[0].train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.input_size is not None:
            size = (self.input_size, self.input_size)
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        return self.model(images)  # type: ignore[no-any-return]


def _pretrained(architecture: str, weights: str, source: str) -> Any:
    from torchvision.models import get_model, get_model_weights

    choices = get_model_weights(architecture)
    if weights not in choices.__members__:  # DEFAULT is among them
        raise ValueError(f"weights must be one of {', '.join(choices.__members__)}, got '{weights}'")
    entry = choices[weights]
    if source == "none":
        return get_model(architecture, weights=None, **_options(architecture, entry.meta))
    file = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if source == "local" and not file.is_file():
        raise DataError(
            f"the weights {architecture}/{entry.name} are not on this machine, and a config that was read from a run "
            f"downloads nothing; pass your own by --config, or put the file {file.name} into {file.parent}"
        )
    try:
        with _weights_only():
            return get_model(architecture, weights=entry)
    except (URLError, OSError) as error:
        raise DataError(
            f"the weights {architecture}/{entry.name} cannot be downloaded from {entry.url} ({error}); "
            f"put the file {file.name} into {file.parent}, or name a file of its weights: --set model.weights=FILE"
        ) from None
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise DataError(
            f"{file}: holds no weights of {architecture} ({reason}); delete it, and it is downloaded again"
        ) from None


def _options(architecture: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which torchvision itself builds a model for pretrained weights, by their description."""
    options: dict[str, Any] = {"num_classes": len(meta["categories"])}
    if architecture in ("inception_v3", "googlenet"):  # of googlenet's auxiliary heads it drops the weights
        options |= {"transform_input": True, "init_weights": False, "aux_logits": architecture == "inception_v3"}
    if architecture.startswith("vit_"):  # the position embedding has one row per patch
        options["image_size"] = meta["min_size"][0]
    return options


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Have torch.load unpickle tensors and nothing else.

    torchvision's models do not pass weights_only when they load a cached file; torch reads this variable at each load.
    """
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    name, old = last_layer(model)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, num_classes, 1)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
    return new


def _set_dropout(model: nn.Module, probability: float, architecture: str) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ValueError(f"{architecture} has no dropout layers")
    for layer in layers:
        layer.p = probability


def _set_drop_path(model: nn.Module, probability: float, architecture: str) -> None:
    """Scale the blocks' probabilities, which rise linearly with the depth, to end at another one."""
    from torchvision.ops import StochasticDepth

    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    last = max((layer.p for layer in layers), default=0.0)
    if not last:
        raise ValueError(f"{architecture} has no stochastic depth")
    for layer in layers:
        layer.p *= probability / last
