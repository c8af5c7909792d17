"""Fuzz the losses: `python -m tests.fuzz.losses --rounds 20000 --seed 0`. A round depends on its seed alone.

Each round makes logits, targets, weights and an upstream gradient of some shape, dtype and layout, and compares value
and gradient with the formula in long double, written here in NumPy. A number is right if it is within the rounding of
its dtype, or as close to the formula as torch.nn.functional.cross_entropy's. The variants of cross-entropy are compared
with their own result for contiguous tensors.
"""

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from softmaxce import SoftmaxCrossEntropy, cross_entropy, linear_cross_entropy
from softmaxce.losses.variants.focal import FocalLoss
from softmaxce.losses.variants.generalized import GeneralizedCrossEntropy
from softmaxce.losses.variants.logit_adjusted import LogitAdjustedCrossEntropy
from softmaxce.losses.variants.poly import PolyLoss
from softmaxce.losses.variants.softcap import SoftcapCrossEntropy
from softmaxce.losses.variants.symmetric import SymmetricCrossEntropy
from softmaxce.losses.variants.temperature import TemperatureCrossEntropy
from softmaxce.losses.variants.z_loss import ZLossCrossEntropy

Array = np.ndarray[Any, np.dtype[np.longdouble]]

UNIT = {torch.float32: 4e-6, torch.float64: 2e-14, torch.bfloat16: 2.0**-8 * 1.01, torch.float16: 2.0**-11 * 1.01}
SMALLEST = {torch.float32: 3e-45, torch.float64: 1e-322, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
VARIANTS: dict[str, Callable[..., torch.nn.Module]] = {
    "focal": lambda **options: FocalLoss(1.5, **options),
    "generalized": lambda **options: GeneralizedCrossEntropy(0.7, **options),
    "poly": lambda **options: PolyLoss(2.0, **options),
    "softcap": lambda **options: SoftcapCrossEntropy(30.0, **options),
    "symmetric": lambda **options: SymmetricCrossEntropy(0.1, 1.0, **options),
    "temperature": lambda **options: TemperatureCrossEntropy(2.0, **options),
    "z-loss": lambda **options: ZLossCrossEntropy(0.1, **options),
}


# -- tensors in unusual layouts ---------------------------------------------------------------------------------------


def in_random_layout(numbers: Tensor, rng: random.Random) -> Tensor:
    """The numbers in a random layout; where elements share memory, some of the numbers repeat."""
    shape, flat = numbers.shape, numbers.reshape(-1)
    kinds = ["dense", "offset", "strided", "reversed dimensions", "negative", "size 1"]
    if numbers.ndim == 2 and numbers.numel():
        kinds += ["expanded", "unfolded", "overlapping", "transposed", "gaps"]
    match rng.choice(kinds):
        case "offset":
            offset = rng.randrange(1, 9)
            return torch.cat([flat[:1].expand(offset), flat])[offset:].view(shape)
        case "strided":
            return torch.stack([numbers, numbers.flip(0)], -1)[..., 0]
        case "reversed dimensions":
            order = tuple(reversed(range(numbers.ndim)))
            return numbers.permute(order).contiguous().permute(order)
        case "negative" if numbers.is_floating_point():
            return torch._neg_view(-numbers)
        case "size 1":
            strides = [
                rng.choice((0, 1, s, 977)) if n == 1 else s for n, s in zip(shape, numbers.stride(), strict=True)
            ]
            return numbers.contiguous().as_strided(shape, strides)
        case "expanded":
            return numbers[:1].expand(shape) if rng.random() < 0.5 else numbers[:, :1].expand(shape)
        case "unfolded":
            return flat[: sum(shape) - 1].unfold(0, shape[1], 1) if len(flat) >= sum(shape) - 1 else numbers
        case "overlapping":
            return flat.contiguous().as_strided(shape, (rng.randrange(shape[1] + 1), 1))
        case "transposed":
            return flat.view(shape[1], shape[0]).t()
        case "gaps":
            return functional.pad(numbers, (2, rng.randrange(1, 5)))[:, 2 : 2 + shape[1]]
    return numbers


def logits_of(shape: tuple[int, ...], dtype: torch.dtype, rng: random.Random, generator: torch.Generator) -> Tensor:
    """Random logits, some of them infinite, NaN or huge."""
    scale, shift = rng.choice((0.1, 1.0, 1.0, 10.0, 100.0, 3e3)), rng.choice((0.0, 0.0, 0.0, -50.0, 2e3))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
    if rng.random() < 0.25:
        huge = 0.4 * torch.finfo(dtype).max
        special = torch.tensor(
            rng.choice(([float("-inf")], [float("inf")], [float("nan")], [huge, -huge], [0.0, -0.0]))
        )
        is_special = torch.rand(shape, generator=generator) < rng.choice((0.02, 0.3, 1.0))
        special_logits = special.double()[torch.randint(len(special), shape, generator=generator)]
        logits = torch.where(is_special, special_logits, logits)
    return logits.to(dtype)


@dataclass
class Case:
    """A call: logits and target, and cross_entropy's options."""

    logits: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor


def case_of(rng: random.Random) -> Case:
    """A random case."""
    generator = torch.Generator().manual_seed(rng.randrange(2**40))
    dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16))
    rows = rng.choice((1, 1, 2, 3, 17, 130, 300))
    classes = rng.choice((1, 2, 3, 10, 31, 32, 33, 100, 700, 1100))
    shape: tuple[int, ...] = (rows, classes)
    if rng.random() < 0.15:
        shape = rng.choice(((classes,), (min(rows, 17), classes, 2), (2, classes, 1, 3)))
    logits = in_random_layout(logits_of(shape, dtype, rng, generator), rng)
    target_shape = shape[:1] + shape[2:] if len(shape) > 1 else ()
    options: dict[str, Any] = {"reduction": rng.choice(("mean", "sum", "none"))}
    if rng.random() < 0.3:
        weight = torch.rand(classes, generator=generator).to(dtype)
        weight[torch.rand(classes, generator=generator) < 0.1] = 0
        options["weight"] = weight if rng.random() < 0.5 else torch.stack([weight, weight], 1)[:, 0]
        if rng.random() < 0.2:
            options["weight"] = weight[:1].expand(classes)
    if rng.random() < 0.3:
        options["label_smoothing"] = rng.choice((0.1, 0.5, 1.0, rng.random()))
    if rng.random() < 0.35:
        labels = torch.randn(shape, generator=generator).softmax(0 if len(shape) == 1 else 1)
        labels[torch.rand(shape, generator=generator) < 0.2] = 0
        target = in_random_layout(labels.to(dtype), rng)
    else:
        target = torch.randint(classes, target_shape, generator=generator)
        if rng.random() < 0.4:
            options["ignore_index"] = rng.choice((-100, -1, 0, classes - 1, 2**40))
            target = target.where(torch.rand(target_shape, generator=generator) < 0.7, options["ignore_index"])
        target = in_random_layout(target, rng)
        if rng.random() < 0.1:
            target = target.reshape(-1)[0].expand(target_shape)
    upstream = torch.ones(())
    if rng.random() < 0.7:
        upstream = torch.tensor(rng.choice((2.5, -1.0, 0.0, 1e-3)))
    if options["reduction"] == "none":
        upstream = upstream.expand(target_shape)
        if rng.random() < 0.5:
            upstream = in_random_layout(torch.rand(target_shape, generator=generator), rng)
    return Case(logits, target, options, upstream.to(dtype))


