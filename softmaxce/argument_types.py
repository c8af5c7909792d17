"""Types for the arguments of components (losses, models, ...), with their ranges.

A config is checked against them before torch is imported; `softmaxce list` and the JSON Schema print them.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Len, Lt, Predicate, doc

LARGEST = 2**63 - 1  # sizes and strides of a tensor are int64
PositiveInt = Annotated[int, Gt(0), Le(LARGEST)]
NonNegativeInt = Annotated[int, Ge(0), Le(LARGEST)]
Int64 = Annotated[int, Ge(-(2**63)), Lt(2**63), doc("a 64-bit integer")]
Seed = Annotated[int, Ge(0), Lt(2**63)]  # what torch's, NumPy's and Python's generators accept
PositiveFloat = Annotated[float, Gt(0), Predicate(isfinite)]
NonNegativeFloat = Annotated[float, Ge(0), Predicate(isfinite)]
NegativeFloat = Annotated[float, Lt(0), Predicate(isfinite)]
AtLeastMinusOne = Annotated[float, Ge(-1), Predicate(isfinite)]
Probability = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]
HalfTurn = Annotated[float, Ge(0), Le(0.5)]  # of the color circle
Magnitude = Annotated[float, Ge(0), Le(30)]  # of RandAugment's operations
AugMixSeverity = Annotated[int, Ge(1), Le(10)]
AtLeastOne = Annotated[float, Ge(1), Predicate(isfinite)]
Betas = Annotated[Sequence[Fraction], Len(2, 2), doc("two numbers in [0, 1)")]  # of Adam's two averages
TwoFractions = Annotated[Sequence[Probability], Len(2, 2), doc("two numbers in [0, 1]")]
TwoFactors = Annotated[Sequence[PositiveFloat], Len(2, 2), doc("two positive numbers")]
TEMPERATURES = (1e-6, 1e6)  # beyond, logits divided by it may overflow or become one number
Fit = Literal["crop", "pad", "stretch"]  # of images into a size of other proportions
Interpolation = Literal["bilinear", "bicubic", "nearest"]
AttributionMethod = Literal["grad_cam", "input_gradient", "smooth_grad", "occlusion"]  # of a logit or a loss
ClassWeighting = Literal["balanced", "inverse_root", "effective_number"]
Decoding = Literal["full", "reduced"]
Depth = Literal["uint8", "uint16", "float32"]  # of pixels
ColorProfiles = Literal["ignore", "srgb"]
Classes = Annotated[  # names in the order of their ids; or new name -> a name, or a list of names, which are merged
    list[str] | dict[str, Any],
    doc("a list of class names, or a mapping such as {pet: [dog, cat], car: car}"),
]
Reduction = Literal["mean", "sum", "none"]  # of a loss, as in PyTorch
Metric = Literal[  # of a classifier on a split
    "accuracy",
    "loss",
    "top5_accuracy",
    "nll",
    "brier",
    "ece",
    "macro_f1",
    "balanced_accuracy",
    "worst_class_recall",
    "macro_roc_auc",
    "macro_average_precision",
]
METRICS: tuple[str, ...] = get_args(Metric)
LOWER_IS_BETTER = ("loss", "nll", "brier", "ece")
