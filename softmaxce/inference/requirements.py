"""What a script demands of a result: `accuracy>=0.99`, parsed before any work is done and judged after it."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, Problem, suggestion

FIGURES = ("loss", "accuracy", "top5_accuracy", "nll", "brier", "ece")
PER_CLASS = ("precision", "recall", "f1")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Requirement:
    """One demand: a figure's name, a comparison, a limit."""

    figure: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.limit:g}"


@dataclass(frozen=True)
class RequirementResult:
    """A requirement and what came of it. A figure that is not a number meets nothing."""

    requirement: Requirement
    value: float

    @property
    def met(self) -> bool:
        """Whether the figure is as demanded."""
        return COMPARE[self.requirement.comparison](self.value, self.requirement.limit)

    def __str__(self) -> str:
        return f"require {self.requirement}: {'met' if self.met else 'NOT met'}, it is {self.value:.6g}"

    def to_dict(self) -> dict[str, object]:
        """As a JSON line holds it."""
        return {"requirement": str(self.requirement), "value": self.value, "met": self.met}


def parse(texts: Sequence[str]) -> list[Requirement]:
    """`figure>=number` texts as Requirements. Raises: ConfigError with every mistake."""
    requirements, problems = [], []
    for text in texts:
        place = f"--require {text}"
        match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*(%?)\s*", text)
        try:
            limit = float(match[3]) if match else 0.0
        except ValueError:  # told as no requirement
            match = None
        if match is None:
            problems.append(Problem(place, "write it as figure>=number, for example accuracy>=0.99 (also <=, >, <)"))
            continue
        figure = match[1]
        stem, dot, _ = figure.partition(".")
        if match[4] or (figure in ("accuracy", "top5_accuracy") and limit > 1):
            share = limit / 100
            problems.append(Problem(place, f"{figure} lies in [0, 1]; write {figure}{match[2]}{share:g}"))
        elif figure not in FIGURES and not (dot and stem in PER_CLASS):
            known = [*FIGURES, *(f"{name}.CLASS" for name in PER_CLASS)]
            hint = suggestion(figure, FIGURES) or f"; the figures are {', '.join(known)}"
            problems.append(Problem(place, f"there is no figure '{figure}'{hint}"))
        else:
            requirements.append(Requirement(figure, match[2], limit))
    if problems:
        raise ConfigError(problems)
    return requirements


def check_classes(requirements: Sequence[Requirement], classes: Sequence[str]) -> None:
    """Refuse a demand on a class that is not there, or on the top five of five. Raises: ConfigError."""
    problems = []
    for requirement in requirements:
        place = f"--require {requirement}"
        _, dot, name = requirement.figure.partition(".")
        if dot and name not in classes:
            hint = suggestion(name, classes) or f"; the classes are {', '.join(classes[:10])}"
            problems.append(Problem(place, f"there is no class '{name}'{hint}"))
        if requirement.figure == "top5_accuracy" and len(classes) <= 5:
            problems.append(Problem(place, f"with {len(classes)} classes there is no top-5 figure"))
    if problems:
        raise ConfigError(problems)


def judge(requirements: Sequence[Requirement], figures: Mapping[str, float]) -> list[RequirementResult]:
    """Each requirement with the figure it was measured against."""
    return [RequirementResult(requirement, figures[requirement.figure]) for requirement in requirements]
