"""The limits of the number formats are NumPy's and torch's; the right way is the loss that trains."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional

from softmaxce import cross_entropy
from softmaxce.explain.numerics import FORMATS, compare_formats, underflow_point
from softmaxce.explain.steps import take_steps


@pytest.mark.parametrize(
    ("name", "least"), [("float64", -1074), ("float32", -149), ("bfloat16", -133), ("float16", -24)]
)
def test_softmax_reaches_0_where_half_the_least_number_lies(name: str, least: int) -> None:
    # exp(-gap) rounds to 0 below half of the least positive number, 2^(least - 1)
    limit, coarse = underflow_point(name), torch.finfo(FORMATS[name]).eps
    assert limit.gap == pytest.approx(-(least - 1) * math.log(2), rel=coarse)


@pytest.mark.parametrize("name", FORMATS)
def test_torchs_softmax_reaches_log_0_for_the_pair_shown_and_its_loss_does_not(name: str) -> None:
    limit = underflow_point(name)
    logits = torch.tensor([limit.logits], dtype=FORMATS[name])
    assert -functional.softmax(logits, 1).log()[0, 1].item() == limit.naive == math.inf
    ids = torch.tensor([1])
    assert limit.right == functional.cross_entropy(logits, ids).item() == cross_entropy(logits, ids).item()


@pytest.mark.parametrize("logits", [[2.0, 1.0, 0.1], [30.0, -3.0, 0.5], [0.0, 12.0, -200.0]])
@pytest.mark.parametrize("target", [0, 2])
def test_the_right_way_is_the_loss_that_trains_and_the_naive_one_is_softmax_and_log(
    logits: list[float], target: int
) -> None:
    for computed in compare_formats(take_steps(torch.tensor(logits, dtype=torch.float64), target)):
        row = torch.tensor([logits], dtype=torch.float64).to(FORMATS[computed.format])
        eps = torch.finfo(row.dtype).eps
        assert computed.right == pytest.approx(cross_entropy(row, torch.tensor([target])).item(), rel=2 * eps)
        assert computed.naive == pytest.approx(
            -functional.softmax(row, 1).log()[0, target].item(), rel=2 * eps, abs=eps
        )
    assert compare_formats(take_steps(torch.tensor(logits).double(), target))[0].right == pytest.approx(
        -log_softmax(np.float32(logits).astype(np.float64))[target], rel=1e-9
    )
