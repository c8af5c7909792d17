"""Train image classifiers from one YAML file, with a softmax + cross-entropy loss you can read.

The names below are importable from here; torch is imported when the first of them that needs it is used.

    from softmaxce import evaluate, fit, build_run, load, load_config, train

    outcome = train("digits", output="runs/mine", resume="auto")  # a recipe's name, a YAML file or a dict
    model = load(outcome.folder)
    print(model.evaluate().accuracy, model.predict(["a.png"])[0].class_name)
"""

from importlib import import_module

# Not typing's: a typing.py in the current folder would be run, which is on the path until __main__ removes it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .api import build_run, evaluate, fit, load, train
    from .config.from_python import load_config
    from .config.keys import Config
    from .data.splits import Dataset, InMemory, OnDisk
    from .errors import SoftmaxceError
    from .inference.trained_model import TrainedModel
    from .laws.check_loss import check_loss
    from .laws.law import LawResult
    from .losses.cross_entropy import SoftmaxCrossEntropy, cross_entropy
    from .losses.linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
    from .losses.reference import log_softmax, one_hot, softmax
    from .session import Outcome, Reporter
    from .training.run import Run

__all__ = [
    "Config",
    "Dataset",
    "InMemory",
    "LawResult",
    "LinearCrossEntropyLoss",
    "OnDisk",
    "Outcome",
    "Reporter",
    "Run",
    "SoftmaxCrossEntropy",
    "SoftmaxceError",
    "TrainedModel",
    "build_run",
    "check_loss",
    "cross_entropy",
    "evaluate",
    "fit",
    "linear_cross_entropy",
    "load",
    "load_config",
    "log_softmax",
    "one_hot",
    "softmax",
    "train",
]

_MODULES = {
    "Config": "config.keys",
    "Dataset": "data.splits",
    "InMemory": "data.splits",
    "LawResult": "laws.law",
    "LinearCrossEntropyLoss": "losses.linear_cross_entropy",
    "OnDisk": "data.splits",
    "Outcome": "session",
    "Reporter": "session",
    "Run": "training.run",
    "SoftmaxCrossEntropy": "losses.cross_entropy",
    "SoftmaxceError": "errors",
    "TrainedModel": "inference.trained_model",
    "build_run": "api",
    "check_loss": "laws.check_loss",
    "cross_entropy": "losses.cross_entropy",
    "evaluate": "api",
    "fit": "api",
    "linear_cross_entropy": "losses.linear_cross_entropy",
    "load": "api",
    "load_config": "config.from_python",
    "log_softmax": "losses.reference",
    "one_hot": "losses.reference",
    "softmax": "losses.reference",
    "train": "api",
}


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