# -- the formula ------------------------------------------------------------------------------------------------------


def formula(case: Case, *, graph: bool = False) -> tuple[Array, Array, Array, Array]:
    """Value and gradient in long double, and for each the magnitude of its terms, which bounds the rounding error.

    T S - Q cancels for soft and smoothed labels, and with `graph` for all, where PyTorch's operations compute it.
    """
    shape = case.logits.shape
    x, q = (_rows(each) for each in (case.logits, case.target if case.target.shape == shape else case.logits))
    soft = case.target.shape == shape
    num_rows, num_classes = x.shape
    smoothing, weight = case.options.get("label_smoothing", 0.0), np.ones(num_classes, np.longdouble)
    if "weight" in case.options:
        weight = np.array(case.options["weight"].double().tolist(), np.longdouble)
    counts = np.ones(num_rows, bool)
    if not soft:
        ids = np.array(case.target.reshape(-1).tolist())
        counts = ids != case.options.get("ignore_index", -100)
        q = np.zeros((num_rows, num_classes), np.longdouble)
        q[counts, ids[counts]] = 1
    divisor = np.longdouble(num_rows) if soft else (q * weight).sum()
    label = np.where(counts[:, None], weight * ((1 - smoothing) * q + np.longdouble(smoothing) / num_classes), 0)
    with np.errstate(all="ignore"):
        top = x.max(1, keepdims=True)
        is_top = np.arange(num_classes) == x.argmax(1)[:, None]
        rest = np.where(is_top, 0, np.exp(x - top)).sum(1, keepdims=True)  # S of the largest logit is 1 / (1 + rest)
        log_s = x - top - np.log1p(rest)
        terms = np.where(label == 0, 0, -label * log_s)
        losses = terms.sum(1)
        not_finite = ~np.isfinite(top[:, 0])
        total = label.sum(1, keepdims=True)
        others = total - label if soft or smoothing else np.where(label == 0, total, 0)
        slopes = np.where(is_top, others - total * rest / (1 + rest), total * np.exp(log_s) - label)
        losses[not_finite], slopes[not_finite] = np.nan, np.nan
        losses[~counts], slopes[~counts] = 0, 0
        sizes = np.where(label == 0, 0, label * (np.abs(x - top) + np.abs(log_s - x + top))).sum(1)
        reduction = case.options["reduction"]
        factor = 1 / divisor if reduction == "mean" else np.longdouble(1)
        upstream = np.array(case.upstream.double().reshape(-1).tolist(), np.longdouble)
        slopes = np.where(counts[:, None], slopes * factor * upstream[:, None], 0)
        each = np.abs(slopes) + np.abs(total * factor * upstream[:, None]) * (soft or smoothing > 0 or graph)
        if reduction == "none":
            return losses, slopes, sizes, each
        return losses.sum() * factor, slopes, np.nansum(np.abs(losses) + sizes) * np.abs(factor), each


