"""Several processes train as one does, and as torch's DistributedDataParallel; they fail together. Two launches."""

from itertools import chain
from typing import Any

import pytest

from .launch import run_claims

Results = list[dict[str, Any]]  # by rank


@pytest.fixture(scope="module")
def two() -> Results:
    """What two processes say of each claim."""
    return run_claims(2)


@pytest.fixture(scope="module")
def four() -> Results:
    """What four processes say."""
    return run_claims(4)


LIKE_ONE = (
    *("plain", "fine_tuned", "distilled", "weighted", "ignored", "summed", "accumulated", "per_image", "augmented"),
    "growing",
)


@pytest.mark.parametrize("claim", LIKE_ONE)
def test_two_processes_train_as_one_up_to_rounding(two: Results, claim: str) -> None:
    result = two[0][claim]
    assert result["steps"] >= 5
    assert result["loss"] <= 1e-5
    assert result["weights"] <= 1e-5


@pytest.mark.parametrize("claim", ["weighted", "accumulated", "augmented"])
def test_four_processes_train_as_one_up_to_rounding(four: Results, claim: str) -> None:
    assert four[0][claim]["loss"] <= 1e-5
    assert four[0][claim]["weights"] <= 1e-5


def test_batches_of_7_and_last_ones_of_2_to_4_are_shared_exactly(two: Results, four: Results) -> None:
    for results in (two, four):
        for result in results[0]["uneven"]:
            assert result["loss"] <= 1e-5
            assert result["weights"] <= 1e-6


def test_averaged_weights_are_those_of_one_process_and_with_batch_norm_the_same_in_all(two: Results) -> None:
    difference, sums = two[0]["averaged"]
    assert difference <= 1e-5
    assert sums[0] == sums[1]


def test_20_steps_are_those_of_distributed_data_parallel(two: Results) -> None:
    assert two[0]["with_ddp"] <= 1e-6


def test_every_image_of_an_epoch_is_trained_on_once(two: Results, four: Results) -> None:
    for results in (two, four):
        shares = [result["images_of_an_epoch"] for result in results]
        assert sorted(chain(*shares)) == list(range(5003))
        assert max(map(len, shares)) - min(map(len, shares)) <= 80  # of 79 batches, one image each


def test_all_processes_hold_the_same_bits_whatever_each_of_them_draws(two: Results, four: Results) -> None:
    assert all(result["everything_random"] == [True, True] for result in two)
    assert all(result["random_in_buckets"] == [True, True, True] for result in four)


def test_the_images_of_a_folder_are_decoded_by_one_process_of_a_machine(two: Results) -> None:
    assert sorted(result["decoded"] for result in two) == [0, 12]


def test_an_unused_parameter_has_no_gradient_and_a_constant_buffer_stays(two: Results) -> None:
    for result in two:
        about = result["unused_parameter"]
        assert about == {"unused": [1.0, 1.0, 1.0], "gradient": True, "mask": pytest.approx(0.1, abs=1e-8)}


def test_logits_and_metrics_of_an_evaluation_are_those_of_one_process_to_the_bit(two: Results, four: Results) -> None:
    assert all(result["evaluated"] == [True, True, True] for result in (*two, *four))


def test_an_error_in_one_process_ends_all_of_them_by_one_line_that_names_it(two: Results, four: Results) -> None:
    for results in (two, four):
        kind, status, message = results[1]["one_raises"]
        assert (kind, status) == ("TrainingError", 1)
        assert message.startswith("epoch 2: a wrong turn (claims.py:")
        others = [result["one_raises"] for rank, result in enumerate(results) if rank != 1]
        for kind, status, message in others:
            assert (kind, status) == ("PeerError", 1)
            assert message.startswith(f"process 1 of {len(results)}: a wrong turn (claims.py:")


@pytest.mark.parametrize(
    ("model", "begun", "reductions"),
    [("accumulated", 9, 10), ("partly used", 2, 6), ("reentrant", 5, 12)],
)
def test_gradients_reduced_in_buckets_during_the_backward_pass_give_the_same_bits(
    two: Results, model: str, begun: int, reductions: int
) -> None:
    for result in two:
        assert result["bucketed"][model] == [True, begun, reductions]


def test_an_error_in_the_backward_pass_of_one_process_ends_all_though_buckets_are_begun(
    two: Results, four: Results
) -> None:
    for results in (two, four):
        for rank, result in enumerate(results):
            kind, status, message = result["one_fails_in_backward"]
            assert (kind, status) == ("TrainingError" if rank == 1 else "PeerError", 1)
            assert "a wrong turn back (claims.py:" in message
            assert "\n" not in message


@pytest.mark.parametrize("claim", ["one_is_nan", "nan_in_buckets"])
def test_a_loss_that_is_not_finite_in_one_process_stops_or_skips_the_step_in_all(two: Results, claim: str) -> None:
    for result in two:
        stopped, skipped, count, same = result[claim]
        assert stopped[:2] == ["TrainingError", 1]
        assert "the training loss is nan in epoch 1, batch 4" in stopped[2]
        assert (skipped, count, same) == (["", 0, ""], 1, True)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("other_images", "process 1 of 2 has a train split of 95 images, and process 0 has 96"),
        ("other_config", "process 1 of 2 has another config: optimizer.lr is 0.1, and 0.05 in process 0"),
        ("other_version", "process 1 of 2 has torch 9.9"),
        ("one_cannot_build", "data.validation: cannot choose 50 of 20 images"),
        ("one_misses_a_collective", "images: there is no such folder"),
    ],
)
def test_processes_that_differ_are_refused_by_one_line(two: Results, claim: str, message: str) -> None:
    for result in two:
        _, status, text = result[claim]
        assert status == 2
        assert message in text
        assert "\n" not in text
