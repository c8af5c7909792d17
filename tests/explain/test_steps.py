"""Every number of an explanation is SciPy's, or follows from a law."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch.nn import functional

from softmaxce.explain.steps import Steps, take_steps

Case = tuple[NDArray[np.float64], int | NDArray[np.float64], dict[str, Any]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Logits, a label (an id or shares), and the options of a loss: plain, smoothed, weighted, of soft labels."""
    k = draw(st.integers(2, 12))
    logits = np.array(draw(st.lists(st.floats(-60, 60), min_size=k, max_size=k)))
    target: int | NDArray[np.float64] = draw(st.integers(0, k - 1))
    if draw(st.booleans()):
        parts = np.array(draw(st.lists(st.floats(0.01, 1), min_size=k, max_size=k)))
        target = parts / parts.sum()
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.floats(0, 1))
    if draw(st.booleans()):
        options["weight"] = torch.tensor(draw(st.lists(st.floats(0.1, 5), min_size=k, max_size=k)), dtype=torch.float64)
    return logits, target, options


def steps_of(case: Case, **more: Any) -> Steps:
    logits, target, options = case
    given_target = target if isinstance(target, int) else torch.tensor(target)
    return take_steps(torch.tensor(logits), given_target, **options, **more)


@given(cases())
def test_every_step_is_scipys(case: Case) -> None:
    logits, target, options = case
    steps = steps_of(case)
    k = len(logits)
    label = np.eye(k)[target] if isinstance(target, int) else target
    smoothing = options.get("label_smoothing", 0.0)
    q = (1 - smoothing) * label + smoothing / k
    q = q * options["weight"].numpy() if "weight" in options else q
    expected = {
        "logits": logits,
        "shifted": logits - logits.max(),
        "exponentials": np.exp(logits - logits.max()),
        "exponential_sum": np.exp(logits - logits.max()).sum(),
        "probabilities": softmax(logits),
        "log_probabilities": log_softmax(logits),
        "label": label,
        "targets": q,
        "terms": -q * log_softmax(logits),
        "loss": -(q * log_softmax(logits)).sum(),
        "bits": -(q * log_softmax(logits)).sum() / np.log(2),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(steps, name), value, rtol=1e-6, atol=1e-14, err_msg=name)


@given(cases())
def test_the_loss_and_the_gradient_are_pytorchs_autograds(case: Case) -> None:
    logits, target, options = case
    steps = steps_of(case)
    leaf = torch.tensor(logits).unsqueeze(0).requires_grad_()
    targets = torch.tensor([target]) if isinstance(target, int) else torch.tensor(target).unsqueeze(0)
    loss = functional.cross_entropy(leaf, targets, reduction="none", **options).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    np.testing.assert_allclose(steps.loss, loss.item(), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(steps.gradient, leaf.grad[0].numpy(), rtol=1e-6, atol=1e-12)


@given(cases())
def test_a_step_against_the_gradient_never_raises_the_loss(case: Case) -> None:
    steps = steps_of(case)
    moved = np.array(steps.logits) - steps.step.size * np.array(steps.gradient)
    np.testing.assert_allclose(steps.step.logits, moved)
    np.testing.assert_allclose(steps.step.probabilities, softmax(moved), rtol=1e-6, atol=1e-300)
    np.testing.assert_allclose(
        steps.step.loss, -(np.array(steps.targets) * log_softmax(moved)).sum(), rtol=1e-6, atol=1e-14
    )
    assert steps.step.loss <= steps.loss * (1 + 1e-12)


@given(cases())
def test_no_probabilities_reach_a_loss_below_the_least(case: Case) -> None:
    steps = steps_of(case)
    q = np.array(steps.targets)
    shared = q[q > 0]
    np.testing.assert_allclose(steps.least, -(shared * np.log(shared / q.sum())).sum(), rtol=1e-6, atol=1e-12)
    assert steps.least <= steps.loss * (1 + 1e-9) + 1e-12


@given(cases())
def test_the_loss_has_its_least_value_at_the_probabilities_that_least_at_gives(case: Case) -> None:
    steps = steps_of(case)
    s, q = np.array(steps.least_at), np.array(steps.targets)
    np.testing.assert_allclose(s.sum(), 1)
    np.testing.assert_allclose(-(q[q > 0] * np.log(s[q > 0])).sum(), steps.least, rtol=1e-9, atol=1e-12)


def test_with_weights_the_loss_is_least_at_the_weighted_label_and_not_at_the_label() -> None:
    # Q = [0.7, 0.6, 0], which sums to 1.3: S = [7/13, 6/13, 0]
    steps = take_steps(torch.zeros(3), torch.tensor([0.7, 0.3, 0.0]).double(), weight=torch.tensor([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(steps.least_at, [7 / 13, 6 / 13, 0], atol=1e-12)
    assert steps.least == pytest.approx(-0.7 * math.log(7 / 13) - 0.6 * math.log(6 / 13))
    assert steps.least < -0.7 * math.log(0.7) - 0.6 * math.log(0.3)


def test_a_label_whose_weight_is_0_has_no_loss_at_any_probabilities() -> None:
    steps = take_steps(torch.tensor([2.0, 1.0]), 0, weight=torch.tensor([0.0, 1.0]))
    assert (steps.loss, steps.least, steps.least_at) == (0, 0, (0, 0))


@given(cases(), st.floats(0.1, 10))
def test_the_temperature_divides_the_logits(case: Case, temperature: float) -> None:
    steps = steps_of(case, temperature=temperature)
    np.testing.assert_allclose(steps.raw_logits, case[0])
    np.testing.assert_allclose(steps.probabilities, softmax(case[0] / temperature), rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("gap", [1.0, 20.0, 50.0, 300.0])
def test_a_sure_models_loss_and_gradient_keep_their_digits(gap: float) -> None:
    steps = take_steps(torch.tensor([gap, 0.0], dtype=torch.float64), 0)
    assert steps.loss == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-14)
    assert steps.gradient[0] == pytest.approx(-math.exp(-gap) / (1 + math.exp(-gap)), rel=1e-14)
    assert steps.gradient[1] == pytest.approx(math.exp(-gap) / (1 + math.exp(-gap)), rel=1e-14)


def test_the_example_of_the_article_is_the_one_done_by_hand() -> None:
    # e^2 = 7.389056, e^1 = 2.718282, e^0.1 = 1.105171; their sum 11.212509
    steps = take_steps(torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64), 0)
    np.testing.assert_allclose(steps.probabilities, [0.659001, 0.242433, 0.098566], atol=1e-6)
    np.testing.assert_allclose(steps.loss, math.log(11.212509) - 2, atol=1e-6)
    np.testing.assert_allclose(steps.gradient, [0.659001 - 1, 0.242433, 0.098566], atol=1e-6)
    assert steps.terms[1:] == (0.0, 0.0)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        ([1.0], 0, {}, "two classes"),
        ([1.0, math.inf], 0, {}, "finite"),
        ([1.0, 2.0], 2, {}, "out of range"),
        ([1.0, 2.0], 0, {"temperature": 0.0}, "temperature"),
        ([1.0, 2.0], 0, {"label_smoothing": 1.5}, "label_smoothing"),
        ([1.0, 2.0], 0, {"weight": torch.tensor([1.0])}, "weight"),
        ([1.0, 2.0], torch.tensor([1.5, -0.5]), {}, "target"),
    ],
)
def test_what_does_not_fit_is_refused(logits: list[float], target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        take_steps(torch.tensor(logits), target, **options)
