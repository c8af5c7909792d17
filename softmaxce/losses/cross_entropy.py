"""Softmax and cross-entropy, step by step, and the loss that trains with them.

A network's weighted sums are its *logits* z, one a class. The steps, in the order in which they are taken:

1. Softmax turns logits into probabilities:            S_i = exp(z_i) / sum_k exp(z_k)          each in (0, 1), sum 1.
2. The label becomes a one-hot vector:                 L_i = 1 for the true class, else 0.
3. Cross-entropy compares the two:                     D(S, L) = -sum_i L_i log S_i             in nats.
4. All terms but the true class's vanish:              D = -log S_y, so minimising D pushes S_y to 1.
5. Backpropagation needs the gradient, which is        dD/dz = S - L.

`softmax`, `one_hot` and `naive_cross_entropy` take these steps as they stand on paper. `cross_entropy` gives what they
would give if numbers had no end; `definition` is its arithmetic in a dozen lines. Where it departs from paper, and why:

* exp(z) overflows (in float32 past z = 88), so the largest logit is subtracted first; S does not change by it.
* The log of step 3 cannot take 0, so its input must come from softmax, which on paper is never 0. In floating point it
  is: in float32 once z_i lies about 104 below the largest logit. So the log is not taken of S: log S_i =
  (z_i - max) - log sum exp(z_k - max), and this sum is at least 1. The maximum and the log stay apart: added up, they
  would lose the log's last digits where logits are large.
* When the model is sure, the sum is 1 and a little. In float32 the little is lost below 6e-8, where log 1 = 0 and the
  gradient S_y - 1 = 0 teach no more. So the target's own term is left out of the sum and `rest` is what remains:
  log sum = log1p(rest + expm1(z_y - max)), S_y - 1 = -rest / sum. Both keep all their digits.
* L need not be one-hot: label smoothing and mixtures give every class a share, and class weights scale the terms. With
  Q_i = weight_i L_i and T = sum_i Q_i, the loss is T log sum - sum_i Q_i (z_i - max) and its gradient T S - Q, which is
  S - L where all weights are 1. A term with Q_i = 0 vanishes even where log S_i = -inf: 0 log 0 = 0.
* 16-bit logits are computed in float32 and rounded once, at the end.

Who computes it: on the CPU cpu.py, on CUDA triton_kernels.py, where these can run; `definition` everywhere else, and
wherever PyTorch must see the single operations: under torch.compile, torch.func and for second derivatives.

Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
"""

from types import ModuleType

import torch
from torch import Tensor, int64, nn
from torch.nn import _reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..kernels.tracing import forward_ad, is_compiling, is_functorch_active, num_modes
from . import cuda
from .arguments import _PLAIN, _check, _check_ids, _classes_last, _is_transformed, _result_dtype, as_int64
from .reference import definition

try:
    from . import cpu, cpu_fast_path
except ImportError:  # no Numba for this Python or this processor
    cpu = None  # type: ignore[assignment]

FEW = 1 << 15  # so many logits are left to one thread
STEP_DTYPES = {torch.float32, torch.float64, torch.bfloat16} if cpu is not None else set()


