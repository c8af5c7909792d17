"""What registered components refuse and their signatures do not say. A config is checked against it without torch.

The ranges of softmaxce's own arguments are the types in their signatures. torch's optimizers declare `float` and check
the range when they are built; and some arguments of theirs and of ours do not go together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..argument_types import Betas, NonNegativeFloat, Probability

# The arguments of torch's optimizers, by name, with the range that their constructors check.
TORCH_OPTIMIZERS: dict[str, Any] = {
    "lr": NonNegativeFloat,
    "betas": Betas,
    "eps": NonNegativeFloat,
    "weight_decay": NonNegativeFloat,
    "momentum": NonNegativeFloat,
    "momentum_decay": NonNegativeFloat,
    "lr_decay": NonNegativeFloat,
    "initial_accumulator_value": NonNegativeFloat,
    "alpha": NonNegativeFloat,
    "rho": Probability,
    "differentiable": Literal[False],  # is for differentiating through a step; it fails on a model's parameters
}


@dataclass(frozen=True)
class Rule:
    """Arguments that do not go together.

    Attributes:
        names: of the arguments.
        allows: whether their values, in the order of the names, are allowed.
        message: the rule.
    """

    names: tuple[str, ...]
    allows: Callable[..., bool]
    message: str


FUSED = Rule(
    ("fused", "foreach"), lambda fused, foreach: not (fused and foreach), "fused and foreach exclude each other"
)


def is_range(values: Sequence[float]) -> bool:
    """Whether these are the smallest and the largest of positive numbers."""
    return 0 < values[0] <= values[1]


SRGB = Rule(
    ("icc", "depth", "channels"),
    lambda icc, depth, channels: icc == "ignore" or (depth == "uint8" and channels in (1, 3, 4)),
    "icc: srgb converts photographs of 8 bits, of 1, 3 or 4 channels; got depth: {depth}, channels: {channels}",
)

RULES: dict[str, tuple[Rule, ...]] = {
    "softmaxce.data.folder:image_folder": (SRGB,),
    "softmaxce.data.image_list:image_list": (SRGB,),
    "softmaxce.data.shards:shards": (SRGB,),
    "torch.optim.sgd:SGD": (
        Rule(
            ("nesterov", "momentum", "dampening"),
            lambda nesterov, momentum, dampening: not nesterov or (momentum > 0 and dampening == 0),
            "nesterov needs a momentum above 0 and no dampening",
        ),
    ),
    "softmaxce.models.resnet:wide_resnet": (
        Rule(
            ("depth",),
            lambda depth: depth >= 10 and depth % 6 == 4,
            "depth must be 6 n + 4 (10, 16, 22, 28, 40, ...), got {depth}",
        ),
    ),
    "softmaxce.data.augment:RandomHorizontalFlip": (
        Rule(
            ("alternate", "p"),
            lambda alternate, p: not alternate or p == 0.5,
            "alternate mirrors each image in every second epoch: p must be 0.5, got {p}",
        ),
    ),
    "softmaxce.data.augment:RandomAffine": (
        Rule(("scale",), lambda scale: scale[0] <= scale[1], "scale must be [smallest, largest], got {scale}"),
    ),
    "softmaxce.data.keyed_augment:RandomResizedCrop": (
        Rule(("scale",), is_range, "scale must be [smallest, largest], above 0, got {scale}"),
        Rule(("ratio",), is_range, "ratio must be [smallest, largest], got {ratio}"),
    ),
    "softmaxce.data.keyed_augment:RandomErasing": (
        Rule(("scale",), is_range, "scale must be [smallest, largest], above 0, got {scale}"),
        Rule(("ratio",), is_range, "ratio must be [smallest, largest], got {ratio}"),
    ),
}


def broken(target: str, arguments: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The rules that a component's arguments break: the names of the arguments, and the message.

    Args:
        target: the component, module:Name.
        arguments: all of them, of the types that the signature declares.
    """
    for rule in (*RULES.get(target, ()), *((FUSED,) if target.startswith("torch.optim.") else ())):
        values = {name: arguments[name] for name in rule.names if name in arguments}
        if len(values) == len(rule.names) and not rule.allows(*values.values()):
            yield rule.names, rule.message.format(**values)
