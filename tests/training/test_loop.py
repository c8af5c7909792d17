"""The training loop: its arithmetic, its repeatability, and what a run may not do."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from softmaxce.argument_types import METRICS
from softmaxce.build import build_run
from softmaxce.errors import ConfigError, DataError, TrainingError
from softmaxce.inference.metrics import compute_metrics
from softmaxce.losses import cuda
from softmaxce.runs.checkpoint import load, restore, save
from softmaxce.runs.folder import LAST
from softmaxce.training.evaluation import evaluate_epoch, loss_of, predict
from softmaxce.training.loop import fit

from ..helpers import VARIANTS, config, train_and_list_metrics


def test_a_run_is_a_plain_pytorch_loop() -> None:
    run, twin = build_run(config(data__validation=None)), build_run(config(data__validation=None))
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.05, momentum=0.9, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    criterion = nn.CrossEntropyLoss()
    torch.manual_seed(5)
    for epoch in (1, 2):
        for images, labels in twin.train.epoch(epoch):
            optimizer.zero_grad()
            criterion(twin.model(images), labels).backward()
            optimizer.step()
            scheduler.step()
    torch.manual_seed(5)  # dropout draws the same
    list(fit(run))
    for ours, reference in zip(run.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_ours_and_pytorchs_loss_give_the_same_curve_for_100_steps() -> None:
    curves = []
    for loss in ("softmax_cross_entropy", "torch_cross_entropy"):
        run = build_run(config(loss={"name": loss, "label_smoothing": 0.1}, data__train=1600, data__batch_size=16))
        curve = []
        torch.manual_seed(1)
        for (images, labels), _ in zip((b for e in (1, 2) for b in run.train.epoch(e)), range(100), strict=False):
            value = run.loss(run.model(images), labels)
            value.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            curve.append(value.item())
        curves.append(curve)
    assert len(curves[0]) == 100
    assert curves[0][0] > 2 * curves[0][-1]  # it did learn
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_the_same_config_twice_gives_the_same_bits() -> None:
    assert train_and_list_metrics(build_run(config())) == train_and_list_metrics(build_run(config()))


def test_another_seed_gives_another_curve() -> None:
    assert train_and_list_metrics(build_run(config())) != train_and_list_metrics(build_run(config(seed=1)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_interrupted_and_resumed_is_bit_identical(variant: str, stop_after: int, tmp_path: Path) -> None:
    settings = config(epochs=3, **VARIANTS[variant])
    whole = build_run(settings)
    expected = train_and_list_metrics(whole)
    first = build_run(settings)
    for epoch in fit(first):
        save(first, tmp_path, best=epoch.best)
        if epoch.number == stop_after:
            break
    torch.rand(100)  # another process would stand elsewhere
    second = build_run(settings)
    restore(second, load(tmp_path / LAST))
    assert train_and_list_metrics(second) == expected[stop_after:]
    for name in ("model", "loss") if isinstance(whole.loss, nn.Module) else ("model",):
        pairs = zip(
            getattr(second, name).state_dict().values(), getattr(whole, name).state_dict().values(), strict=True
        )
        assert all(torch.equal(ours, reference) for ours, reference in pairs), name
    assert second.progress == whole.progress


def test_accumulating_two_half_batches_is_one_whole_batch() -> None:
    model = {"name": "mlp", "hidden": [16]}
    whole = build_run(config(model=model, data__batch_size=24, data__validation=None, epochs=1))
    halves = build_run(config(model=model, data__batch_size=12, data__validation=None, epochs=1, grad_accum_steps=2))
    list(fit(whole))
    list(fit(halves))
    for one, two in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_the_average_of_the_weights_is_the_one_evaluated() -> None:
    run = build_run(config(model_ema_decay=0.99))
    expected = [parameter.detach().clone() for parameter in run.model.parameters()]
    first = True
    original = run.average.update_parameters  # type: ignore[union-attr]

    def by_hand(model: nn.Module) -> None:
        nonlocal first
        for mean, now in zip(expected, model.parameters(), strict=True):
            mean.copy_(now.detach() if first else 0.99 * mean + 0.01 * now.detach())
        first = False
        original(model)

    run.average.update_parameters = by_hand  # type: ignore[union-attr, method-assign]
    list(fit(run))
    for ours, reference in zip(run.evaluated.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, reference)


def test_a_score_does_not_depend_on_the_evaluation_batch() -> None:
    loss = {"name": "softmax_cross_entropy", "weight": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}
    one, other = (build_run(config(data__eval_batch_size=size, loss=loss)) for size in (1, 64))
    assert one.validation is not None
    assert other.validation is not None
    first, second = evaluate_epoch(one, one.validation), evaluate_epoch(other, other.validation)
    assert first.accuracy == second.accuracy
    assert first.loss == pytest.approx(second.loss, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_score_is_per_image_whatever_the_reduction(reduction: str) -> None:
    run = build_run(config(loss={"name": "softmax_cross_entropy", "reduction": reduction}))
    assert run.validation is not None
    logits, labels = predict(run.model, run.validation)
    assert loss_of(run.loss, logits, labels) == pytest.approx(nn.functional.cross_entropy(logits, labels).item())


def test_evaluation_draws_no_random_numbers_and_leaves_the_mode() -> None:
    run = build_run(config())
    assert run.validation is not None
    before = torch.get_rng_state()
    evaluate_epoch(run, run.validation)
    assert torch.equal(before, torch.get_rng_state())
    assert run.model.training


def test_the_test_set_is_not_looked_at_while_a_validation_split_decides() -> None:
    assert [epoch.test for epoch in fit(build_run(config()))] == [None, None]


def test_without_a_validation_split_the_test_set_selects_nothing() -> None:
    epochs = list(fit(build_run(config(data__validation=None))))
    assert all(epoch.test is not None and epoch.validation is None and not epoch.best for epoch in epochs)


def test_early_stopping_counts_epochs_without_improvement() -> None:
    run = build_run(config(epochs=6, optimizer={"name": "sgd", "lr": 1e-12}, early_stopping={"patience": 2}))
    assert [epoch.epochs_without_improvement for epoch in fit(run)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("loss", "accuracy")])
def test_any_metric_of_eval_selects_the_best_epoch_and_stops_a_run_early(name: str) -> None:
    changes = {"data__noise": 2.0, "data__train": 48, "optimizer": {"name": "sgd", "lr": 0.02}}
    run = build_run(config(epochs=5, best_metric=name, early_stopping={"patience": 2}, **changes))
    assert run.validation is not None
    best, waited = -math.inf, 0
    for epoch in fit(run):
        logits, labels = predict(run.evaluated, run.validation)
        measured = compute_metrics(logits, labels, None, run.classes).by_name()[name]
        assert epoch.validation is not None
        assert epoch.validation.to_dict()[name] == measured
        value = -measured if name in ("nll", "brier", "ece") else measured
        best, waited = (value, 0) if value > best else (best, waited + 1)
        assert (epoch.best, epoch.epochs_without_improvement) == (waited == 0, waited)
    assert run.progress.best_value == abs(best)


def test_metrics_that_are_not_asked_for_are_not_computed() -> None:
    run = build_run(config())
    assert run.validation is not None
    scores = evaluate_epoch(run, run.validation)
    assert scores is not None
    assert scores.to_dict().keys() == {"loss", "accuracy"}


@pytest.mark.parametrize("key", ["best_metric", "metrics", "schedule.metric"])
def test_a_metric_that_the_validation_split_cannot_have_is_refused_with_its_key(key: str) -> None:
    plateau = {"schedule": {"name": "reduce_on_plateau", "metric": "top5_accuracy"}}
    changes = {"best_metric": {"best_metric": "top5_accuracy"}, "metrics": {"metrics": ["top5_accuracy"]}}
    with pytest.raises(ConfigError, match=rf"{key}: with 3 classes there is no top-5 accuracy"):
        build_run(config(data__classes=3, **changes.get(key, plateau)))


def test_a_diverging_run_fails_with_the_epoch_and_the_learning_rate() -> None:
    run = build_run(config(optimizer={"name": "sgd", "lr": 1e30}, schedule="constant"))
    with pytest.raises(TrainingError, match=r"the training loss is nan in epoch 1, batch 2 \(learning rate 1e\+30\)"):
        list(fit(run))


def test_train_limit_and_validation_share_no_image() -> None:
    run = build_run(config(data__train_limit=20, data__validation=24))
    assert (run.train.num_images, run.validation and run.validation.num_images) == (20, 24)
    assert run.validation is not None
    kept = {image.numpy().tobytes() for image in run.train.split.take(torch.arange(20)).images}  # type: ignore[union-attr]
    held = {image.numpy().tobytes() for image in run.validation.split.take(torch.arange(24)).images}  # type: ignore[union-attr]
    assert not kept & held


def test_normalisation_comes_from_the_training_images_alone() -> None:
    run = build_run(config())
    pixels = run.train.split.images.double() / 255  # type: ignore[union-attr]
    assert run.preprocessing.mean == pytest.approx((pixels.mean().item(),))
    assert run.preprocessing.std == pytest.approx((pixels.std(correction=0).item(),))


USER_CODE = """\
import torch
from torch import nn
from softmaxce.data.splits import Dataset, InMemory

