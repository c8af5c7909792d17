"""The target distribution, by hand."""

import pytest
import torch

from softmaxce.losses.targets import target_distribution, weights_of_ids

LOGITS = torch.zeros(3, 3)
WEIGHT = torch.tensor([1.0, 2.0, 4.0])


def test_class_ids_are_smoothed_then_weighted_and_the_mean_divides_by_their_weights() -> None:
    target = torch.tensor([0, 2, -100])
    q, divisor, counts = target_distribution(target, LOGITS, WEIGHT, -100, 0.3, is_soft=False)
    by_hand = [[0.8 * 1, 0.1 * 2, 0.1 * 4], [0.1 * 1, 0.1 * 2, 0.8 * 4], [0, 0, 0]]
    torch.testing.assert_close(q, torch.tensor(by_hand))
    assert divisor == 1 + 4
    assert counts is not None
    assert counts.tolist() == [True, True, False]


def test_probabilities_are_smoothed_then_weighted_and_the_mean_divides_by_their_number() -> None:
    target = torch.tensor([[0.5, 0.5, 0.0]]).expand(3, 3)
    q, divisor, counts = target_distribution(target, LOGITS, WEIGHT, -100, 0.3, is_soft=True)
    torch.testing.assert_close(q, torch.tensor([[0.45 * 1, 0.45 * 2, 0.1 * 4]]).expand(3, 3))
    assert divisor == 3
    assert counts is None


def test_an_id_out_of_range_is_refused_and_under_vmap_makes_its_row_nan() -> None:
    target = torch.tensor([0, 7, 2])

    def distribution(ids: torch.Tensor) -> torch.Tensor:
        return target_distribution(ids, LOGITS, WEIGHT, -100, 0.3, is_soft=False).probabilities

    with pytest.raises(IndexError, match=r"class id 7 \(at \[1\] of the target\) is out of range"):
        distribution(target)
    (rows,) = torch.func.vmap(distribution)(target.unsqueeze(0))
    assert rows.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("class_id", [3, 7, -1, 2**62])
def test_looking_up_the_weight_of_an_id_out_of_range_reads_no_memory_beyond_the_weights(class_id: int) -> None:
    # on CUDA, where ids are not checked beforehand, such a read would abort the process
    assert weights_of_ids(torch.tensor([class_id]), WEIGHT, -100, torch.float32).item() in WEIGHT
    assert weights_of_ids(torch.tensor([-100]), torch.tensor([float("inf")]), -100, torch.float32).item() == 0
