"""An augmentation as batches call it: its result is checked, and its errors name it."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..config.components import build
from ..config.keys import Config
from ..config.registry import REGISTRIES
from ..errors import ConfigError, Problem, in_one_line, ran_out_of_memory

LOWEST, HIGHEST = -0.5, 1.5  # values beyond these are no pixels in [0, 1] any more, but normalized, or bytes


@dataclass(frozen=True)
class Augmentation:
    """A callable from a config, and how messages name it.

    Attributes:
        function: images [B, C, H, W] float in [0, 1] -> the same shape; see augment.py. Or an object with a method
            from_whole, which makes an image of that shape from a whole one; see keyed_augment.py.
        name: as the config writes it.
        location: where the config names it.
    """

    function: Any
    name: str
    location: str = ""

    def __post_init__(self) -> None:
        if inspect.isclass(self.function):
            raise self.error(f"is a class; pass an object of it, {self.function.__name__}(...)")
        if not callable(self.function) and not self.takes_whole:
            raise self.error(f"must be callable with images [B, C, H, W], got {type(self.function).__name__}")

    @property
    def uses_indices(self) -> bool:
        """Whether the function has parameters `indices` and `epoch`, beside the images."""
        return {"indices", "epoch"} <= self._parameters

    @property
    def uses_share(self) -> bool:
        """Whether the function has a parameter `share`: it draws random numbers for the whole batch."""
        return "share" in self._parameters

    @property
    def uses_keys(self) -> bool:
        """Whether the function has a parameter `keys`: a seed for each image's random numbers."""
        return "keys" in self._parameters

    @property
    def takes_whole(self) -> bool:
        """Whether it cuts the view of an image from the whole image; see keyed_augment.py."""
        return callable(getattr(self.function, "from_whole", None))

    @property
    def moves_pixels(self) -> bool:
        """Whether it gives pixels other places, or 0, and so can be called with images of bytes too.

        The class that has the `__call__` must say so itself: a subclass with another one may compute with floats.
        """
        owner = next((each for each in type(self.function).__mro__ if "__call__" in vars(each)), None)
        return owner is not None and "moves_pixels" in vars(owner) and self.function.moves_pixels is True

    @cached_property
    def _parameters(self) -> set[str]:
        function = self.function.forward if isinstance(self.function, nn.Module) else self.function
        try:
            return set(inspect.signature(function).parameters)
        except (TypeError, ValueError):  # a function written in C has no signature; it is called with images alone
            return set()

    def check(self, images: Tensor, result: Any) -> Tensor:
        """What the function returned for `images`. Raises: ConfigError if it is no batch of the same shape and type."""
        if isinstance(result, Tensor) and result.shape == images.shape and result.dtype == images.dtype:
            return result
        expected = f"{_kind(images.dtype)} images of the shape that it is given, {list(images.shape)}"
        if result is None:
            got = "nothing; is a return missing?"
        elif isinstance(result, Tensor):
            got = f"{_kind(result.dtype)} {list(result.shape)}"
        else:
            got = f"{type(result).__module__}.{type(result).__qualname__}, which is not a torch.Tensor"
        raise self.error(f"must return {expected}; it returned {got}")

    def try_on(self, images: Tensor) -> tuple[Tensor, str]:
        """Call it once before training, so that an unsuitable one is reported then.

        Args:
            images: [B, C, H, W] float, the first of the training split, by the augmentations before this one.
        Returns: the result, and a warning about its values; empty if there is none.
        Raises: ConfigError if it raises anything, or its result has another shape or type or is not finite.
        """
        device = images.device
        arguments: dict[str, Any] = {}
        if self.uses_indices:
            arguments = {"indices": torch.arange(len(images), device=device), "epoch": 1}
        if self.uses_keys:
            arguments["keys"] = list(range(len(images)))
        try:
            returned = self.function(images.clone(), **arguments)
        except Exception as error:  # the user's augmentation may raise anything
            if ran_out_of_memory(error):
                raise
            raise self.error(f"cannot take images {list(images.shape)}: {in_one_line(error)}") from error
        result = self.check(images, returned)
        if not torch.isfinite(result).all():
            raise self.error("returns values that are not finite, NaN or infinity, for images that are")
        low, high = result.min().item(), result.max().item()
        if (low < LOWEST and low < images.min()) or (high > HIGHEST and high > images.max()):
            return result, (
                f"{self._where}{self.name} turns pixels in [0, 1] into values from {low:.3g} to {high:.3g}; they are "
                "normalized after it"
            )
        return result, ""

    @property
    def _where(self) -> str:
        return f"{self.location}: " if self.location else ""

    def error(self, message: str) -> ConfigError:
        """A ConfigError at the augmentation's location."""
        return ConfigError([Problem(self.location, f"the augmentation {self.name} {message}")])


def build_augmentations(config: Config) -> list[Augmentation]:
    """The augmentations a config names, in order: objects that are called, or plain functions of images."""
    called_with = REGISTRIES["augment"].called_with
    return [Augmentation(build(each, {}, called_with), each.name, each.location) for each in config.augment]


def named(function: Any) -> Augmentation:
    """A callable that no config names, by its type's name."""
    return function if isinstance(function, Augmentation) else Augmentation(function, type(function).__name__)


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
