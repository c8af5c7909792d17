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

import operator
from types import ModuleType

import torch
from torch import Tensor, int64, nn
from torch.nn import _reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..kernels.tracing import forward_ad, is_compiling, is_functorch_active, is_watched, num_modes
from . import cuda

try:
    from . import cpu
except ImportError:  # no Numba for this Python or this processor
    cpu = None  # type: ignore[assignment]

FEW = 1 << 15  # so many logits are left to one thread
STEP_DTYPES = {torch.float32, torch.float64, torch.bfloat16} if cpu is not None else set()
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class InvalidArgumentError(ValueError, RuntimeError):
    """An argument that cross-entropy refuses. PyTorch calls some of these a RuntimeError and some a ValueError."""


# -- the article's steps ----------------------------------------------------------------------------------------------


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Probabilities from logits: exp(z_i) / sum_k exp(z_k).

    Args:
        logits: any shape, float, any real numbers.
        dim: the dimension of the classes.
    Returns: the same shape; each in [0, 1], their sum along `dim` 1.

    Bridle 1990; the article's step 1.

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

    >>> log_softmax(torch.tensor([0.0, -200.0]))[1]  # log(softmax(...)) would be -inf here: float32 rounds S to 0
    tensor(-200.)
    >>> log_softmax(torch.tensor([20.0, 0.0]))[0]  # and 0 here, where S rounds to 1
    tensor(-2.0612e-09)
    """
    if not logits.numel():
        return logits.clone()
    z = _shifted(logits, dim)
    return z - _log_sum(z, z.detach().argmax(dim, keepdim=True), dim)


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
    _check_ids(targets, num_classes, None)
    return (targets.unsqueeze(-1) == torch.arange(num_classes, device=targets.device)).float()


def naive_cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy as it stands on paper, from probabilities: -sum_i L_i log S_i. For reading, not for training.

    Args:
        probabilities: [..., K], each in (0, 1], as softmax makes them on paper.
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
                return cpu.usual_step(input, target, ignore_index)  # type: ignore[no-any-return]
            return cpu.usual_step(input, target, ignore_index, label_smoothing)  # type: ignore[no-any-return]
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


def definition(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy in operations that PyTorch can differentiate (any number of times), transform and compile.

    The arguments and the result are those of `cross_entropy`, and so are the numbers. It takes the time and the memory
    of its single operations. A class id outside [0, K) makes a loss of NaN where it cannot be looked at (under
    torch.compile and torch.func) and an IndexError elsewhere.
    """
    dtype = _result_dtype(input, target, weight)
    logits = _classes_last(input).to(_arithmetic(dtype))  # [..., K]
    num_classes = logits.shape[-1]
    divisor: Tensor | float = float(logits.shape[:-1].numel())  # what the mean divides by
    if target.shape == input.shape:
        labels = _classes_last(target).to(logits.dtype)
        share = torch.ones_like(labels[..., :1])
    else:
        _check_ids(target, num_classes, ignore_index)
        counts = (target != ignore_index).unsqueeze(-1)  # [..., 1]
        labels = (target.unsqueeze(-1) == torch.arange(num_classes, device=target.device)) & counts
        # Where an id cannot be looked at, one that is no class makes a NaN of its row.
        share = torch.where(counts & ~labels.any(-1, keepdim=True), torch.nan, counts.to(logits.dtype))
        labels = labels * share
        logits = torch.where(counts, logits, 0)  # so that a NaN in an ignored row reaches nothing
        divisor = labels.sum() if weight is None else (labels * weight).sum()
    if label_smoothing > 0:
        labels = labels * (1 - label_smoothing) + share * (label_smoothing / num_classes)
    if weight is not None:
        labels = labels * weight.to(logits.dtype)
    losses = _from_labels(logits, labels) if num_classes else logits.sum(-1)
    if reduction == "sum":
        losses = losses.sum()
    elif reduction == "mean":
        losses = losses.sum() / (divisor if isinstance(divisor, Tensor) or divisor else torch.nan)
    return losses.to(dtype)


def _from_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_i Q_i log S_i for logits z [..., K] and labels Q [..., K]: the heart of `definition`."""
    z = _shifted(logits, -1)
    log_sum = _log_sum(z, labels.detach().argmax(-1, keepdim=True), -1).squeeze(-1)
    return labels.sum(-1) * log_sum - (labels * torch.where((labels == 0) & z.isinf(), 0, z)).sum(-1)


def _log_sum(z: Tensor, y: Tensor, dim: int) -> Tensor:
    """log sum_k exp(z_k) along `dim`, which is kept, as log(1 + the rest): exact where exp(z_y) is nearly all."""
    rest = z.exp().scatter(dim, y, 0).sum(dim, keepdim=True)
    return torch.log1p(rest + torch.expm1(z.gather(dim, y)))


def _classes_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim < 3 else tensor.movedim(1, -1)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this dtype are computed in."""
    return dtype if dtype == torch.float64 else torch.float32