def _rows(tensor: Tensor) -> Array:
    tensor = tensor.movedim(1, -1) if tensor.ndim > 2 else tensor
    return np.array(tensor.double().tolist(), np.longdouble).reshape(-1, tensor.shape[-1])


def wrong(mine: Tensor, torchs: Tensor, exact: Array, sizes: Array, roundings: float = 1.0) -> bool:
    """Whether a number is neither within rounding, nor as close to the formula as torch's, nor torch's inf or NaN."""
    dtype = mine.dtype
    got, torchs_numbers = (_flat(each, exact) for each in (mine, torchs))
    with np.errstate(all="ignore"):
        rounded = np.array(torch.tensor(exact.astype(np.float64)).to(dtype).tolist(), np.longdouble)
        allowed = (
            roundings * UNIT[dtype] * (np.abs(exact) + np.where(np.isfinite(sizes), sizes, 0))
            + 2 * roundings * SMALLEST[dtype]
        )
        error = np.abs(got - exact)
        right = (error <= allowed) | (got == rounded) | (np.isnan(got) & np.isnan(exact))
        right |= error <= np.abs(torchs_numbers - exact)
        right |= ~np.isfinite(torchs_numbers) & ((got == torchs_numbers) | (np.isnan(got) & np.isnan(torchs_numbers)))
    return not bool(right.all())


def _flat(tensor: Tensor, like: Array) -> Array:
    if np.ndim(like) == 2:
        return _rows(tensor)
    return np.array(tensor.double().tolist(), np.longdouble).reshape(np.shape(like))


# -- a round ----------------------------------------------------------------------------------------------------------


