"""A user's loss with parameters and buffers of its own: they are trained, saved, resumed and evaluated."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.config.objects import with_objects
from softmaxce.errors import ConfigError, TrainingError
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.runs import checkpoint
from softmaxce.runs.folder import BEST, LAST
from softmaxce.training.dry_run import dry_run
from softmaxce.training.evaluation import loss_of
from softmaxce.training.loop import fit
from softmaxce.training.nonfinite import NonFiniteError

from ..helpers import OWN_LOSS, config
from ..own_loss import Scaled

MLP = {"name": "mlp", "hidden": [16, 16]}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.3}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}


def own(**changes: Any) -> Any:
    return config(**{"loss": OWN_LOSS, "model": MLP, "schedule": "constant", **changes})


@pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=lambda optimizer: str(optimizer["name"]))
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_losss_parameter_is_trained_as_a_loop_in_plain_pytorch_trains_it(
    optimizer: dict[str, Any], clip: float | None, accumulated: int
) -> None:
    run = build_run(own(optimizer=optimizer, clip_grad_norm=clip, grad_accum_steps=accumulated, epochs=1))
    model, loss = copy.deepcopy(run.model), copy.deepcopy(run.loss)
    assert isinstance(loss, Scaled)
    batches = [(images.clone(), labels.clone()) for images, labels in run.train.epoch(1)]
    list(fit(run))

    made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer["name"]]
    options = {name: value for name, value in optimizer.items() if name != "name"}
    groups = [{"params": list(model.parameters())}, {"params": list(loss.parameters()), "weight_decay": 0.0}]
    by_hand = made(groups, **options)  # type: ignore[arg-type]
    for start in range(0, len(batches), accumulated):
        group = batches[start : start + accumulated]
        images = sum(len(labels) for _, labels in group)
        for inputs, labels in group:
            (loss(model(inputs), labels) * len(labels) / images).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([*model.parameters(), *loss.parameters()], clip)
        by_hand.step()
        by_hand.zero_grad()

    assert isinstance(run.loss, Scaled)
    assert run.loss.scale.item() != 1.0
    torch.testing.assert_close(run.loss.state_dict(), loss.state_dict(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(run.model.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)


def test_muon_trains_a_losss_parameter_with_adamw() -> None:
    run = build_run(own(optimizer={"name": "muon", "adamw_lr": 0.01, "adamw_weight_decay": 0.5}, epochs=1))
    assert isinstance(run.loss, Scaled)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
    scale = nn.Parameter(run.loss.scale.detach().clone())
    by_hand = torch.optim.AdamW([scale], **options)  # type: ignore[arg-type]

    def step_too(gradient: Tensor) -> None:
        scale.grad = gradient.clone()
        by_hand.step()

    run.loss.scale.register_hook(step_too)
    list(fit(run))
    assert run.loss.scale.item() != 1.0
    assert run.loss.scale.item() == pytest.approx(scale.item(), rel=1e-6)


def test_parameters_that_the_loss_shares_with_the_model_are_trained_once_and_frozen_ones_not_at_all() -> None:
    class Penalized(Scaled):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.scale.requires_grad_(False)

    run = build_run(own())
    twice = build_run(with_objects(own(), model=run.model, loss=Penalized(run.model)))
    assert len(twice.optimizer.param_groups) == 1
    assert len(twice.parameters) == len(list(run.model.parameters())) + 1
    list(fit(twice))
    assert twice.loss.scale.item() == 1.0  # type: ignore[attr-defined]


def test_the_average_of_the_weights_leaves_the_loss_as_it_is_trained() -> None:
    run, plain = build_run(own(model_ema_decay=0.9)), build_run(own())
    list(fit(run))
    list(fit(plain))
    assert run.loss.scale.item() == plain.loss.scale.item() != 1.0  # type: ignore[attr-defined]


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_best_epochs_loss_is_saved_evaluated_and_loaded_with_its_weights(tmp_path: Path) -> None:
    run = build_run(own(epochs=4, best_metric="loss", optimizer={"name": "adamw", "lr": 0.1}))
    seen: list[dict[str, Tensor]] = []

    class Recorder(session.Reporter):
        def epoch(self, epoch: Any) -> None:
            seen.append({name: value.clone() for name, value in run.loss.state_dict().items()})  # type: ignore[attr-defined]

    outcome = session.train(run, tmp_path / "run", reporters=[Recorder()])
    best = seen[outcome.best_epoch - 1]
    saved = load_file(tmp_path / "run" / BEST)
    assert {name: value for name, value in saved.items() if name.startswith("loss/")} == {
        "loss/scale": best["scale"],
        "loss/center": best["center"],
    }
    for file, expected in ((BEST, best), (LAST, seen[-1])):
        model = TrainedModel.open(tmp_path / "run" / file, trust_code=True)
        assert isinstance(model.loss, Scaled)
        assert model.loss.state_dict() == expected
        logits, labels = model.logits("test")
        by_hand = nn.functional.cross_entropy((logits - expected["center"]) * expected["scale"], labels).item()
        assert model.metrics("test").loss == pytest.approx(by_hand, rel=1e-5)
        if file == BEST:
            assert outcome.scores is not None
            assert outcome.scores.loss == pytest.approx(by_hand, rel=1e-5)


def test_evaluations_and_the_trial_before_training_leave_the_losss_statistics_as_they_are() -> None:
    for replace in (False, True):
        run = build_run(own(loss={"name": OWN_LOSS, "replace": replace}))
        assert isinstance(run.loss, Scaled)
        assert run.loss.center.item() == 0.0
        run.loss.center.fill_(0.5)
        logits, labels = torch.randn(7, 10), torch.arange(7)
        value = loss_of(run.loss, logits, labels)
        assert value == pytest.approx(nn.functional.cross_entropy(logits - 0.5, labels).item(), rel=1e-5)
        assert run.loss.center.item() == 0.5
        assert run.loss.training


@pytest.mark.parametrize("replace", [False, True])
def test_a_skipped_step_leaves_the_losss_parameter_and_statistics_as_they_were(replace: bool) -> None:
    run = build_run(own(loss={"name": OWN_LOSS, "replace": replace}, on_nonfinite="skip", epochs=1))
    loss = run.loss
    assert isinstance(loss, Scaled)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    run.train.split.images[:] = 255  # type: ignore[union-attr]
    with torch.no_grad():
        next(run.model.parameters()).fill_(3e38)
    with pytest.raises(NonFiniteError):
        list(fit(run))
    assert loss.state_dict() == before


def test_a_losss_parameter_that_is_not_finite_is_named_and_not_saved(tmp_path: Path) -> None:
    run = build_run(own(epochs=1))
    run.loss.scale.data.fill_(math.nan)  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=r"the parameter 'scale' of the loss, since an earlier step"):
        list(fit(run))
    with pytest.raises(TrainingError, match=r"the loss's parameter 'scale' is not finite"):
        checkpoint.save(run, tmp_path, best=False)


def test_a_gradient_of_the_losss_parameter_that_is_not_finite_stops_the_step() -> None:
    run = build_run(own(epochs=1))
    run.loss.scale.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=r"the gradient of parameter 'scale' of the loss"):
        list(fit(run))
    assert run.loss.scale.item() == 1.0  # type: ignore[attr-defined]


# -- before training --------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_the_losss_parameters_apart_from_the_models() -> None:
    run = build_run(own())
    result = dry_run(run)
    parameters = sum(p.numel() for p in run.model.parameters())
    assert (result["num_parameters"], result["num_trained_of_loss"]) == (parameters, 1)
    assert result["memory"]["parameters"] == 4 * (parameters + 1)


def test_a_loss_that_trains_itself_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no gradient: it must be computed from the logits"):
        build_run(own(loss=OWN_LOSS.replace(":Scaled", ":Detached")))


def test_an_optimizer_that_takes_no_further_group_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import torch\n\n\nclass One(torch.optim.SGD):\n"
        "    def add_param_group(self, group):\n"
        "        if self.param_groups:\n            raise ValueError('one group only')\n"
        "        super().add_param_group(group)\n"
    )
    with pytest.raises(ConfigError, match=r"does not accept the parameters of the loss: .*one group only"):
        build_run(own(optimizer={"name": f"{tmp_path / 'one.py'}:One", "lr": 0.1}))