class Net(nn.Module):
    def __init__(self, width: int = 4, *, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.LazyConv2d(width, 3), nn.Flatten(), nn.LazyLinear(num_classes))
    def forward(self, images):
        return self.net(images)

class Wrong(nn.Module):
    def forward(self, images):
        return images.flatten(1)

class Tilted(nn.Module):
    def __init__(self, tau: float = 1.0):
        super().__init__()
        self.tau = tau
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits / self.tau, targets, reduction="none")

def sharper(logits, targets, tau=1.0, *, class_counts=None):
    assert class_counts is None or sum(class_counts) > 0
    return nn.functional.cross_entropy(logits / tau, targets)

made = Tilted(0.5)

def vector(logits, targets):
    return logits

def make_vector():
    return vector

def squares(*, seed):
    images = torch.zeros(60, 1, 9, 9, dtype=torch.uint8)
    images[::2, :, 2:5, 2:5] = 255
    split = InMemory(images, torch.arange(60) % 2)
    return Dataset(split, split, ("square", "blank"))

def mislabelled():
    split = InMemory(torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.tensor([0, 1, 2, 5]))
    return Dataset(split, None, ("a", "b", "c"))
"""


@pytest.fixture
def user_code(tmp_path: Path) -> str:
    file = tmp_path / f"mine_{tmp_path.name.replace('-', '_')}.py"
    file.write_text(USER_CODE)
    return str(file)


def test_the_users_own_model_loss_and_data_train(user_code: str) -> None:
    data = {"name": f"{user_code}:squares", "batch_size": 10}
    run = build_run(
        config(model={"name": f"{user_code}:Net", "width": 3}, loss=f"{user_code}:Tilted", data=data, epochs=5)
    )
    epochs = list(fit(run))
    assert run.classes == ("square", "blank")
    assert epochs[-1].test is not None
    assert epochs[-1].test.accuracy == 1.0


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "CODE:Tilted", "tau": 0.5},  # a class
        {"name": "CODE:sharper", "tau": 0.5},  # a plain function, with an argument
        "CODE:made",  # an object made already
        "torch.nn.functional:cross_entropy",
        {"name": "torch.nn.functional:cross_entropy", "reduction": "sum"},
        "softmaxce:cross_entropy",
    ],
    ids=str,
)
def test_a_loss_may_be_a_class_a_plain_function_or_an_object(loss: Any, user_code: str) -> None:
    located = yaml.safe_load(yaml.safe_dump(loss).replace("CODE", user_code))
    run = build_run(config(loss=located, epochs=1))
    tau = 0.5 if "CODE" in str(loss) else 1.0
    logits, labels = predict(run.model, run.validation)
    expected = nn.functional.cross_entropy(logits / tau, labels).item()
    assert loss_of(run.loss, logits, labels) == pytest.approx(expected, rel=1e-6)
    assert len(list(fit(run))) == 1


def test_a_misspelt_argument_of_a_plain_function_is_named(user_code: str) -> None:
    with pytest.raises(ConfigError, match="sharper takes no 'taw'; did you mean 'tau'"):
        config(loss={"name": f"{user_code}:sharper", "taw": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "CODE:Wrong"},
            r"must turn images \[B, C, H, W\] into logits \[B, 10\]; for B = 2 it gave \[2, 256\]",
        ),
        (
            {"loss": "CODE:make_vector"},
            r"must return a scalar or one loss per image \[B\]; for B = 2 it gave \[2",
        ),
        ({"model": {"name": "lenet"}, "data__size": 8}, "lenet: images must be at least 12x12, got 8x8"),
        ({"loss": {"name": "softmax_cross_entropy", "weight": [1.0]}}, "each of the 10 classes, got 1"),
        ({"data__validation": 96}, r"data.validation: cannot choose 96 of 96 images"),
        ({"data__normalize": {"mean": [0.1, 0.2], "std": [1.0, 1.0]}}, "each of 1 channels, got 2 and 2"),
        ({"device": "cuda:99"}, "'cuda:99' is not there"),
        ({"mixup_alpha": 0.2, "loss": "CODE:OnlyIds"}, "cannot take logits .* and probabilities"),
    ],
)
def test_parts_that_do_not_fit_are_named_before_training(changes: dict[str, Any], message: str, user_code: str) -> None:
    with Path(user_code).open("a") as stream:
        stream.write("\ndef OnlyIds():\n    return lambda z, t: nn.functional.nll_loss(z, t)\n")
    located = {k: v.replace("CODE", user_code) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message):
        build_run(config(**located))


def test_a_label_outside_the_classes_is_refused(user_code: str) -> None:
    with pytest.raises(DataError, match="the train split has the label 5; with 3 classes"):
        build_run(config(data={"name": f"{user_code}:mislabelled"}))


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 1, 20261124123456, 2**63 - 1])
def test_any_seed_of_63_bits_trains(seed: int) -> None:
    assert len(list(fit(build_run(config(seed=seed))))) == 2


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="there is only one class, 'class0'"):
        build_run(config(data__classes=1))


def test_a_class_id_that_a_gpu_has_met_is_named_at_the_end_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    met = torch.tensor([12, 10])  # as a kernel notes it: the id, and the number of classes
    monkeypatch.setitem(cuda._invalid_ids, torch.device("cpu"), met)
    with pytest.raises(IndexError, match="class id 12 is out of range: with 10 classes"):
        next(fit(build_run(config())))
    assert not met.any()
