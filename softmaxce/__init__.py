"""Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read.

The names below are importable from here; torch is imported when the first of them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses.cross_entropy import SoftmaxCrossEntropy, cross_entropy
    from .losses.linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
    from .losses.reference import log_softmax, one_hot, softmax

__all__ = [
    "LinearCrossEntropyLoss",
    "SoftmaxCrossEntropy",
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "one_hot",
    "softmax",
]

_MODULES = {
    "LinearCrossEntropyLoss": "linear_cross_entropy",
    "SoftmaxCrossEntropy": "cross_entropy",
    "cross_entropy": "cross_entropy",
    "linear_cross_entropy": "linear_cross_entropy",
    "log_softmax": "reference",
    "one_hot": "reference",
    "softmax": "reference",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f".losses.{_MODULES[name]}", __name__), name)
    return globals()[name]