# -- the loss ---------------------------------------------------------------------------------------------------------


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
    """Minus the log-probability of the target class, in nats, straight from the logits.

    In the place of torch.nn.functional.cross_entropy: the same arguments, in the same order, with the same meaning.

    Args:
        input: logits [B, K], [B, K, d1, ...] or [K]; float, any real numbers.
        target: class ids [B], [B, d1, ...] or [], int64 or uint8; or probabilities, float, in the shape of `input`.
        weight: [K], a factor for each class's term.
        size_average, reduce: as in PyTorch, which has replaced them by `reduction`.
        ignore_index: places with this class id count for nothing: loss 0, gradient 0, no share in the mean.
        reduction: none; sum; or mean, which is weighted by the class ids' weights as PyTorch's is.
        label_smoothing: the share of the label spread evenly over all classes, in [0, 1].
    Returns: the shape of class ids for "none", else a scalar; in the dtype of `input`, in float32 under autocast.
    Raises:
        InvalidArgumentError (a ValueError and a RuntimeError): if shapes, dtypes or values do not fit.
        IndexError: if a class id is outside [0, K). On CUDA this would cost the program a wait for the device, and
            PyTorch's kernel kills the process; here the row's loss is NaN, and fused.check_class_ids() raises the error
            when it is called: training does at the end of each epoch, when it waits for the device anyway.
        TypeError: if `input` or `target` is no tensor, or `ignore_index` no whole number.

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
        and _is_usual_step(input, target)
    ):
        try:
            if label_smoothing == 0.0:
                return cpu_fast_path.small_batch_fast_path(input, target, ignore_index)  # type: ignore[no-any-return]
            return cpu_fast_path.small_batch_fast_path(input, target, ignore_index, label_smoothing)  # type: ignore[no-any-return]
        except IndexError:
            _check_ids(target, input.shape[1], ignore_index)  # raises, with the place
            raise
        except OverflowError:  # ignore_index is refused some lines below
            pass  # ignore_index does not fit in int64; refused below
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
        reduction = _reduction.legacy_get_string(size_average, reduce)
    ignore_index = as_int64("ignore_index", ignore_index)
    _check(input, target, weight, ignore_index, reduction, label_smoothing)
    kernels = _kernels(input, target, weight)
    if kernels is None:
        return definition(input, target, weight, ignore_index, reduction, label_smoothing)
    if target.dtype == torch.uint8:
        target = target.long()
    arguments = weight, ignore_index, reduction, label_smoothing, _result_dtype(input, target, weight)
    logits, targets = input, target
    if input.ndim != 2:
        logits = _classes_last(input)
        places, num_classes = logits.shape[:-1], logits.shape[-1]
        logits = logits.reshape(-1, num_classes)
        targets = target.reshape(-1) if target.shape != input.shape else _classes_last(target).reshape(logits.shape)
    try:
        losses: Tensor = kernels.fused_cross_entropy(logits, targets, *arguments)
    except IndexError:
        _check_ids(target, logits.shape[1], ignore_index)  # raises, with the place in the target as it was given
        raise
    return losses.reshape(places) if input.ndim != 2 and reduction == "none" else losses


# -- which arguments, which way ---------------------------------------------------------------------------------------


def _is_usual_step(input: Tensor, target: Tensor) -> bool:
    """Whether these are what most training steps have, on the CPU: for 128 images of 10 classes each line costs."""
    if type(input) is not Tensor or type(target) is not Tensor:
        return False
    shape, places = input.shape, target.shape
    return (
        len(shape) == 2
        and len(places) == 1
        and shape[0] == places[0]
        and 0 < shape[0] * shape[1] <= FEW
        and input.is_cpu
        and target.is_cpu
        and input.dtype in STEP_DTYPES
        and target.dtype is int64
        and input.is_contiguous()
        and target.is_contiguous()
        and not input.is_neg()
        and not target.is_neg()
        and not (is_compiling() or forward_ad._current_level >= 0 or is_functorch_active() or num_modes())
    )


def _kernels(input: Tensor, target: Tensor, weight: Tensor | None) -> ModuleType | None:
    """The module that computes the loss in one go for these arguments; None where `definition` has to."""
    if (
        _is_transformed(input)
        or type(target) not in _PLAIN
        or target.requires_grad
        or (weight is not None and weight.requires_grad)
        or not input.numel()
        or input.layout != torch.strided
    ):
        return None
    if input.is_cpu:
        return cpu
    return cuda if input.is_cuda and cuda.available(input.device, input.dtype) else None


# -- as a module ------------------------------------------------------------------------------------------------------


class SoftmaxCrossEntropy(nn.CrossEntropyLoss):
    """softmaxce's own loss: softmax and cross-entropy in one step, from logits; drop-in for nn.CrossEntropyLoss.

    Its arguments are nn.CrossEntropyLoss's: weight [K], ignore_index, reduction (mean, sum or none), label_smoothing,
    and PyTorch's older size_average and reduce.

    Calling it: (logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats; see cross_entropy.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] or [B, K]) -> the loss in nats."""
        if (
            self._buffers.get("weight", self) is None  # as self.weight is; nn.Module takes its time to find that
            and self.reduction == "mean"
            and self.label_smoothing == 0.0
            and type(self.ignore_index) is int
            and _is_usual_step(input, target)
        ):  # as there, without the call
            try:
                return cpu_fast_path.small_batch_fast_path(input, target, self.ignore_index)  # type: ignore[no-any-return]
            except (IndexError, OverflowError):  # the call below refuses it, with the place
                pass  # said there, with the place
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
