"""Requirements on metrics, `accuracy>=0.99`: parsed before any work is done, checked after it. Needs no torch."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..argument_types import METRICS
from ..errors import ConfigError, Problem, suggestion

CLASS_METRICS = ("precision", "recall", "f1")
NOT_FRACTIONS = ("loss", "nll", "brier")  # the others, as those of a class, lie in [0, 1]
LARGEST_FRACTION = 1.5  # a larger limit was meant in percent; a smaller one above 1 was not: 1.01 is no 1.01%
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Requirement:
    """A metric's name, a comparison and a limit."""

    metric: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.limit:g}"


@dataclass(frozen=True)
class RequirementResult:
    """A requirement and the measured value. NaN meets no requirement."""

    requirement: Requirement
    value: float

    @property
    def met(self) -> bool:
        """Whether the value meets the requirement."""
        return COMPARISONS[self.requirement.comparison](self.value, self.requirement.limit)

    def __str__(self) -> str:
        return f"require {self.requirement}: {'met' if self.met else 'NOT met'}, it is {self.value:.6g}"

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"requirement": str(self.requirement), "value": self.value, "met": self.met}


def parse(texts: Sequence[str]) -> list[Requirement]:
    """`metric>=number` texts, or several between commas, as Requirements. Raises: ConfigError with every mistake."""
    requirements, problems = [], []
    for text in [part for given in texts for part in re.split(r"(?<=[\d%])\s*,\s*(?=[^,]*[<>])", given)]:
        option = f"--require {text}"
        match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*(%?)\s*", text)
        try:
            limit = float(match[3]) if match else 0.0
        except ValueError:  # reported below
            match = None
        if match is None:
            problems.append(Problem(option, "write it as metric>=number, for example accuracy>=0.99 (also <=, >, <)"))
            continue
        metric = match[1]
        stem, dot, _ = metric.partition(".")
        if metric not in METRICS and not (dot and stem in CLASS_METRICS):
            known = [*METRICS, *(f"{name}.CLASS" for name in CLASS_METRICS)]
            hint = suggestion(metric, METRICS) or f"; the metrics are {', '.join(known)}"
            problems.append(Problem(option, f"there is no metric '{metric}'{hint}"))
        elif match[4] or (limit > 1 and metric not in NOT_FRACTIONS):
            problems.append(Problem(option, _not_a_fraction(metric, match[2], limit, percent=bool(match[4]))))
        else:
            requirements.append(Requirement(metric, match[2], limit))
    if problems:
        raise ConfigError(problems)
    return requirements


def _not_a_fraction(metric: str, comparison: str, limit: float, *, percent: bool) -> str:
    """What is wrong with a limit in percent, or above 1 where the metric is a fraction, and what to write."""
    range_ = "is a number, not a percentage" if metric in NOT_FRACTIONS else "lies in [0, 1]"
    meant_in_percent = 0 <= limit <= 100 and (percent or limit > LARGEST_FRACTION)
    return f"{metric} {range_}" + (f"; write {metric}{comparison}{limit / 100:g}" if meant_in_percent else "")


def check_classes(requirements: Sequence[Requirement], classes: Sequence[str], *, has_loss: bool = True) -> None:
    """Check that the classes in requirements exist, and that top5_accuracy and loss do. Raises: ConfigError."""
    problems = []
    for requirement in requirements:
        option = f"--require {requirement}"
        _, dot, name = requirement.metric.partition(".")
        if dot and name not in classes:
            hint = suggestion(name, classes) or f"; the classes are {', '.join(classes[:10])}"
            problems.append(Problem(option, f"there is no class '{name}'{hint}"))
        if requirement.metric == "top5_accuracy" and len(classes) <= 5:
            problems.append(Problem(option, f"with {len(classes)} classes there is no top-5 accuracy"))
        if requirement.metric == "loss" and not has_loss:
            problems.append(Problem(option, "an exported model gives probabilities, not the training loss; use nll"))
    if problems:
        raise ConfigError(problems)


def judge(requirements: Sequence[Requirement], metrics: Mapping[str, float]) -> list[RequirementResult]:
    """Each requirement with the value of its metric."""
    return [RequirementResult(requirement, metrics[requirement.metric]) for requirement in requirements]
