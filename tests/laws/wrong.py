"""Losses with one mistake each. `breaks` names the laws that should fail; all others should pass."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    """Targets [B] or [B, K] as probabilities [B, K]."""
    if targets.is_floating_point():
        return targets
    return (targets[:, None] == torch.arange(logits.shape[1], device=targets.device)).to(logits.dtype)


class Wrong(nn.Module):
    """Cross-entropy in parts that subclasses replace with wrong ones. With `and_more`, other laws may fail too."""

    breaks: ClassVar[set[str]] = set()
    arguments: ClassVar[dict[str, Any]] = {}
    and_more: ClassVar[bool] = False

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return functional.log_softmax(logits, 1)

    def mean(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.mean(-(one_hot(logits, targets) * self.log_probabilities(logits)).sum(1))


class ZeroTimesInfinity(Wrong):
    """0 * -inf, at a class with logit -inf, is NaN."""

    breaks: ClassVar[set[str]] = {"finite"}


class Sound(Wrong):
    """A correct loss, so that each subclass fails by its one mistake alone."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        labels, log = one_hot(logits, targets), self.log_probabilities(logits)
        return self.mean(-torch.where(labels == 0, 0, labels * log.where(labels != 0, 0)).sum(1))


class WithoutTheMaximum(Sound):
    breaks: ClassVar[set[str]] = {"finite", "value", "gradient", "dtypes"}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return (logits.exp() / logits.exp().sum(1, keepdim=True)).log()


class WithAnEpsilon(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "dtypes", "saturation"}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return (torch.softmax(logits, 1) + 1e-8).log()


class SoftmaxTwice(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "saturation"}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return functional.log_softmax(torch.softmax(logits, 1), 1)


class ForgetsTheMinus(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "monotonic", "minimum", "saturation"}

    def mean(self, losses: Tensor) -> Tensor:
        return -losses.mean()


class SumForMean(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "rows"}

    def mean(self, losses: Tensor) -> Tensor:
        return losses.sum()


class Reduces(Sound):
    """Correct with every reduction."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def mean(self, losses: Tensor) -> Tensor:
        return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[self.reduction]


class IgnoresReduction(Reduces):
    breaks: ClassVar[set[str]] = {"reductions"}

    def mean(self, losses: Tensor) -> Tensor:
        return losses.mean()


class IgnoresSmoothing(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient"}
    arguments: ClassVar[dict[str, Any]] = {"label_smoothing": 0.1}

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()


class SoftmaxOverTheBatch(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "shift", "rows", "saturation"}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return functional.log_softmax(logits.where(logits.isfinite(), -1e9), 0)


class LeavesTheLastClassOut(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "permutation", "saturation"}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return logits - logits[:, :-1].clamp(min=-60000.0).logsumexp(1, keepdim=True)


class CapsLogits(Sound):
    breaks: ClassVar[set[str]] = {"value", "gradient", "shift"}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return functional.log_softmax(30 * torch.tanh(logits / 30), 1)


class RoundsTargets(Sound):
    breaks: ClassVar[set[str]] = {"soft_targets"}

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits, targets.argmax(1) if targets.ndim == 2 else targets)


class DividesProbabilitiesByClasses(Sound):
    breaks: ClassVar[set[str]] = {"one_hot"}

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = super().forward(logits, targets)
        return loss / logits.shape[1] if targets.ndim == 2 else loss


class OnlyIds(Sound):
    breaks: ClassVar[set[str]] = {"one_hot", "soft_targets"}

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -self.log_probabilities(logits).gather(1, targets[:, None]).mean()


class InFloat32(Sound):
    """Computes in float32, which every law that compares float64 numbers detects."""

    breaks: ClassVar[set[str]] = {"dtypes", "gradcheck", "gradgradcheck", "value", "gradient"}
    and_more = True

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits.float(), targets)


class Noisy(Sound):
    breaks: ClassVar[set[str]] = {"determinism"}

    def mean(self, losses: Tensor) -> Tensor:
        return losses.mean() + 1e-15 * torch.rand(()) if losses.numel() > 1000 else losses.mean()


class Remembers(Sound):
    breaks: ClassVar[set[str]] = {"determinism"}

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def mean(self, losses: Tensor) -> Tensor:
        self.calls += losses.numel() > 1000
        return losses.mean() + 1e-12 * (self.calls % 3)


class BranchesOnValues(Sound):
    breaks: ClassVar[set[str]] = {"compile", "vmap"}

    def mean(self, losses: Tensor) -> Tensor:
        return losses.mean() if losses.max() < 1e30 else losses.max()


class UsesNumPy(Sound):
    breaks: ClassVar[set[str]] = {"compile", "vmap"}

    def mean(self, losses: Tensor) -> Tensor:
        return losses.mean() if float(losses.detach().sum()) < 1e30 else losses.max()


class MixesDtypes(Sound):
    breaks: ClassVar[set[str]] = {"autocast"}

    def mean(self, losses: Tensor) -> Tensor:
        mean = torch.ones_like(losses)[None] @ losses[:, None] / len(losses)  # autocast computes this in bfloat16
        first = torch.zeros(1, dtype=torch.int64)
        return torch.zeros_like(losses).scatter(0, first, mean[0]).sum()


class Function(torch.autograd.Function):
    """Cross-entropy of class ids with its own backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> Tensor:
        return -torch.where(labels == 0, 0, labels * functional.log_softmax(logits, 1)).sum(1).mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return upstream * softmax_minus_labels(*ctx.saved_tensors), None


def softmax_minus_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return (torch.softmax(logits, 1) - labels) / len(labels)


class OwnBackward(Wrong):
    """A correct backward; the subclasses have wrong ones. No law needs a gradient for the targets."""

    function: ClassVar[type[torch.autograd.Function]] = Function

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = self.function.apply(logits, one_hot(logits, targets))
        return result


class WrongSign(OwnBackward):
    breaks: ClassVar[set[str]] = {"gradient", "gradcheck", "saturation"}

    class function(Function):  # type: ignore[assignment]
        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            return -upstream * softmax_minus_labels(*ctx.saved_tensors), None


class ForgetsUpstream(OwnBackward):
    breaks: ClassVar[set[str]] = {"gradcheck"}

    class function(Function):  # type: ignore[assignment]
        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            return softmax_minus_labels(*ctx.saved_tensors), None


class OnceDifferentiable(OwnBackward):
    breaks: ClassVar[set[str]] = {"gradgradcheck"}

    class function(Function):  # type: ignore[assignment]
        @staticmethod
        @once_differentiable
        def backward(ctx: Any, upstream: Tensor) -> Any:
            return upstream * softmax_minus_labels(*ctx.saved_tensors), None


class DetachesAFactor(Sound):
    """Focal loss with a detached factor."""

    breaks: ClassVar[set[str]] = {"value", "gradient", "gradcheck", "gradgradcheck", "soft_targets"}

    def mean(self, losses: Tensor) -> Tensor:
        return ((-torch.expm1(-losses)).detach() * losses).mean()


WRONG = [
    each for each in vars().copy().values() if isinstance(each, type) and issubclass(each, Wrong) and each is not Wrong
]
