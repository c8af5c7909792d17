"""Types for the arguments of components (losses, models, ...), with their ranges.

A config is checked against them before torch is imported; `softmaxce list` and the JSON Schema print them.
"""

from math import isfinite
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, Predicate

LARGEST = 2**63 - 1  # sizes and strides of a tensor are int64
PositiveInt = Annotated[int, Gt(0), Le(LARGEST)]
NonNegativeInt = Annotated[int, Ge(0), Le(LARGEST)]
Seed = Annotated[int, Ge(0), Lt(2**63)]  # what torch's, NumPy's and Python's generators accept
PositiveFloat = Annotated[float, Gt(0), Predicate(isfinite)]
NonNegativeFloat = Annotated[float, Ge(0), Predicate(isfinite)]
Probability = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Reduction = Literal["mean", "sum", "none"]  # of a loss, as in PyTorch