def _result_dtype(input: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """The loss's dtype: that of the logits, promoted by soft targets; under autocast float32, not 16 bits."""
    dtype = input.dtype
    if target.is_floating_point() and target.dtype != dtype:
        dtype = torch.promote_types(dtype, target.dtype)
    if weight is not None and weight.dtype != dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if dtype.itemsize == 2 and torch.is_autocast_enabled(input.device.type):
        dtype = torch.float32
    return dtype


# -- which arguments, which way ---------------------------------------------------------------------------------------


def _check(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> None:
    """Refuse what PyTorch refuses, and say where it does not fit. Raises: as cross_entropy."""
    for name, value in (("input", input), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    ignore_index = as_int64("ignore_index", ignore_index)
    if reduction not in ("mean", "sum", "none"):
        raise InvalidArgumentError(f"reduction must be mean, sum or none, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise InvalidArgumentError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if input.dtype not in FLOATS:
        raise InvalidArgumentError(f"input must be float32, float64, bfloat16 or float16 logits, got {input.dtype}")
    shape = input.shape
    if not shape:
        raise InvalidArgumentError("input must be [K], [B, K] or [B, K, d1, ...] logits, got a scalar")
    if target.device != input.device:
        raise InvalidArgumentError(f"target is on {target.device}, input on {input.device}; move one with .to(device)")
    num_classes = shape[0 if len(shape) == 1 else 1]
    if target.shape == shape:
        if not target.is_floating_point():
            raise InvalidArgumentError(
                f"target has the shape of input, {list(shape)}: it must hold probabilities (float), got {target.dtype}"
            )
        if ignore_index >= 0:
            raise InvalidArgumentError(f"ignore_index {ignore_index} goes with class ids, not with probabilities")
    else:
        expected = shape[:1] + shape[2:] if len(shape) > 1 else torch.Size()
        if target.shape != expected and not (len(shape) == 1 and target.shape == (1,)):
            raise InvalidArgumentError(
                f"target must be {list(expected)} class ids or {list(shape)} probabilities for input {list(shape)}, "
                f"got {list(target.shape)}"
            )
        if target.dtype not in (torch.int64, torch.uint8):
            raise InvalidArgumentError(f"class ids must be int64 (or uint8), got {target.dtype}; use target.long()")
    if weight is not None:
        if weight.shape != (num_classes,):
            raise InvalidArgumentError(
                f"weight must have one entry for each of {num_classes} classes, got the shape {list(weight.shape)}"
            )
        if target.shape != shape:
            if weight.requires_grad:
                raise InvalidArgumentError("weight cannot require a gradient where the target holds class ids")
            if weight.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
                raise InvalidArgumentError(
                    f"weight must have input's dtype, {input.dtype}, got {weight.dtype}; use weight.to(input.dtype)"
                )


def as_int64(name: str, value: object) -> int:
    """A whole number that PyTorch takes as one: an int, a NumPy integer or a tensor with one; not a bool or a float.

    Raises: TypeError; InvalidArgumentError if it does not fit in int64.
    """
    if type(value) is not int:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError(f"{name} must be an int, got the bool {value}")
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(f"{name} must fit in int64, got {value}")
    return value


def _check_ids(target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raises: IndexError if a class id is outside [0, num_classes). On another device looking would be a wait."""
    if target.device.type != "cpu" or not target.numel() or _is_transformed(target):
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise IndexError(out_of_range(int(target[tuple(place)]), place, num_classes))


def out_of_range(class_id: int, place: list[int], num_classes: int) -> str:
    """The message of an IndexError for the class id at a place of the target."""
    where = f" (at {place} of the target)" if place else ""
    return f"class id {class_id}{where} is out of range: with {num_classes} classes ids go from 0 to {num_classes - 1}"


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


def _is_transformed(tensor: Tensor) -> bool:
    """Whether PyTorch is tracing, transforming or watching operations: it must then see each of them."""
    return type(tensor) not in _PLAIN or is_watched()


_PLAIN = {Tensor, nn.Parameter}


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
                return cpu.usual_step(input, target, self.ignore_index)  # type: ignore[no-any-return]
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
