"""Metrics against scikit-learn and hand calculations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from softmaxce.inference.metrics import compute_metrics
from softmaxce.training.metrics import expected_calibration_error
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


@st.composite
def outputs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with ties, and labels of some of the classes only."""
    classes, images = draw(st.integers(2, 6)), draw(st.integers(1, 30))
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    labels = draw(st.lists(st.sampled_from(present), min_size=images, max_size=images))
    rows = st.lists(st.integers(-3, 3), min_size=classes, max_size=classes)
    logits = draw(st.lists(rows, min_size=images, max_size=images))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


@settings(max_examples=60)
@given(outputs())
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_the_metrics_of_unequal_classes_are_scikit_learns_also_where_classes_are_absent(
    both: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = both
    names = tuple("abcdef"[: logits.shape[1]])
    metrics = compute_metrics(logits, labels, None, names)
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    probabilities = torch.log_softmax(logits.double(), 1).exp().numpy()  # as the metrics: their ties are these
    f1 = sklearn_metrics.f1_score(true, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1 == pytest.approx(f1, rel=1e-12)
    balanced = sklearn_metrics.balanced_accuracy_score(true, predicted)
    assert metrics.balanced_accuracy == pytest.approx(balanced, rel=1e-12)
    present = np.unique(true)
    recalls = sklearn_metrics.recall_score(true, predicted, labels=present, average=None)
    assert metrics.worst_class_recall == pytest.approx(recalls.min(), rel=1e-12)
    if len(present) == 1:
        assert np.isnan([metrics.macro_roc_auc, metrics.macro_average_precision]).all()
        return
    columns, one_hot = probabilities[:, present], true[:, None] == present
    for value, score in (
        (metrics.macro_roc_auc, sklearn_metrics.roc_auc_score),
        (metrics.macro_average_precision, sklearn_metrics.average_precision_score),
    ):
        assert value == pytest.approx(score(one_hot, columns, average="macro"), rel=1e-12)


def test_with_all_classes_present_the_area_is_scikit_learns_multiclass_one(
    predictions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = predictions
    probabilities = torch.softmax(logits.double(), 1).numpy()
    expected = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert compute_metrics(logits, labels, None, NAMES).macro_roc_auc == pytest.approx(expected, rel=1e-12)


def test_a_nan_in_a_logit_raises_nothing_and_makes_the_rankings_nan() -> None:
    metrics = compute_metrics(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), torch.tensor([1, 0]), None, ("a", "b"))
    assert np.isnan([metrics.nll, metrics.macro_roc_auc, metrics.macro_average_precision]).all()
