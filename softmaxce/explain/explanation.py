"""An explanation: the logits of one image, the steps of its loss, and what is shown beside them."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..streams import escaped
from .attribution import Attribution
from .numerics import FormatResult, compare_formats
from .steps import Steps, take_steps


@dataclass(frozen=True)
class Contributions:
    """The contribution of each pixel to each logit, for a linear model.

    Attributes:
        pixels: [K, H, W], each pixel's weight times its normalized value, summed over the channels.
        bias: [K]; a class's pixels and its bias add up to its logit.
    """

    pixels: Tensor
    bias: Tensor


@dataclass(frozen=True)
class OwnLoss:
    """The loss the run was trained with, if it is not cross-entropy, on this image.

    Attributes:
        name: as the config names it.
        loss: its value.
        gradient: [K], with respect to the logits.
    """

    name: str
    loss: float
    gradient: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """What the terminal, the page and `--json` show.

    Attributes:
        title: what is explained, for the first line.
        classes: K names.
        steps: the numbers.
        formats: the loss in each floating-point format.
        image: [C, H, W], in the model's shape and depth; None without one.
        contributions: None unless the model is linear.
        attributions: maps of what the logits, or the loss, depend on; grouped by method.
        own_loss: None if the run's loss is cross-entropy.
        notes: sentences on what is special about this image or model.
    """

    title: str
    classes: tuple[str, ...]
    steps: Steps
    formats: tuple[FormatResult, ...]
    image: Tensor | None = None
    contributions: Contributions | None = None
    attributions: tuple[Attribution, ...] = ()
    own_loss: OwnLoss | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def label(self) -> str:
        """The name of the label's class; of a soft label, the class with the largest probability."""
        return self.classes[self.steps.main]

    def name_in_text(self, index: int) -> str:
        """A class's name within a sentence: "class 5" if it is the number 5. Control characters are escaped."""
        name = escaped(self.classes[index])
        return f"class {name}" if name.isdecimal() else name

    @property
    def heaviest(self) -> int:
        """The class with the largest Q, whose exp is left out of the stable formula's sum."""
        targets = self.steps.targets
        return targets.index(max(targets))

    @property
    def predicted(self) -> int:
        """The class with the largest logit."""
        logits = self.steps.logits
        return logits.index(max(logits))

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object: every intermediate value."""
        result: dict[str, Any] = {
            "title": self.title,
            "classes": list(self.classes),
            "true_class": self.label,
            "predicted_class": self.classes[self.predicted],
            **self.steps.to_dict(),
            "formats": [result.to_dict() for result in self.formats],
            "notes": list(self.notes),
        }
        if self.contributions is not None:
            bias, pixels = self.contributions.bias.tolist(), self.contributions.pixels.tolist()
            result["contributions"] = {"bias": bias, "pixels": pixels}
        if self.attributions:
            result["attributions"] = [self._attribution(attribution) for attribution in self.attributions]
        if self.own_loss is not None:
            result["own_loss"] = vars(self.own_loss)
        if self.image is not None:
            result["image"] = self.image.tolist()
        return result

    def _attribution(self, attribution: Attribution) -> dict[str, Any]:
        of = None if attribution.class_id is None else self.classes[attribution.class_id]
        shown = {key: value for key, value in vars(attribution).items() if value is not None and key != "class_id"}
        return {**shown, "of": "loss" if of is None else "logit", "class": of, "values": attribution.values.tolist()}


def explain_logits(
    logits: Tensor,
    target: int | Tensor,
    classes: tuple[str, ...],
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> Explanation:
    """Explain one row of logits, without a model. The arguments are those of take_steps; `classes` are K names."""
    steps = take_steps(logits, target, weight=weight, label_smoothing=label_smoothing, temperature=temperature)
    if len(classes) != len(steps.logits):
        raise ValueError(f"classes must be {len(steps.logits)} names, one per logit, got {len(classes)}")
    shown = ", ".join(f"{logit:g}" for logit in logits.tolist()[:8]) + (", ..." if len(classes) > 8 else "")
    return Explanation(f"the logits {shown}", classes, steps, compare_formats(steps))
