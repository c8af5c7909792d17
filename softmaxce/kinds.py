"""The kinds of value an argument can be, so that a signature says its own range.

A component (a loss, a model, ...) annotates its arguments with these; a config file is checked against them before
torch is imported, and `softmaxce list` and the JSON Schema print them.
"""

from typing import Annotated, Literal

from pydantic import Field

LARGEST = 2**63 - 1  # a tensor's sizes and strides are signed and of 64 bits
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every generator takes
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Moments = Annotated[str, Field(pattern=r"^0*[1-9][0-9]* steps?$|^(0*[1-9][0-9]*|[0-9]+\.[0-9]*[1-9]0*) minutes?$")]
Reduction = Literal["mean", "sum", "none"]  # of a loss, as in PyTorch
