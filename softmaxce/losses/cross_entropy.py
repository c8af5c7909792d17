"""Softmax and cross-entropy, step by step, and the loss that trains with them.

A network's weighted sums are its *logits* z, one a class. The steps, in the order in which they are taken:

1. Softmax turns logits into probabilities:            S_i = exp(z_i) / sum_k exp(z_k)          each in (0, 1), sum 1.
2. The label becomes a one-hot vector:                 L_i = 1 for the true class, else 0.
3. Cross-entropy compares the two:                     D(S, L) = -sum_i L_i log S_i             in nats.
4. All terms but the true class's vanish:              D = -log S_y, so minimising D pushes S_y to 1.
5. Backpropagation needs the gradient, which is        dD/dz = S - L.

Where the program departs from paper, and why:

* exp(z) overflows (in float32 past z = 88), so the largest logit is subtracted first; S does not change by it.
* On paper S_i is never 0, so the log of step 3 is safe. In floating point it is 0 once z_i lies about 104 (float32)
  below the largest logit, and its log is -inf. So the log is not taken of S: log S_i = (z_i - max) - log sum exp(z_k -
  max) has no log of 0 in it, for the sum is at least 1.
* L need not be one-hot: label smoothing and mixtures give every class a share, and class weights scale the terms. With
  Q_i = weight_i L_i, the loss is -sum_i Q_i log S_i and its gradient (sum_i Q_i) S - Q, which is S - L when all weights
  are 1.

Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..kinds import Probability


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Probabilities from logits: exp(z_i) / sum_k exp(z_k).

    Args:
        logits: any shape, float, any real numbers.
        dim: the dimension of the classes.
    Returns: the same shape; each in [0, 1], their sum along `dim` 1.

    >>> softmax(torch.tensor([2.0, 1.0, 0.1]))
    tensor([0.6590, 0.2424, 0.0986])
    """
    exponentials = torch.exp(_shifted(logits, dim))
    return exponentials / exponentials.sum(dim, keepdim=True)


