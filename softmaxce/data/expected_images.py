"""The images that a config's network was pretrained on: what `size: auto` and `normalize: model` stand for."""

from dataclasses import replace
from typing import get_args

from ..argument_types import Interpolation
from ..config.automatic import NO_SIZE, has_automatic_size
from ..config.components import Component
from ..config.keys import Config
from ..errors import ConfigError, Problem
from ..models.pretrained_images import PretrainedImages, of_timm, of_torchvision
from ..models.weights_file import is_file_name
from .resizing import DEFAULT

Statistics = tuple[float, ...]


def expected_images(model: Component) -> PretrainedImages | None:
    """The images of a model's pretraining; None of a model that is neither timm's nor torchvision's, or unknown."""
    family, _, architecture = model.name.partition(":")
    if family == "timm":
        return of_timm(architecture)
    return of_torchvision(architecture, model.arguments.get("weights")) if family == "torchvision" else None


def expected_normalization(config: Config) -> tuple[Statistics, Statistics] | None:
    """Mean and standard deviation of the images that a model of timm's or torchvision's was made for.

    With `normalize: auto`, as in earlier versions, only where its weights are timm's or from a file.
    Returns: None where those of the training images are used.
    Raises: ConfigError if `normalize: model` and the model does not say.
    """
    weights, is_timm = config.model.arguments.get("weights"), config.model.name.startswith("timm:")
    required = config.data.normalize == "model"
    automatic = isinstance(weights, str) and weights != "none" and (is_timm or is_file_name(weights))
    expected = expected_images(config.model) if required or automatic else None
    if required and expected is None:
        message = f"model is for networks of timm and torchvision that say it; with {config.model.name} use auto"
        raise ConfigError([Problem("data.normalize", message)])
    return None if expected is None else (expected.mean, expected.std)


def with_expected_size(config: Config) -> Config:
    """The config with the size that `data.size: auto` stands for, and the interpolation, where it names none.

    Raises: ConfigError if the model does not say.
    """
    if not has_automatic_size(config.source):
        return config
    expected = expected_images(config.model)
    if expected is None:
        location = config.options.get("data.size", "data.size")
        raise ConfigError([Problem(location, NO_SIZE.format(config.model.name))])
    height, width = expected.size
    size = height if height == width else [height, width]
    resolved = f"{size}, the size that {config.model.name} was pretrained with"
    arguments = config.source.arguments
    if "interpolation" not in arguments:
        known = expected.interpolation in get_args(Interpolation)
        arguments = {**arguments, "interpolation": expected.interpolation if known else DEFAULT.interpolation}
        resolved += f", and {arguments['interpolation']} interpolation"
    return replace(
        config,
        source=replace(config.source, arguments={**arguments, "size": size}),
        resolved={**config.resolved, "data.size": resolved},
    )