def value_and_gradient(loss: Callable[..., Tensor], case: Case, mode: str = "once") -> tuple[Tensor, Tensor]:
    """A loss's value and gradient. The mode says which other backward passes are run, or that a graph is created."""
    leaf = case.logits.detach().requires_grad_()
    value = loss(leaf, case.target, **case.options)
    upstream = case.upstream.to(value.dtype)
    if mode == "twice":
        torch.autograd.grad(value, leaf, upstream, retain_graph=True)
    if mode == "first":
        torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=True)
    (gradient,) = torch.autograd.grad(value, leaf, upstream, create_graph=mode == "graph")
    return value.detach(), gradient.detach()


def attempt(seed: int) -> str | None:
    """Run one round. Returns: what is wrong, if anything."""
    rng = random.Random(seed)
    case = case_of(rng)
    mode = rng.choice(("once", "once", "twice", "first", "graph"))
    what = f"{seed}: {list(case.logits.shape)} {case.logits.dtype} {case.logits.stride()} {case.options} {mode}"
    if rng.random() < 0.25:
        return _variant_differs(case, rng, what)
    exact = formula(case, graph=mode == "graph")
    torchs = value_and_gradient(functional.cross_entropy, case)
    loss = _as_module if rng.random() < 0.3 else cross_entropy
    results = {"cross_entropy": value_and_gradient(loss, case, mode)}
    # If every row is ignored, linear_cross_entropy's mean is NaN and its gradient 0.
    finite = bool(case.logits.isfinite().all()) and not np.isnan(exact[0]).any()
    if case.logits.ndim == 2 and finite and rng.random() < 0.3:
        results["linear_cross_entropy"] = value_and_gradient(_as_linear, case)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            value = loss(case.logits, case.target, **case.options)
        if not torch.equal(value.nan_to_num(7), results["cross_entropy"][0].nan_to_num(7)) and mode != "graph":
            return f"{what}: another value under {context.__name__}"
    for name, (value, gradient) in results.items():
        # linear_cross_entropy rounds the logits' gradient, the product and the factor; second derivatives use
        # PyTorch's operations, which round z - max.
        roundings = 4.0 if name == "linear_cross_entropy" else 1.0
        if mode == "graph" and name == "cross_entropy":
            roundings += float(case.logits.double().nan_to_num(0, 0, 0).abs().max())
        if wrong(value, torchs[0], exact[0], exact[2], roundings):
            return f"{what}: {name} {value}, torch {torchs[0]}, exactly {exact[0]}"
        if wrong(gradient, torchs[1], exact[1], exact[3], roundings):
            return f"{what}: {name}'s gradient {gradient}, torch {torchs[1]}, exactly {exact[1]}"
    return None


def _as_module(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    value: Tensor = SoftmaxCrossEntropy(**options)(logits, target)
    return value


def _as_linear(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(logits, torch.eye(logits.shape[1], dtype=logits.dtype), target, **options)


def _variant_differs(case: Case, rng: random.Random, what: str) -> str | None:
    name = rng.choice((*VARIANTS, "logit adjusted"))
    classes = case.logits.shape[0 if case.logits.ndim == 1 else 1]
    if name == "logit adjusted":
        loss: torch.nn.Module = LogitAdjustedCrossEntropy(1.0, [1.0 + n % 3 for n in range(classes)], **case.options)
    else:
        loss = VARIANTS[name](**case.options)

    def call(logits: Tensor, target: Tensor, **_: Any) -> Tensor:
        value: Tensor = loss(logits, target)
        return value

    dense = [torch.tensor(each.tolist(), dtype=each.dtype) for each in (case.logits, case.target, case.upstream)]
    pairs = value_and_gradient(call, case), value_and_gradient(call, Case(dense[0], dense[1], case.options, dense[2]))
    for mine, expected in zip(*pairs, strict=True):
        rounding = UNIT[mine.dtype]  # PyTorch's operations sum in another order in another layout
        if not torch.allclose(mine, expected, rtol=rounding, atol=rounding * 10, equal_nan=True):
            return f"{what}: {name} {mine}, with a dense layout {expected}"
    return None


def main() -> int:
    """Exit status 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each further round adds 1")
    arguments = parser.parse_args()
    findings = []
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        if (finding := attempt(seed)) is not None:
            findings.append(finding)
            print(finding, file=sys.stderr, flush=True)
    print(f"{arguments.rounds} rounds, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
