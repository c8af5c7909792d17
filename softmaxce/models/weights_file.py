"""Weights from a file for a model of torchvision or timm: safetensors, or torch's format without any code."""

import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import streams
from ..errors import DataError, ran_out_of_memory
from ..files import open_file
from .layers import last_layer

SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin", ".ckpt")
NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")  # of training scripts' checkpoints
ENOUGH = 0.9  # of the backbone's tensors
COUNTER = "num_batches_tracked"  # of batch normalization, which old files lack
# What torch.load raises for files that are none of its own.
DAMAGED = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OSError),
    *(AssertionError, struct.error),
)


def is_file_name(weights: str) -> bool:
    """Whether `weights` names a file, and not one of torchvision's pretrained weights."""
    return weights.endswith(SUFFIXES) or "/" in weights or "\\" in weights


def load_file(model: nn.Module, file: Path) -> None:
    """Load a file's weights into a model, all but those of a last layer of another shape, and print a line on that.

    Names fit as they are, without leading parts such as `module.` or `model.`, or, where no name fits, in their order:
    as many tensors, with the same shapes and the same last parts.
    Raises: DataError if the file cannot be read or its weights are of another model.
    """
    loaded = _read(file)
    own = model.state_dict()
    head_name, last = last_layer(model)
    head = [name for name in own if name.startswith(f"{head_name}.")]
    matched, how = _matched(own, loaded, set(head))
    fitting = {name: tensor for name, tensor in matched.items() if tensor.shape == own[name].shape}
    needed = [name for name in own if name not in head and not name.endswith(COUNTER)]
    lacking = [name for name in needed if name not in fitting]
    if len(needed) - len(lacking) < ENOUGH * len(needed):
        other = next((name for name in lacking if name in matched), None)
        detail = f"'{lacking[0]}' is not in it, which has '{next(iter(loaded))}'"
        if other is not None:
            detail = f"'{other}' is {list(matched[other].shape)}, and {list(own[other].shape)} in the model"
        count = f"{len(needed) - len(lacking)} of {len(needed)} tensors fit"
        raise DataError(f"{file}: its weights are of another model: {count}, for example {detail}")
    model.load_state_dict(own | fitting)
    new = [name for name in head if name not in fitting]
    if new:  # an architecture's own initialization is for training from scratch; timm's gives logits of 10 and more
        last.reset_parameters()  # type: ignore[operator]
    parts = [f"{len(fitting)} of {len(own)} tensors are loaded{how}"]
    parts += [f"new is the last layer, {head_name}"] * bool(new)
    parts += [f"not in the file: {_listed(lacking)}"] * bool(lacking)
    unused = len(loaded) - len(fitting) - sum(name in matched for name in new)
    parts += [f"{unused} tensors of the file are not used"] * bool(unused)
    streams.line(f"weights {file}: {'; '.join(parts)}", err=True)


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises: DataError."""
    content: Any
    try:
        open_file(file).close()  # refuses a pipe, which would be waited for
        if file.suffix == ".safetensors":
            content = safetensors.torch.load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's on old pickles
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file of weights (in {Path.cwd()})") from None
    except UnpicklingError:
        raise DataError(
            f"{file}: holds other things than tensors, or no weights; loading it could run code. "
            "Save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except (*DAMAGED, SafetensorError) as error:
        if ran_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise DataError(f"{file}: cannot be read as weights: {reason}") from None
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise DataError(f"{file}: holds no weights; it must be a state dict, tensors by their names")
    return tensors


def _matched(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], head: set[str]) -> tuple[dict[str, Tensor], str]:
    """The file's tensors under the model's names, and how the names were changed."""
    best, how = {name: tensor for name, tensor in loaded.items() if name in own}, ""
    first = next(iter(loaded)).split(".")
    for length in range(1, len(first)):
        prefix = ".".join(first[:length]) + "."
        renamed = {name.removeprefix(prefix): tensor for name, tensor in loaded.items() if name.startswith(prefix)}
        fitting = {name: tensor for name, tensor in renamed.items() if name in own}
        if len(fitting) > len(best):
            best, how = fitting, f", without the prefix '{prefix}'"
    if set(best) - head:
        return best, how
    names = [name for name in own if not name.endswith(COUNTER)]
    others = [name for name in loaded if not name.endswith(COUNTER)]
    pairs = list(zip(names, others, strict=False))
    same = all(
        (own[a].shape == loaded[b].shape or a in head) and a.rpartition(".")[2] == b.rpartition(".")[2]
        for a, b in pairs
    )
    if len(names) == len(others) and same:
        return {a: loaded[b] for a, b in pairs}, f" in their order, as '{others[0]}' for '{names[0]}'"
    return best, how


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
