"""The kinds of value an argument can be, so that a signature says its own range.

A component (a loss, a model, ...) annotates its arguments with these; a config file is checked against them before
torch is imported, and `softmaxce list` and the JSON Schema print them.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Bounds:
    """What values of a type are allowed, in the terms of pydantic's Field, which makes the JSON Schema of it.

    Attributes:
        gt, ge, lt, le: limits of a number.
        allow_inf_nan: whether it may be infinite or NaN.
        pattern: a regular expression that the whole text fits.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    allow_inf_nan: bool | None = None
    pattern: str | None = None

    def allow(self, value: Any) -> bool:
        """Whether a number or a text is within them."""
        return (
            (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
            and (self.allow_inf_nan is not False or isfinite(value))
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """pydantic's way to ask what this adds to the type it stands beside."""
        return {**handler(source), **{name: limit for name, limit in asdict(self).items() if limit is not None}}


LARGEST = 2**63 - 1  # a tensor's sizes and strides are signed and of 64 bits
PositiveInt = Annotated[int, Bounds(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Bounds(ge=0, le=LARGEST)]
Seed = Annotated[int, Bounds(ge=0, lt=2**63)]  # what every generator takes
PositiveFloat = Annotated[float, Bounds(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Bounds(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Bounds(ge=0, le=1)]
Fraction = Annotated[float, Bounds(ge=0, lt=1)]
Moments = Annotated[str, Bounds(pattern=r"^0*[1-9][0-9]* steps?$|^(0*[1-9][0-9]*|[0-9]+\.[0-9]*[1-9]0*) minutes?$")]
Reduction = Literal["mean", "sum", "none"]  # of a loss, as in PyTorch
