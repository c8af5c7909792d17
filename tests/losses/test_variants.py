"""The variants of cross-entropy: their formulas by mpmath, limits, options and derivatives."""

import doctest
import importlib
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from softmaxce.config.registry import LOSSES
from softmaxce.config.signatures import read_signature, signature_of
from softmaxce.losses.variants.focal import FocalLoss
from softmaxce.losses.variants.generalized import GeneralizedCrossEntropy
from softmaxce.losses.variants.logit_adjusted import LogitAdjustedCrossEntropy
from softmaxce.losses.variants.poly import PolyLoss
from softmaxce.losses.variants.softcap import SoftcapCrossEntropy
from softmaxce.losses.variants.symmetric import SymmetricCrossEntropy
from softmaxce.losses.variants.temperature import TemperatureCrossEntropy
from softmaxce.losses.variants.z_loss import ZLossCrossEntropy

Loss = Callable[..., Any]  # (options) -> the module
PRIORS = [1.0, 2.0, 3.0, 4.0, 10.0]

# Arguments with which each variant is cross-entropy, exactly or up to rounding.
LIMITS: dict[str, Loss] = {
    "focal, gamma 0": lambda **options: FocalLoss(0.0, **options),
    "poly, epsilon 0": lambda **options: PolyLoss(0.0, **options),
    "generalized, q 0": lambda **options: GeneralizedCrossEntropy(0.0, **options),
    "generalized, q towards 0": lambda **options: GeneralizedCrossEntropy(1e-16, **options),
    "symmetric, beta 0": lambda **options: SymmetricCrossEntropy(1.0, 0.0, **options),
    "temperature 1": lambda **options: TemperatureCrossEntropy(1.0, **options),
    "cap above all logits": lambda **options: SoftcapCrossEntropy(1e9, **options),
    "tau 0": lambda **options: LogitAdjustedCrossEntropy(0.0, priors=PRIORS, **options),
    "equal priors": lambda **options: LogitAdjustedCrossEntropy(1.0, priors=[3.0] * 5, **options),
    "z_loss 0": lambda **options: ZLossCrossEntropy(0.0, **options),
}
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"weight": WEIGHT},
    {"weight": WEIGHT, "reduction": "none"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weight": WEIGHT},
    {"ignore_index": 2},
    {"ignore_index": 2, "weight": WEIGHT, "label_smoothing": 0.2},
]


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    """Logits [8, 5, ...] and class ids [8, ...]."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(8, 5, *shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (8, *shape), generator=generator)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LIMITS)
def test_in_its_limit_a_variant_is_torchs_cross_entropy_with_every_option(name: str, options: dict[str, Any]) -> None:
    logits, ids = batch()
    soft = torch.softmax(2 * torch.flip(logits, [0]), 1)
    for target in (ids, soft) if "ignore_index" not in options else (ids,):
        leaf, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        expected = functional.cross_entropy(leaf, target, **options)
        got = LIMITS[name](**options)(ours, target)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
        expected.sum().backward()
        got.sum().backward()
        torch.testing.assert_close(ours.grad, leaf.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LIMITS)
def test_in_its_limit_a_variant_is_torchs_cross_entropy_for_logits_of_any_shape(name: str) -> None:
    logits, ids = batch(2, 3)
    for reduction in ("mean", "none"):
        expected = functional.cross_entropy(logits, ids, reduction=reduction, label_smoothing=0.1)
        got = LIMITS[name](reduction=reduction, label_smoothing=0.1)(logits, ids)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    one, id_ = logits[0, :, 0, 0], ids[0, 0, 0]
    torch.testing.assert_close(LIMITS[name]()(one, id_), functional.cross_entropy(one, id_), rtol=1e-12, atol=1e-14)


# -- against the papers' formulas -------------------------------------------------------------------------------------

mp = mpmath.mp
# As functions of the true class's probability p.
OF_P: dict[str, tuple[torch.nn.Module, Callable[[Any], Any]]] = {
    "focal 2": (FocalLoss(2.0), lambda p: -((1 - p) ** 2) * mpmath.log(p)),
    "focal 0.5": (FocalLoss(0.5), lambda p: -mpmath.sqrt(1 - p) * mpmath.log(p)),
    "poly 2": (PolyLoss(2.0), lambda p: -mpmath.log(p) + 2 * (1 - p)),
    "poly -1": (PolyLoss(-1.0), lambda p: -mpmath.log(p) - (1 - p)),
    "poly -0.75": (PolyLoss(-0.75), lambda p: -mpmath.log(p) - mpmath.mpf("0.75") * (1 - p)),
    "generalized 0.5": (GeneralizedCrossEntropy(0.5), lambda p: 2 * (1 - mpmath.sqrt(p))),
    "generalized 1": (GeneralizedCrossEntropy(1.0), lambda p: 1 - p),
    "symmetric": (SymmetricCrossEntropy(0.5, 2.0, -4.0), lambda p: -mpmath.log(p) / 2 + 8 * (1 - p)),
}
GAPS = [-1e4, -200.0, -30.0, -5.0, -0.1, 0.0, 0.3, 1.0, 5.0, 12.0, 17.0, 25.0, 40.0, 60.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OF_P)
def test_value_and_gradient_match_the_papers_formula_in_p_at_any_confidence(name: str, dtype: torch.dtype) -> None:
    loss, formula = OF_P[name]
    unit = torch.finfo(dtype).eps
    for gap in GAPS:
        row = torch.tensor([[gap, 0.0, -0.5]], dtype=dtype, requires_grad=True)
        value = loss(row, torch.tensor([0]))
        value.backward()
        assert row.grad is not None
        with mpmath.workdps(60 + int(max(0, -gap))):
            z = [mpmath.mpf(x) for x in row[0].tolist()]
            e = [mpmath.exp(x) for x in z]
            p = e[0] / mpmath.fsum(e)
            exact = formula(p)
            complement = (e[1] + e[2]) / mpmath.fsum(e)
            h = min(p, complement) * mpmath.mpf(10) ** -20
            slope = (formula(p + h) - formula(p - h)) / (2 * h) * p  # times dp/dz = p (L - S)
            gradient = [slope * complement, -slope * e[1] / mpmath.fsum(e), -slope * e[2] / mpmath.fsum(e)]
        tiny = torch.finfo(dtype).tiny
        units = 24 + max(0, -gap)  # where p is exp(gap), the rounding of gap itself is so many units of p
        for got, true in zip([value.item(), *row.grad[0].tolist()], [exact, *gradient], strict=True):
            assert abs(mpmath.mpf(got) - true) <= units * unit * abs(true) + 2 * tiny, (gap, got, float(true))


def cross_entropy_of(z: list[Any], y: int) -> Any:
    """-log S_y, by mpmath."""
    return mpmath.log(mpmath.fsum(mpmath.exp(x - z[y]) for x in z))


def adjusted_formulas() -> dict[str, tuple[torch.nn.Module, Callable[[list[Any], int], Any]]]:
    priors = [mpmath.mpf(x) / 20 for x in PRIORS]
    return {
        "temperature": (TemperatureCrossEntropy(2.5), lambda z, y: cross_entropy_of([x / 2.5 for x in z], y)),
        "softcap": (
            SoftcapCrossEntropy(4.0),
            lambda z, y: cross_entropy_of([4 * mpmath.tanh(x / 4) for x in z], y),
        ),
        "logit adjustment": (
            LogitAdjustedCrossEntropy(1.5, priors=PRIORS),
            lambda z, y: cross_entropy_of([x + 1.5 * mpmath.log(prior) for x, prior in zip(z, priors, strict=True)], y),
        ),
        "z-loss": (
            ZLossCrossEntropy(0.25),
            lambda z, y: cross_entropy_of(z, y) + mpmath.log(mpmath.fsum(map(mpmath.exp, z))) ** 2 / 4,
        ),
    }


@pytest.mark.parametrize("name", adjusted_formulas())
def test_value_and_gradient_match_the_papers_formula_of_adjusted_logits(name: str) -> None:
    loss, formula = adjusted_formulas()[name]
    logits, ids = batch()
    logits = logits.float().double().requires_grad_()
    values = type(loss).forward(_with_reduction_none(loss), logits, ids)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    with mpmath.workdps(50):
        for z, y, got, slopes in zip(logits.tolist(), ids.tolist(), values.tolist(), gradient.tolist(), strict=True):
            z = [mpmath.mpf(x) for x in z]
            assert got == pytest.approx(float(formula(z, y)), rel=1e-6 if "adjust" in name else 1e-13)
            for i, slope in enumerate(slopes):
                exact = mpmath.diff(lambda x, i=i, z=z, y=y: formula([*z[:i], x, *z[i + 1 :]], y), z[i])
                assert slope == pytest.approx(float(exact), rel=1e-6 if "adjust" in name else 1e-12, abs=1e-14)


def _with_reduction_none(loss: Any) -> Any:
    loss.reduction = "none"
    return loss


# -- options and derivatives ------------------------------------------------------------------------------------------


def all_variants(**options: Any) -> dict[str, torch.nn.Module]:
    return {
        "focal": FocalLoss(1.5, **options),
        "poly": PolyLoss(-0.9, **options),
        "generalized": GeneralizedCrossEntropy(0.7, **options),
        "symmetric": SymmetricCrossEntropy(**options),
        "temperature": TemperatureCrossEntropy(3.0, **options),
        "softcap": SoftcapCrossEntropy(5.0, **options),
        "logit adjustment": LogitAdjustedCrossEntropy(priors=PRIORS, **options).double(),
        "z-loss": ZLossCrossEntropy(0.1, **options),
    }


NAMES = list(all_variants())


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_agree_with_finite_differences(name: str) -> None:
    logits, ids = batch()
    logits = logits[:3].requires_grad_()
    soft = torch.softmax(torch.arange(15.0, dtype=torch.float64).view(3, 5).sin(), 1)
    for options in ({}, {"label_smoothing": 0.1, "weight": WEIGHT}):
        loss = all_variants(**options)[name]
        for target in (ids[:3], soft):
            assert gradcheck(loss, (logits, target))
            assert gradgradcheck(loss, (logits, target))


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_row_changes_no_result_even_if_it_is_nan(name: str) -> None:
    logits, ids = batch()
    ids[2] = 77
    broken = logits.clone()
    broken[2] = math.nan
    keep = torch.arange(8) != 2
    for options in ({}, {"weight": WEIGHT}, {"label_smoothing": 0.1, "weight": WEIGHT}):
        loss = all_variants(ignore_index=77, **options)[name]
        leaf = broken.clone().requires_grad_()
        value = loss(leaf, ids)
        value.backward()
        torch.testing.assert_close(value, loss(logits[keep], ids[keep]))
        assert leaf.grad is not None
        assert (leaf.grad[2] == 0).all()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_one_hot_target_is_that_of_its_class_and_the_loss_is_linear_in_the_target(name: str) -> None:
    logits, ids = batch()
    loss = all_variants(reduction="none", weight=WEIGHT)[name]
    first = functional.one_hot(ids, 5).double()
    second = functional.one_hot((ids + 1) % 5, 5).double()
    torch.testing.assert_close(loss(logits, first), loss(logits, ids))
    mixed = loss(logits, 0.3 * first + 0.7 * second)
    torch.testing.assert_close(mixed, 0.3 * loss(logits, ids) + 0.7 * loss(logits, (ids + 1) % 5))


@pytest.mark.parametrize("name", NAMES)
def test_confident_predictions_right_or_wrong_have_finite_values_and_gradients(name: str) -> None:
    for options in ({}, {"label_smoothing": 0.1}):
        loss = all_variants(**options)[name].float()
        for size in (1e4, 120.0, -120.0, -1e4):
            logits = torch.zeros(2, 5)
            logits[:, 1] = size
            logits[1, 3] = -size
            leaf = logits.requires_grad_()
            value = loss(leaf, torch.tensor([1, 1]))
            value.backward()
            assert value.isfinite()
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_16_bit_logits_give_the_float32_result_rounded_once(name: str) -> None:
    logits, ids = batch()
    loss = all_variants()[name].float()
    for dtype in (torch.bfloat16, torch.float16):
        narrow = logits.to(dtype)
        value = loss(narrow, ids)
        assert value.dtype == dtype
        assert value == loss(narrow.float(), ids).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert loss(narrow, ids).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_under_vmap_and_in_one_graph_of_torch_compile(name: str) -> None:
    logits, ids = batch()
    loss = all_variants(reduction="none")[name]
    torch.testing.assert_close(torch.func.vmap(loss)(logits, ids), loss(logits, ids))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, ids), loss(logits, ids))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FocalLoss(-1.0),
        lambda: FocalLoss(math.nan),
        lambda: PolyLoss(-2.0),
        lambda: GeneralizedCrossEntropy(1.5),
        lambda: SymmetricCrossEntropy(-1.0),
        lambda: SymmetricCrossEntropy(log_zero=0.0),
        lambda: TemperatureCrossEntropy(0.0),
        lambda: SoftcapCrossEntropy(-3.0),
        lambda: LogitAdjustedCrossEntropy(),
        lambda: LogitAdjustedCrossEntropy(priors=[1.0, 0.0]),
        lambda: LogitAdjustedCrossEntropy(class_counts=[5, 0, 2]),
        lambda: LogitAdjustedCrossEntropy(priors=[1.0, 2.0], num_classes=3),
        lambda: LogitAdjustedCrossEntropy(priors=[1.0, 2.0])(torch.zeros(1, 3), torch.tensor([0])),
        lambda: ZLossCrossEntropy(math.inf),
        lambda: FocalLoss(reduction="median"),  # type: ignore[arg-type]
        lambda: FocalLoss(label_smoothing=2.0),
        lambda: FocalLoss(weight=[1.0, 2.0])(torch.zeros(1, 3), torch.tensor([0])),
    ],
)
def test_an_invalid_argument_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"must|are for"):
        wrong()


def test_priors_are_the_class_frequencies_of_the_training_labels() -> None:
    by_counts = LogitAdjustedCrossEntropy(class_counts=[30, 10])
    torch.testing.assert_close(by_counts.log_priors.exp(), torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize(
    "module", ["focal", "poly", "generalized", "symmetric", "temperature", "softcap", "logit_adjusted", "z_loss"]
)
def test_the_examples_in_the_docstrings_print_what_they_show(module: str) -> None:
    loaded = importlib.import_module(f"softmaxce.losses.variants.{module}")
    failed, tried = doctest.testmod(loaded, extraglobs={"torch": torch})
    assert (failed, tried > 0) == (0, True)


# -- signatures -------------------------------------------------------------------------------------------------------

COMMON_OPTIONS = ["weight", "ignore_index", "reduction", "label_smoothing", "class_counts", "num_classes"]


@pytest.mark.parametrize("name", LOSSES)
def test_the_signature_read_from_the_source_is_that_of_the_class_and_ends_with_the_common_options(name: str) -> None:
    module, _, attribute = LOSSES[name].partition(":")
    static = read_signature(LOSSES[name])
    loaded = signature_of(getattr(importlib.import_module(module), attribute))
    assert [(a.name, a.default) for a in static.arguments] == [(a.name, a.default) for a in loaded.arguments]
    assert static.names()[-6:] == COMMON_OPTIONS
    assert not static.takes_any
    assert not loaded.takes_any


def test_the_common_options_may_be_given_by_position() -> None:
    loss = FocalLoss(2.0, [1.0, 3.0], 1, "sum", 0.25)
    assert loss.weight is not None
    assert (loss.weight.tolist(), loss.ignore_index, loss.reduction, loss.label_smoothing) == ([1, 3], 1, "sum", 0.25)


def test_a_users_subclass_has_its_own_signature() -> None:
    class Mine(FocalLoss):
        def __init__(self, extra: float = 1.0, **options: Any) -> None:
            super().__init__(**options)
            self.extra = extra

    class Through(FocalLoss):
        def __init__(self, extra: float = 1.0, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.extra = extra

    assert signature_of(Mine).names() == ["extra"]
    assert signature_of(Mine).takes_any
    assert signature_of(Through).names() == ["extra", "gamma", *COMMON_OPTIONS]
    assert Through(2.0, 3.0, None, 5).ignore_index == 5
