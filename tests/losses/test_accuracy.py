"""The errors of the loss and its gradient against mpmath with 50 digits, compared with those of PyTorch's loss."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from softmaxce import cross_entropy

from .references import BITS, ROWS, cast_row, exact_result, ulp_error


def errors(loss: Callable[..., Tensor], row: Tensor, target: int) -> tuple[float, float]:
    """The loss's error, and the gradient's largest, in units in the last place."""
    leaf = row.clone().unsqueeze(0).requires_grad_()
    value = loss(leaf, torch.tensor([target]))
    value.backward()
    assert leaf.grad is not None
    exact, gradient = exact_result(row, target)
    worst = max(
        ulp_error(got, true, row.dtype) for got, true in zip(leaf.grad[0].double().tolist(), gradient, strict=True)
    )
    return ulp_error(value.item(), exact, row.dtype), worst


DTYPES = list(BITS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradient_are_within_10_ulp_in_32_and_64_bits_and_rounded_once_in_16(dtype: torch.dtype) -> None:
    bound = 10.0 if dtype.itemsize > 2 else 0.501
    for name in ROWS:
        if (case := cast_row(name, dtype)) is not None:
            loss, gradient = errors(cross_entropy, *case)
            assert loss <= bound, name
            assert gradient <= bound, name


@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_of_a_label_far_below_the_largest_logit_is_the_gap(dtype: torch.dtype, classes: int) -> None:
    gaps = torch.arange(1.0, 1200.0, 1.0, dtype=dtype)
    logits = torch.full((len(gaps), classes), -1000.0, dtype=dtype)
    logits[:, 0], logits[:, 1] = gaps, 0
    ids = torch.ones(len(gaps), dtype=torch.int64)
    exact = torch.log1p(torch.exp(-gaps)) + gaps
    for targets in (ids, functional.one_hot(ids, classes).to(dtype)):
        torch.testing.assert_close(cross_entropy(logits, targets, reduction="none"), exact, rtol=1e-6, atol=0)


def test_errors_on_ordinary_logits_exceed_torchs_by_at_most_2_ulp() -> None:
    for name in ("ordinary, 10 classes", "ordinary, 1000 classes", "ordinary, times 10", "near 10,000"):
        row, target = ROWS[name]
        ours, torchs = (errors(loss, row.float(), target) for loss in (cross_entropy, functional.cross_entropy))
        assert ours[0] <= torchs[0] + 2, name
        assert ours[1] <= torchs[1] + 2, name


def test_the_loss_of_a_confident_row_is_accurate_where_torchs_is_0() -> None:
    row, target = ROWS["confident by 17"]
    logits, ids = row.float().unsqueeze(0), torch.tensor([target])
    assert functional.cross_entropy(logits, ids) == 0
    exact, _ = exact_result(row.float(), target)
    assert cross_entropy(logits, ids).item() == pytest.approx(float(exact), rel=1e-6, abs=0)
    assert 1e-9 < float(exact) < 1e-6


def test_the_target_gradient_of_a_confident_row_is_accurate_where_torchs_is_off_by_40_percent() -> None:
    row, target = torch.zeros(2), 0
    row[0] = 20.0
    gradients = []
    for loss in (functional.cross_entropy, cross_entropy):
        leaf = row.unsqueeze(0).requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf, torch.tensor([target])), leaf)[0][0, 0].item())
    exact = float(exact_result(row, target)[1][target])
    assert abs(gradients[0] / exact - 1) > 0.4
    assert abs(gradients[1] / exact - 1) < 1e-6


def test_the_bfloat16_gradient_at_a_gap_of_10_is_rounded_once_where_torchs_is_off_by_50_ulp() -> None:
    row = torch.tensor([10.0, 0.0], dtype=torch.bfloat16)
    assert errors(functional.cross_entropy, row, 0)[1] > 50
    assert errors(cross_entropy, row, 0)[1] <= 0.501


def test_a_float16_mean_over_70001_rows_is_accurate_where_torchs_is_nan() -> None:
    logits = torch.randn(70_001, 10, generator=torch.Generator().manual_seed(1)).half().requires_grad_()
    ids = torch.arange(70_001) % 10
    assert functional.cross_entropy(logits, ids).isnan()
    loss = cross_entropy(logits, ids)
    exact = functional.cross_entropy(logits.detach().double(), ids)
    assert loss.item() == pytest.approx(exact.item(), rel=2**-11)
    with torch.autocast("cpu", torch.bfloat16):  # a float32 loss, which can be scaled as GradScaler does
        (gradient,) = torch.autograd.grad(cross_entropy(logits, ids) * 65536, logits)
    expected = logits.detach().double().softmax(1)
    expected[torch.arange(70_001), ids] -= 1
    torch.testing.assert_close(gradient.double(), expected * 65536 / 70_001, rtol=2**-10, atol=1e-7)


def test_the_polynomial_for_exp_is_within_2_5_ulp_over_its_whole_range() -> None:
    # Two classes, at 0 and z: the gradient of the second is exp(z) / (1 + exp(z)).
    for dtype, lowest in ((torch.float32, -87.0), (torch.float64, -708.0)):
        z = torch.linspace(lowest, -1e-3, 4001, dtype=torch.float64).to(dtype)
        leaf = torch.stack([torch.zeros_like(z), z], 1).requires_grad_()
        cross_entropy(leaf, torch.zeros(len(z), dtype=torch.long), reduction="sum").backward()
        assert leaf.grad is not None
        with mpmath.workdps(40):
            exact = [1 / (1 + mpmath.exp(-mpmath.mpf(number))) for number in z.double().tolist()]
        got = leaf.grad[:, 1].double().tolist()
        assert max(ulp_error(a, b, dtype) for a, b in zip(got, exact, strict=True)) <= 2.5


def test_every_16_bit_number_is_read_exactly_and_written_rounded_to_nearest() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = bits.view(dtype)
        numbers = numbers[numbers.isfinite() & (numbers.abs() < 2**10)].sort().values
        # where z_0 is far above z_1 = 0, the loss of class 1 rounds to z_0, so it shows how z_0 was read
        logits = torch.stack([numbers.float().clamp(min=200).to(dtype), torch.zeros_like(numbers)], 1)
        loss = cross_entropy(logits, torch.ones(len(logits), dtype=torch.long), reduction="none")
        assert torch.equal(loss, logits[:, 0])
        upstream = numbers.float() * 1.37  # a row confident in the wrong class has the gradient -upstream at its target
        leaf = torch.tensor([[60.0, 0.0]], dtype=dtype).expand(len(numbers), 2).clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            losses = cross_entropy(leaf, torch.ones(len(leaf), dtype=torch.long), reduction="none")
        assert losses.dtype == torch.float32
        losses.backward(upstream)
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad[:, 1], (-upstream).to(dtype), rtol=0, atol=0)


def test_peak_memory_is_that_of_the_gradient() -> None:
    for dtype in DTYPES:
        logits = torch.randn(1024, 1000).to(dtype).requires_grad_()
        ids = torch.randint(1000, (1024,))
        cross_entropy(logits, ids).backward()
        logits.grad = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            cross_entropy(logits, ids).backward()
        live = peak = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        assert 0.9 <= peak / logits.nbytes <= 1.1 if dtype != torch.float16 else peak / logits.nbytes <= 1.1


def test_ulp_error_of_a_number_and_its_successor_is_1() -> None:
    for number in (1.0, 3.7, 1e-30, 1e30, 1.2e-40):
        assert (
            ulp_error(
                float(np.float32(number)) + float(np.spacing(np.float32(number))),
                mpmath.mpf(float(np.float32(number))),
                torch.float32,
            )
            == 1
        )


@pytest.mark.parametrize("classes", [3, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_float64_mean_over_100003_equal_rows_is_the_loss_of_one_within_2_units(
    classes: int, weighted: bool
) -> None:
    torch.manual_seed(0)
    row, ids = torch.randn(1, classes, dtype=torch.float64), torch.ones(100_003, dtype=torch.int64)
    weight = torch.full((classes,), 0.1, dtype=torch.float64) if weighted else None
    one, mean = cross_entropy(row, ids[:1]).item(), cross_entropy(row.repeat(100_003, 1), ids, weight).item()
    assert ulp_error(mean, mpmath.mpf(one), torch.float64) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 50])
def test_a_target_of_weight_0_leaves_no_noise_with_smoothing(dtype: torch.dtype, classes: int) -> None:
    for gap in (1, 30, 200):
        logits, weight = torch.full((1, classes), -gap / 2, dtype=dtype), torch.zeros(classes, dtype=dtype)
        logits[0, 1], weight[1] = gap / 2, 1  # all of the weight is on a class that is nearly certain
        loss = cross_entropy(logits, torch.tensor([0]), weight, reduction="sum", label_smoothing=0.1).item()
        exact = mpmath.mpf(0.1) / classes * mpmath.log1p((classes - 1) * mpmath.exp(-gap))
        smallest = torch.finfo(dtype).smallest_normal
        assert loss >= 0
        assert abs(loss - exact) <= 20 * torch.finfo(dtype).eps * exact + smallest
