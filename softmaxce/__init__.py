"""Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read.

The loss's names are importable from here; torch is imported when the first of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses.cross_entropy import SoftmaxCrossEntropy, cross_entropy, log_softmax, one_hot, softmax

__all__ = ["SoftmaxCrossEntropy", "cross_entropy", "log_softmax", "one_hot", "softmax"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .losses import cross_entropy as module

    globals().update({public: getattr(module, public) for public in __all__})
    return globals()[name]
