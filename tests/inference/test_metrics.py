"""Metrics against scikit-learn and hand calculations."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from softmaxce.inference.metrics import compute_metrics, expected_calibration_error
from softmaxce.training.tally import RunningMetrics

NAMES = tuple("abcdefg")


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(7, (500,), generator=generator)
    logits = torch.randn(500, 7, generator=generator) * 2
    logits[torch.arange(500), labels] += 1.5
    return logits, labels


def test_every_metric_is_scikit_learns(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = predictions
    metrics = compute_metrics(logits, labels, 0.5, NAMES)
    probabilities = torch.softmax(logits.double(), 1).numpy()
    predicted = probabilities.argmax(1)
    assert metrics.accuracy == sklearn_metrics.accuracy_score(labels, predicted)
    assert metrics.top5_accuracy == sklearn_metrics.top_k_accuracy_score(labels, probabilities, k=5)
    assert metrics.nll == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), rel=1e-9)
    per_class = [
        sklearn_metrics.brier_score_loss(labels.numpy() == k, probabilities[:, k]) for k in range(7)
    ]  # the multi-class score is the sum of the one-against-rest ones
    assert metrics.brier == pytest.approx(sum(per_class), rel=1e-9)
    table = sklearn_metrics.precision_recall_fscore_support(labels, predicted)
    assert [row.recall for row in metrics.classes] == pytest.approx(table[1])
    assert [row.support for row in metrics.classes] == table[3].tolist()
    assert np.array_equal(metrics.confusion, sklearn_metrics.confusion_matrix(labels, predicted))


def test_calibration_error_by_hand() -> None:
    # two bins of (0.5, 1]: confidences 0.6, 0.6 (one right of two) and 0.9 (right): (2 * |0.5 - 0.6| + |1 - 0.9|) / 3
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 0]), bins=10) == pytest.approx(0.3 / 3)


def test_perfect_confidence_and_accuracy_have_no_calibration_error() -> None:
    assert expected_calibration_error(np.eye(4), np.arange(4)) == 0


def test_a_class_without_images_is_listed_with_zeros() -> None:
    metrics = compute_metrics(torch.eye(3)[:2], torch.tensor([0, 1]), 0.0, ("a", "b", "c"))
    assert (metrics.classes[2].support, metrics.classes[2].recall) == (0, 0.0)


def test_with_five_classes_there_is_no_top_five() -> None:
    metrics = compute_metrics(torch.eye(5), torch.arange(5), 0.0, tuple("abcde"))
    assert metrics.top5_accuracy is None
    assert "top5_accuracy" not in metrics.by_name()


def test_a_tally_weighs_batches_by_their_images() -> None:
    tally = RunningMetrics(torch.device("cpu"))
    tally.add(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    tally.add(torch.tensor(5.0), torch.eye(3)[:1], torch.tensor([1]))
    tally.images = 4
    scores = tally.scores()
    assert (scores.loss, scores.accuracy, scores.images) == ((3 * 1.0 + 5.0) / 4, 3 / 4, 4)


@pytest.mark.parametrize("soft", [False, True])
def test_a_tally_that_waits_has_the_sums_of_one_that_does_not(soft: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    waiting, prompt = RunningMetrics(torch.device("cpu")), RunningMetrics(torch.device("cpu"))
    prompt.max_pending, waiting.max_pending = 0, 60
    for size in (7, 7, 7, 3):
        logits, labels = torch.randn(2, size, 4, generator=generator)
        for tally in (waiting, prompt):
            tally.add(logits.sum(), logits, labels if soft else labels.argmax(1))
    assert waiting.loss.equal(prompt.loss)
    assert waiting.num_correct.equal(prompt.num_correct)
