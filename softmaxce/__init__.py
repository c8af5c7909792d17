"""Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read.

The loss's names are importable from here; torch is imported when the first of them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses.cross_entropy import SoftmaxCrossEntropy, cross_entropy, log_softmax, one_hot, softmax
    from .losses.linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy

__all__ = [
    "LinearCrossEntropyLoss",
    "SoftmaxCrossEntropy",
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "one_hot",
    "softmax",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = "linear_cross_entropy" if "inear" in name else "cross_entropy"
    globals()[name] = getattr(import_module(f".losses.{file}", __name__), name)
    return globals()[name]