def log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of softmax, finite wherever the logits are: z_i - log sum_k exp(z_k).

    Args:
        logits: any shape, float, any real numbers.
        dim: the dimension of the classes.
    Returns: the same shape, in nats, each at most 0.

    >>> log_softmax(torch.tensor([0.0, -200.0]))  # log(softmax(...)) would be -inf here: float32 rounds S to 0
    tensor([   0., -200.])
    """
    shifted = _shifted(logits, dim)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    """The label's vector: 1 at the true class, 0 elsewhere.

    Args:
        targets: [...] int64 class ids.
        num_classes: K.
    Returns: [..., K] float32.
    Raises: IndexError if a class id is outside [0, K).

    >>> one_hot(torch.tensor([0, 2]), 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    _check_ids(targets, num_classes)
    result = torch.zeros(*targets.shape, num_classes, device=targets.device)
    return result.scatter_(-1, targets.unsqueeze(-1), 1.0)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Minus the log-probability of the target class, in nats, straight from the logits.

    Args:
        logits: [B, K] float, any real numbers.
        targets: [B] int64 class ids, or [B, K] float probabilities.
        weight: [K], a factor for each class's term.
        ignore_index: rows with this class id count for nothing.
        reduction: none; sum; or mean, which is weighted by the targets' weights as torch's is.
        label_smoothing: the share of the label spread evenly over all classes, in [0, 1].
    Returns: [B] for "none", else a scalar.
    Raises:
        ValueError: if shapes do not fit or label_smoothing is outside [0, 1].
        IndexError: if a class id is outside [0, K).

    Bridle 1990; label smoothing: Szegedy et al. 2016, section 7. The gradient is softmax(logits) - one_hot(targets).

    >>> cross_entropy(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))
    tensor(0.4170)
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be [B, K], got the shape {list(logits.shape)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    num_classes = logits.shape[1]
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(f"weight must have one entry for each of {num_classes} classes, got {list(weight.shape)}")

    # 16-bit logits are computed in float32 and rounded once; under autocast the loss stays float32, as torch's does.
    dtype = logits.dtype
    if dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
        if torch.is_autocast_enabled(logits.device.type):
            dtype = torch.float32

    if targets.shape == logits.shape:
        labels, denominator = targets.to(logits.dtype), torch.tensor(float(len(logits)), device=logits.device)
        kept = None
    elif targets.shape == logits.shape[:1] and not targets.is_floating_point():
        kept = targets != ignore_index
        ids = torch.where(kept, targets, 0)
        labels = one_hot(ids, num_classes).to(logits.dtype)
        denominator = (kept if weight is None else weight[ids] * kept).sum()
    else:
        raise ValueError(
            f"targets must be [B] class ids or [B, K] probabilities for logits {list(logits.shape)}, "
            f"got {targets.dtype} {list(targets.shape)}"
        )
    if label_smoothing > 0:
        labels = labels * (1 - label_smoothing) + label_smoothing / num_classes
    if weight is not None:
        labels = labels * weight
    if kept is not None:
        labels = labels * kept.unsqueeze(1)

    losses: Tensor = _SoftmaxCrossEntropy.apply(logits, labels)  # [B]
    if reduction == "none":
        return losses.to(dtype)
    total = losses.sum()
    return (total if reduction == "sum" else total / denominator).to(dtype)


class SoftmaxCrossEntropy(nn.Module):
    """softmaxce's own loss: softmax and cross-entropy in one step, from logits; drop-in for nn.CrossEntropyLoss.

    Args:
        weight: a factor for each class's term, K numbers; `balanced` takes N / (K * count) of the training labels.
        ignore_index: images with this class id count for nothing.
        reduction: mean, sum or none (one loss an image).
        label_smoothing: the share of the label spread evenly over all classes, in [0, 1].
        class_counts: how many training images each class has; `balanced` needs it.
        num_classes: K, if known: a `weight` of another length is then refused at once.
    Raises: ValueError if an argument does not fit.

    Calling it: (logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats; see cross_entropy.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | list[float] | Literal["balanced"] | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: Probability = 0.0,
        *,
        class_counts: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.register_buffer("weight", class_weights(weight, class_counts, num_classes), persistent=False)
        self.ignore_index = ignore_index
        self.reduction: Literal["mean", "sum", "none"] = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(logits [B, K], targets [B] or [B, K]) -> the loss in nats."""
        return cross_entropy(logits, targets, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


def class_weights(
    weight: Tensor | list[float] | Literal["balanced"] | None,
    class_counts: list[int] | None,
    num_classes: int | None,
) -> Tensor | None:
    """A loss's class weights as a tensor [K], or None for none.

    Raises: ValueError if they are no K non-negative numbers, or are `balanced` without counts to balance by.
    """
    if weight is None:
        return None
    if isinstance(weight, str):
        if weight != "balanced" or class_counts is None:
            raise ValueError(f"weight must be a list, or 'balanced' with class_counts given, got {weight!r}")
        if 0 in class_counts:
            raise ValueError("weight: balanced needs training images of every class; some class has none")
        return sum(class_counts) / (len(class_counts) * torch.tensor(class_counts, dtype=torch.float32))
    result = torch.as_tensor(weight, dtype=torch.float32)
    if num_classes is not None and result.shape != (num_classes,):
        raise ValueError(f"weight must have one number for each of the {num_classes} classes, got {result.numel()}")
    if not (result >= 0).all():
        raise ValueError(f"weight must not be negative, got {weight}")
    return result


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """-sum_i Q_i log S_i, and its gradient by hand: (sum_i Q_i) S - Q, the article's S - L."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = log_softmax(logits)  # [B, K]
        ctx.save_for_backward(log_probabilities, labels)
        # A class without a share adds nothing, even where log S = -inf: 0 log 0 = 0.
        return -torch.where(labels == 0, 0, labels * log_probabilities).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_probabilities, labels = ctx.saved_tensors
        upstream = upstream.unsqueeze(1)  # [B, 1]
        for_logits = for_labels = None
        if ctx.needs_input_grad[0]:
            for_logits = upstream * (labels.sum(1, keepdim=True) * log_probabilities.exp() - labels)
        if ctx.needs_input_grad[1]:
            for_labels = -upstream * log_probabilities
        return for_logits, for_labels


def _shifted(logits: Tensor, dim: int) -> Tensor:
    """Logits minus their largest: exp of it cannot overflow, and softmax is the same."""
    return logits - logits.amax(dim, keepdim=True).detach() if logits.numel() else logits


def _check_ids(targets: Tensor, num_classes: int) -> None:
    if targets.device.type != "cpu" or not targets.numel():
        return  # looking would make the program wait for the device
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise IndexError(
            f"class id {wrong} is out of range: with {num_classes} classes ids go from 0 to {num_classes - 1}"
        )
