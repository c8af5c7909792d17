"""Softmax and cross-entropy, step by step, and the loss that trains with them.

A network's weighted sums are its *logits* z, one per class. The steps, in the order in which they are taken:

1. Softmax turns logits into probabilities:            S_i = exp(z_i) / sum_k exp(z_k)          each in (0, 1), sum 1.
2. The label becomes a one-hot vector:                 L_i = 1 for the true class, else 0.
3. Cross-entropy compares the two:                     D(S, L) = -sum_i L_i log S_i             in nats.
4. All terms but the true class's vanish:              D = -log S_y, so minimizing D pushes S_y to 1.
5. Backpropagation needs the gradient, which is        dD/dz = S - L.

`softmax`, `one_hot` and `naive_cross_entropy` in reference.py take these steps literally. `cross_entropy` gives what
they would give in exact arithmetic. In floating point it computes some steps differently:

* exp(z) overflows (in float32 above z = 88), so the largest logit is subtracted first, which does not change S.
* In exact arithmetic S_i is never 0, so its log exists (log L_i does not: D is not symmetric). In float32 S_i is
  rounded to 0 if z_i is about 104 below the largest logit. So log S_i is computed without S, as
  (z_i - max) - log sum exp(z_k - max), where the sum is at least 1. The maximum and the log are not added to each
  other: where logits are large, that would lose the log's last digits.
* When the model is confident, the sum is 1 plus a small number, which float32 rounds away below 6e-8; then the loss and
  the target's gradient S_y - 1 would be 0. So the target's own term is left out of the sum, and with `rest`, the sum of
  the others, log sum = log1p(rest + expm1(z_y - max)) and S_y - 1 = -rest / sum. Both are accurate to the last digits.
* L need not be one-hot: label smoothing and mixup give every class a target probability, and class weights scale the
  terms. With Q_i = weight_i L_i and T = sum_i Q_i, the loss is T log sum - sum_i Q_i (z_i - max) and its gradient is
  T S - Q, which is S - L where all weights are 1. A term with Q_i = 0 vanishes even where log S_i = -inf: 0 log 0 = 0.
* 16-bit logits are computed in float32 and rounded once, at the end.

backends.py decides who computes it: on the CPU cpu.py, on CUDA cuda.py (experimental), where these can run; elsewhere,
and wherever PyTorch must see the single operations (under torch.compile, torch.func and for second derivatives),
`reference.cross_entropy`, which is the same arithmetic in a dozen lines.

Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
"""

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import reference
from .arguments import as_int64, check_arguments, check_class_ids, classes_last, legacy_reduction, result_dtype
from .backends import fits_fast_path, fused_backend, small_batch_fast_path
from .interface import refuse_script


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-probability of the target class, in nats, straight from the logits.

    Drop-in for torch.nn.functional.cross_entropy: the same arguments, in the same order, with the same meaning.

    Args:
        input: logits [B, K], [B, K, d1, ...] or [K]; float, any real numbers.
        target: class ids [B], [B, d1, ...] or [], int64 or uint8; or probabilities, float, in the shape of `input`.
        weight: [K], a factor for each class's term.
        size_average, reduce: as in PyTorch, which has replaced them by `reduction`.
        ignore_index: targets with this class id count for nothing: loss 0, gradient 0, left out of the mean.
        reduction: none; sum; or mean, which is weighted by the class ids' weights as PyTorch's is.
        label_smoothing: the part of the label that is spread evenly over all classes, in [0, 1].
    Returns: the shape of class ids for "none", else a scalar; in the dtype of `input`, in float32 under autocast.
    Raises:
        InvalidArgumentError (a ValueError and a RuntimeError): if shapes, dtypes or values do not fit.
        IndexError: if a class id is outside [0, K). On CUDA that check would wait for the device, and PyTorch's own
            kernel aborts the process; here the row's loss is NaN, and cuda.check_class_ids() raises the error when it
            is called. Training does so at the end of each epoch, where it waits for the device anyway.
        TypeError: if `input` or `target` is not a tensor, or `ignore_index` not a whole number.

    Bridle 1990; label smoothing: Szegedy et al. 2016, section 7. The gradient is softmax(input) - one_hot(target).

    >>> logits = torch.tensor([[2.0, 1.0, 0.1]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0]))
    >>> round(loss.item(), 4)
    0.417
    >>> loss.backward()
    >>> logits.grad  # S - L
    tensor([[-0.3410,  0.2424,  0.0986]])
    """
    if (
        weight is None
        and reduction == "mean"
        and (label_smoothing == 0.0 or (type(label_smoothing) is float and 0.0 < label_smoothing <= 1.0))
        and size_average is None
        and reduce is None
        and type(ignore_index) is int
        and fits_fast_path(input, target)
    ):
        try:
            if label_smoothing == 0.0:
                return small_batch_fast_path(input, target, ignore_index)  # type: ignore[no-any-return]
            return small_batch_fast_path(input, target, ignore_index, label_smoothing)  # type: ignore[no-any-return]
        except IndexError:
            check_class_ids(target, input.shape[1], ignore_index)  # raises, with the index in the target
            raise
        except OverflowError:  # ignore_index does not fit in int64: as_int64 below refuses it
            pass
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    ignore_index = as_int64("ignore_index", ignore_index)
    check_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    backend = fused_backend(input, target, weight)
    if backend is None:
        return reference.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    if target.dtype == torch.uint8:
        target = target.long()
    arguments = weight, ignore_index, reduction, label_smoothing, result_dtype(input, target, weight)
    logits, targets = input, target
    if input.ndim != 2:
        logits = classes_last(input)
        ids_shape, num_classes = logits.shape[:-1], logits.shape[-1]
        logits = logits.reshape(-1, num_classes)
        targets = target.reshape(-1) if target.shape != input.shape else classes_last(target).reshape(logits.shape)
    try:
        losses: Tensor = backend.fused_cross_entropy(logits, targets, *arguments)
    except IndexError:
        check_class_ids(target, logits.shape[1], ignore_index)  # raises, with the index in the target as it was given
        raise
    return losses.reshape(ids_shape) if input.ndim != 2 and reduction == "none" else losses


class SoftmaxCrossEntropy(nn.CrossEntropyLoss):
    """softmaxce's own loss: softmax and cross-entropy in one step, from logits; drop-in for nn.CrossEntropyLoss.

    Its arguments are nn.CrossEntropyLoss's: weight [K], ignore_index, reduction (mean, sum or none), label_smoothing,
    and PyTorch's older size_average and reduce.

    Calling it: (logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats; see cross_entropy.
    """

    __prepare_scriptable__ = refuse_script

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] or [B, K]) -> the loss in nats."""
        if (
            self._buffers.get("weight", self) is None  # self.weight, without nn.Module's slow __getattr__
            and self.reduction == "mean"
            and self.label_smoothing == 0.0
            and type(self.ignore_index) is int
            and fits_fast_path(input, target)
        ):  # as in cross_entropy, without its call
            try:
                return small_batch_fast_path(input, target, self.ignore_index)  # type: ignore[no-any-return]
            except (IndexError, OverflowError):  # cross_entropy below raises the error with its full message
                pass
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
