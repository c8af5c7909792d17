"""Softmax and cross-entropy in operations of PyTorch: the article's steps, and the reference implementation."""

import torch
from torch import Tensor

from .arguments import (
    InvalidArgumentError,
    arithmetic_dtype,
    check_class_ids,
    check_is_tensor,
    classes_last,
    result_dtype,
)
from .targets import reduce_losses, target_distribution, zero_where_ignored


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Probabilities from logits: exp(z_i) / sum_k exp(z_k).

    Args:
        logits: any shape, float, any real numbers.
        dim: the dimension of the classes.
    Returns: the same shape; each in (0, 1), which rounding can make 0 or 1; their sum along `dim` is 1.
    Raises: TypeError if `logits` is not a tensor.

    Bridle 1990; the article's step 1.

    >>> softmax(torch.tensor([2.0, 1.0, 0.1]))
    tensor([0.6590, 0.2424, 0.0986])
    """
    check_is_tensor("logits", logits)
    exponentials = torch.exp(_shifted(logits, dim))
    return exponentials / exponentials.sum(dim, keepdim=True)


def log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of softmax, z_i - log sum_k exp(z_k): finite wherever the logits are.

    Args:
        logits: any shape, float, any real numbers.
        dim: the dimension of the classes.
    Returns: the same shape, in nats, each at most 0.
    Raises: TypeError if `logits` is not a tensor.

    >>> log_softmax(torch.tensor([0.0, -200.0]))[1]  # log(softmax(...)) would be -inf here: float32 rounds S to 0
    tensor(-200.)
    >>> log_softmax(torch.tensor([20.0, 0.0]))[0]  # and 0 here, where S rounds to 1
    tensor(-2.0612e-09)
    """
    check_is_tensor("logits", logits)
    if not logits.numel():
        return logits.clone()
    z = _shifted(logits, dim)
    return z - _log_sum(z, z.detach().argmax(dim, keepdim=True), dim)


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    """The label's vector: 1 at the true class, 0 elsewhere.

    Args:
        targets: [...] class ids, int64 or another integer dtype.
        num_classes: K.
    Returns: [..., K] float32.
    Raises: IndexError if a class id is outside [0, K); TypeError if `targets` is not a tensor; InvalidArgumentError if
        it is not of integers.

    >>> one_hot(torch.tensor([0, 2]), 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    check_is_tensor("targets", targets)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidArgumentError(f"class ids must be integers, got {targets.dtype}; use targets.long()")
    check_class_ids(targets, num_classes, None)
    return (targets.unsqueeze(-1) == torch.arange(num_classes, device=targets.device)).float()


def naive_cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy as written on paper, from probabilities: -sum_i L_i log S_i. For reading, not for training.

    Args:
        probabilities: [..., K], each in (0, 1]: above 0, as softmax is before rounding.
        labels: [..., K], one-hot or any other distribution over the classes.
    Returns: [...], in nats. It is infinite, or NaN, where a probability has been rounded to 0; `cross_entropy` is not.

    Good 1952; the article's step 3.

    >>> S, L = softmax(torch.tensor([2.0, 1.0, 0.1])), one_hot(torch.tensor(0), 3)
    >>> naive_cross_entropy(S, L)
    tensor(0.4170)
    >>> naive_cross_entropy(softmax(torch.tensor([0.0, 200.0])), one_hot(torch.tensor(0), 2))
    tensor(inf)
    """
    return -(labels * probabilities.log()).sum(-1)


def _shifted(logits: Tensor, dim: int) -> Tensor:
    """Logits minus their largest: exp of it cannot overflow, and softmax is the same."""
    return logits - logits.amax(dim, keepdim=True).detach() if logits.numel() else logits


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The reference implementation: operations that PyTorch can differentiate twice and more, transform and compile.

    The arguments and the result are those of `softmaxce.cross_entropy`, and so are the numbers. It takes the time and
    the memory of its single operations. A class id outside [0, K) gives a loss of NaN where it cannot be checked (on
    CUDA, under torch.compile and torch.func) and an IndexError elsewhere.
    """
    dtype = result_dtype(input, target, weight)
    logits = classes_last(input).to(arithmetic_dtype(dtype))  # [..., K]
    is_soft = target.shape == input.shape
    labels, divisor, counts = target_distribution(
        target, logits, weight, ignore_index, label_smoothing, is_soft=is_soft
    )
    logits = zero_where_ignored(logits, counts)
    losses = _from_distribution(logits, labels) if logits.shape[-1] else logits.sum(-1)
    return reduce_losses(losses, divisor, reduction).to(dtype)


def _from_distribution(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_i Q_i log S_i for logits z [..., K] and a target distribution Q [..., K]."""
    z = _shifted(logits, -1)
    log_sum = _log_sum(z, labels.detach().argmax(-1, keepdim=True), -1).squeeze(-1)
    return labels.sum(-1) * log_sum - (labels * torch.where((labels == 0) & z.isinf(), 0, z)).sum(-1)


def _log_sum(z: Tensor, y: Tensor, dim: int) -> Tensor:
    """log sum_k exp(z_k) along `dim`, with keepdim, as log(1 + the rest): accurate where exp(z_y) is nearly all."""
    rest = z.exp().scatter(dim, y, 0).sum(dim, keepdim=True)
    return torch.log1p(rest + torch.expm1(z.gather(dim, y)))
