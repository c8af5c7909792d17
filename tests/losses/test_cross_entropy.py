"""Our loss against SciPy, torch, autograd and hand calculations."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import softmaxce
from softmaxce import SoftmaxCrossEntropy, cross_entropy, log_softmax, one_hot, softmax
from softmaxce.losses.builtin import softmax_cross_entropy
from softmaxce.losses.variants.focal import FocalLoss


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 7, generator=generator) * 4, torch.randint(7, (32,), generator=generator)


logits_rows = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)


@given(logits_rows)
def test_softmax_is_scipys(row: list[float]) -> None:
    ours = softmax(torch.tensor([row], dtype=torch.float64))
    np.testing.assert_allclose(ours, scipy.special.softmax([row], axis=1), rtol=1e-12, atol=1e-300)


@given(logits_rows)
def test_log_softmax_is_scipys_and_finite(row: list[float]) -> None:
    ours = log_softmax(torch.tensor([row], dtype=torch.float64))
    np.testing.assert_allclose(ours, scipy.special.log_softmax([row], axis=1), rtol=1e-12, atol=1e-12)
    assert torch.isfinite(ours).all()


@given(logits_rows, st.floats(-100, 100, width=32))
def test_adding_a_constant_to_every_logit_leaves_softmax_unchanged(row: list[float], shift: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    torch.testing.assert_close(softmax(logits + shift), softmax(logits), rtol=1e-9, atol=1e-12)


def test_the_loss_of_three_logits_is_that_computed_by_hand() -> None:
    total = math.exp(2) + math.exp(1) + math.exp(0.1)
    loss = cross_entropy(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / total), rel=1e-6)


def test_one_hot_is_torchs(batch: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(one_hot(batch[1], 7), functional.one_hot(batch[1], 7).float())


def test_the_gradient_is_softmax_minus_one_hot(batch: tuple[Tensor, Tensor]) -> None:
    logits = batch[0].requires_grad_()
    cross_entropy(logits, batch[1], reduction="sum").backward()
    expected = scipy.special.softmax(batch[0].detach().numpy(), axis=1) - np.eye(7)[batch[1]]
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


def test_the_loss_is_finite_where_softmax_reaches_zero() -> None:
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    assert softmax(logits)[0, 0] == 0  # so its log would be -inf
    loss = cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 200
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1.0, 1.0]]


def test_a_class_at_minus_infinity_adds_nothing_to_the_loss() -> None:
    logits = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_of_weight_0_at_minus_infinity_adds_nothing_to_a_smoothed_loss(
    dtype: torch.dtype, classes: int
) -> None:
    logits = torch.full((2, classes), -50.0, dtype=dtype)
    logits[:, :3] = torch.tensor([-math.inf, 1, 2])
    weight = torch.arange(classes, dtype=dtype)
    leaf = logits.requires_grad_()
    loss = cross_entropy(leaf, torch.tensor([0, 0]), weight, reduction="sum", label_smoothing=0.1)
    loss.backward()
    label = 0.1 / classes * weight.double()  # Q_i = weight_i L_i; 0 for the true class, whose weight is 0
    by_hand = label.sum() * math.log(math.exp(1) + math.exp(2)) - (label[1:] * logits.detach()[0, 1:].double()).sum()
    assert loss.item() == pytest.approx(2 * by_hand.item(), rel=1e-6)
    assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weight": torch.tensor([1.0, 2, 3, 0.5, 0, 1, 4])},
    {"weight": torch.tensor([1.0, 2, 3, 0.5, 0.1, 1, 4]), "label_smoothing": 0.3},
    {"ignore_index": 3},
    {"ignore_index": -100, "weight": torch.tensor([1.0, 2, 3, 0.5, 0.1, 1, 4]), "label_smoothing": 0.3},
]


@pytest.mark.parametrize("soft", [False, True], ids=["ids", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_values_and_gradients_are_torchs(
    batch: tuple[Tensor, Tensor], options: dict[str, object], reduction: str, soft: bool
) -> None:
    logits, targets = batch[0].double(), batch[1]
    if soft:
        targets = torch.softmax(logits.flip(0), 1)
        options = {name: value for name, value in options.items() if name != "ignore_index"}
    options = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    results = []
    for function in (cross_entropy, functional.cross_entropy):
        leaf = logits.clone().requires_grad_()
        value = function(leaf, targets, reduction=reduction, **options)
        value.sum().backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_the_gradient_agrees_with_finite_differences(batch: tuple[Tensor, Tensor]) -> None:
    logits = batch[0][:4].double().requires_grad_()
    soft = torch.softmax(batch[0][4:8].double(), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, q: cross_entropy(z, q, label_smoothing=0.1), (logits, soft))


def test_half_precision_logits_are_rounded_once(batch: tuple[Tensor, Tensor]) -> None:
    logits = batch[0].bfloat16()
    exact = functional.cross_entropy(logits.double(), batch[1], reduction="none")
    ours = cross_entropy(logits, batch[1], reduction="none")
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - exact).abs() <= exact * 2**-8).all()


def test_the_loss_under_autocast_has_torchs_dtype(batch: tuple[Tensor, Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = batch[0].bfloat16()
        assert cross_entropy(logits, batch[1]).dtype == functional.cross_entropy(logits, batch[1]).dtype


def test_the_error_for_a_class_id_out_of_range_names_it() -> None:
    with pytest.raises(IndexError, match=r"class id 7 \(at \[0\] of the target\) is out of range: with 7 classes"):
        cross_entropy(torch.zeros(1, 7), torch.tensor([7]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 2.0}, r"in \[0, 1\], got 2"),
        ({"weight": torch.ones(3)}, "each of 7 classes"),
        ({"reduction": "median"}, "mean, sum or none"),
    ],
)
def test_the_error_for_a_wrong_argument_states_the_rule(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_entropy(torch.zeros(1, 7), torch.tensor([0]), **arguments)  # type: ignore[arg-type]


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"target must be \[2\] class ids"):
        cross_entropy(torch.zeros(2, 7), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inverse_root", lambda count: 1 / math.sqrt(count)),
        ("effective_number", lambda count: 1 / sum(0.9999**i for i in range(count))),  # Cui et al. 2019, eq. 1
    ],
)
def test_weights_made_of_counts_are_in_the_published_ratios_and_1_in_the_mean_over_images(
    name: str, expected: Callable[[int], float]
) -> None:
    counts = [1, 30, 5000]
    for loss in (softmax_cross_entropy(name, class_counts=counts), FocalLoss(weight=name, class_counts=counts)):  # type: ignore[arg-type]
        weight = loss.weight
        assert weight is not None
        ratios = weight.double() / weight[0].double()
        torch.testing.assert_close(ratios, torch.tensor([expected(n) / expected(1) for n in counts]).double())
        assert (weight.double() * torch.tensor(counts)).sum().item() == pytest.approx(sum(counts), rel=1e-6)
    with pytest.raises(ValueError, match=f"weight: {name} needs training images of every class"):
        softmax_cross_entropy(name, class_counts=[3, 0])  # type: ignore[arg-type]


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [5, 30, 65])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    loss = softmax_cross_entropy("balanced", class_counts=[5, 30, 65])
    np.testing.assert_allclose(loss.weight, expected, rtol=1e-6)


def test_a_wrong_number_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="each of the 3 classes, got 2"):
        softmax_cross_entropy([1.0, 2.0], num_classes=3)


def test_the_module_is_a_drop_in_replacement_for_torchs(batch: tuple[Tensor, Tensor]) -> None:
    weight = torch.rand(7)
    ours = SoftmaxCrossEntropy(weight, ignore_index=2, label_smoothing=0.1)
    torchs = nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    torch.testing.assert_close(ours(*batch), torchs(*batch))


@settings(deadline=None)
@given(logits_rows, st.data())
def test_the_loss_is_finite_and_not_negative(row: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    loss = cross_entropy(torch.tensor([row]), torch.tensor([target]))
    assert math.isfinite(loss.item())
    assert loss.item() >= 0


def test_compiled_kernels_are_cached_once_in_the_users_folder_and_not_in_the_package(tmp_path: Path) -> None:
    package = Path(softmaxce.__file__).parent
    before = sorted(package.rglob("*.nb*"))
    call = (
        "import torch, softmaxce; from softmaxce.models.max_pool import MaxPool2x2;"
        "softmaxce.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]));"
        "softmaxce.cross_entropy(torch.zeros(2, 40), torch.tensor([0, 1]));"
        "MaxPool2x2()(torch.zeros(1, 1, 2, 2).to(memory_format=torch.channels_last))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"} | {"NUMBA_OPT": "1"}
    for _ in range(2):  # the second process loads what the first has compiled
        subprocess.run([sys.executable, "-c", call], env=environment | {"XDG_CACHE_HOME": str(tmp_path)}, check=True)
        files = sorted(file.name.split(".locals")[0] for file in (tmp_path / "softmaxce").rglob("*.nbc"))
        assert files == ["cross_entropy.kernel_for"] * 2 + ["max_pool.kernel_for"]
    assert sorted(package.rglob("*.nb*")) == before


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12))
def test_log_softmax_is_accurate_for_confident_rows_too(logits: list[float]) -> None:
    with mpmath.workdps(120):
        log_sum = mpmath.log(mpmath.fsum(mpmath.exp(each) for each in logits))
        exact = [float(each - log_sum) for each in logits]
    assert log_softmax(torch.tensor(logits)).tolist() == pytest.approx(exact, rel=2e-5, abs=1e-38)  # z - max rounds


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6))
def test_log_softmax_has_scipys_values_and_the_gradient_one_hot_minus_softmax(logits: list[float]) -> None:
    leaf = torch.tensor([logits, logits[::-1]], dtype=torch.float64, requires_grad=True)
    ours = log_softmax(leaf, 0)
    np.testing.assert_allclose(
        ours.detach(), scipy.special.log_softmax(leaf.detach().numpy(), 0), rtol=1e-12, atol=1e-14
    )
    (gradient,) = torch.autograd.grad(ours[0].sum(), leaf)
    probabilities = scipy.special.softmax(leaf.detach().numpy(), 0)
    np.testing.assert_allclose(gradient, np.array([[1.0], [0.0]]) - probabilities, atol=1e-12)


@pytest.mark.parametrize("function", [softmax, log_softmax])
def test_a_list_in_place_of_logits_is_refused_by_its_name_and_type(function: Callable[[Any], Tensor]) -> None:
    with pytest.raises(TypeError, match="logits must be a Tensor, got list"):
        function([2.0, 1.0])


def test_one_hot_takes_integers_of_any_dtype_and_refuses_everything_else() -> None:
    with pytest.raises(TypeError, match="targets must be a Tensor, got int"):
        one_hot(2, 3)  # type: ignore[arg-type]
    for other in (torch.float32, torch.float16, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"class ids must be integers, got {other}; use targets.long()"):
            one_hot(torch.ones(2, dtype=other), 3)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        ids = torch.tensor([2, 0, 1], dtype=dtype)
        assert torch.equal(one_hot(ids, 3), functional.one_hot(ids.long(), 3).float())
