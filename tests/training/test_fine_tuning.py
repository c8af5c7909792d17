"""Fine-tuning: frozen layers, learning rates by depth, weight decay by kind; resumed to the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models, ops

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.errors import ConfigError
from softmaxce.models.layers import blocks, last_layer
from softmaxce.models.torchvision_models import torchvision_model
from softmaxce.runs import checkpoint
from softmaxce.training.dry_run import dry_run
from softmaxce.training.loop import fit
from softmaxce.training.run import Epoch

from ..helpers import Softmaxce, config

CNN = {"name": "cnn", "channels": [4, 8], "hidden": 16}  # with batch normalization and dropout
UNFROZEN_LATER = {"freeze": "backbone", "unfreeze_epoch": 3}


def test_the_blocks_of_resnet18_are_its_stem_its_residual_blocks_and_its_head() -> None:
    chain = blocks(models.resnet18())
    residual = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    assert [block.name for block in chain] == ["conv1", *residual, "fc"]


@pytest.mark.parametrize(
    ("name", "count"),  # counted by hand in torchvision's source: stem, blocks, head
    [("vit_b_16", 1 + 12 + 1), ("swin_t", 1 + 12 + 3 + 1), ("convnext_tiny", 1 + 18 + 3 + 1), ("vgg11", 8 + 3),
     ("efficientnet_b0", 1 + 16 + 1 + 1), ("mobilenet_v3_small", 1 + 11 + 1 + 2), ("squeezenet1_1", 1 + 8 + 1)],
)  # fmt: skip
def test_every_parameter_is_in_one_block_and_the_head_is_the_last(name: str, count: int) -> None:
    with torch.device("meta"):
        model = models.get_model(name)
    chain = blocks(model)
    assert len(chain) == count
    parameters = [id(parameter) for block in chain for parameter in block.parameters]
    assert sorted(parameters) == sorted(map(id, model.parameters()))
    assert [id(parameter) for parameter in chain[-1].parameters] == list(map(id, last_layer(model)[1].parameters()))


def test_rates_and_decay_are_those_of_param_groups_written_by_hand() -> None:
    options = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
    changes: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [16, 8]},
        "optimizer": options,
        "schedule": "constant",
    }
    tuned = build_run(config(fine_tuning={"layer_decay": 0.5, "head_lr": 0.03}, no_decay="auto", **changes))
    plain = build_run(config(**changes))
    groups = []
    layers = [module for module in plain.model.modules() if isinstance(module, nn.Linear)]
    for layer, rate in zip(layers, (0.0025, 0.005, 0.03), strict=True):
        groups.append({"params": [layer.weight], "lr": rate, "weight_decay": 0.1})
        groups.append({"params": [layer.bias], "lr": rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, fused=True)
    for epoch in (1, 2):
        for images, labels in plain.train.epoch(epoch):
            plain.loss(plain.model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [epoch.learning_rate for epoch in fit(tuned)] == [0.03, 0.03]
    for ours, reference in zip(tuned.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_decay_leaves_norms_and_biases_undecayed_and_every_matrix_decayed(optimizer: str) -> None:
    decays = {"adamw": {"weight_decay": 0.1}, "muon": {"weight_decay": 0.1, "adamw_weight_decay": 0.1}}
    run = build_run(config(model=CNN, no_decay="auto", optimizer={"name": optimizer, **decays[optimizer]}))
    parameters = dict(run.model.named_parameters())
    rows = dry_run(run)["groups"]
    assert sorted(name for row in rows for name in row["parameters"]) == sorted(parameters)
    for row in rows:
        for name in row["parameters"]:
            assert row["weight_decay"] == (0.0 if parameters[name].ndim == 1 else 0.1), name


def test_frozen_layers_keep_weights_and_statistics_until_the_epoch_in_which_all_are_trained() -> None:
    run = build_run(config(epochs=4, model=CNN, fine_tuning=UNFROZEN_LATER, optimizer={"name": "adamw", "lr": 0.01}))
    head = {f"{last_layer(run.model)[0]}.{name}" for name in ("weight", "bias")}
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    changed = []
    for _ in fit(run):
        now = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        changed.append({name for name, tensor in now.items() if not torch.equal(tensor, before[name])})
        before = now
    assert changed[0] == changed[1] == head
    assert changed[2] == changed[3] == set(before)


class WithFixedPositions(nn.Module):
    """A model that adds fixed numbers to its pixels, as some transformers add the embedding of a position."""

    def __init__(self, *, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(image_size), requires_grad=False)
        self.hidden = nn.Linear(self.positions.numel(), 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden((images + self.positions).flatten(1)).relu())
        return logits


def test_a_parameter_that_the_model_keeps_fixed_stays_so_when_the_backbone_is_unfrozen() -> None:
    run = build_run(config(model=f"{__name__}:WithFixedPositions", epochs=3, fine_tuning=UNFROZEN_LATER))
    list(fit(run))
    assert {name for name, p in run.model.named_parameters() if not p.requires_grad} == {"positions"}
    assert not any(parameter.grad is not None for parameter in run.model.parameters())


class WithBranch(nn.Module):
    """A model whose second layer is used from the second batch on."""

    def __init__(self, *, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(image_size[0] * image_size[1], num_classes) for _ in range(2))
        self.batches = 0

    def forward(self, images: Tensor) -> Tensor:
        self.batches += self.training
        logits = [layer(images.flatten(1)) for layer in self.layers]
        return logits[0] if self.batches < 2 else logits[0] + logits[1]


@pytest.mark.parametrize(
    "changes",
    [{"model": CNN, "fine_tuning": UNFROZEN_LATER}, {"model": f"{__name__}:WithBranch"}],
    ids=["frozen before", "not used before"],
)
def test_fused_sgd_has_a_momentum_for_parameters_whose_gradients_begin_later(changes: dict[str, Any]) -> None:
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    ours, torchs = (build_run(config(epochs=4, optimizer=sgd | {"fused": fused}, **changes)) for fused in (True, False))
    for run in (ours, torchs):
        torch.manual_seed(0)  # of dropout
        list(fit(run))
    for one, other in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class StopsAfter(session.Reporter):
    def __init__(self, epoch: int) -> None:
        self.last = epoch

    def epoch(self, epoch: Epoch) -> None:
        if epoch.number == self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [{"optimizer": {"name": "adamw", "lr": 0.01}, "model_ema_decay": 0.9}, {"optimizer": "muon", "no_decay": "auto"}],
    ids=["adamw and an average", "muon"],
)
def test_a_run_resumed_before_at_or_after_the_unfreezing_ends_with_the_undisturbed_runs_bits(
    stop_after: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    settings = config(epochs=4, model=CNN, fine_tuning={**UNFROZEN_LATER, "layer_decay": 0.8}, **changes)
    whole, resumed = build_run(settings), build_run(settings)
    list(fit(whole))
    with pytest.raises(KeyboardInterrupt):
        session.train(build_run(settings), tmp_path / "run", reporters=[StopsAfter(stop_after)])
    session.train(resumed, tmp_path / "run", resume=True)
    saved = checkpoint.newest(tmp_path / "run")[0]
    assert saved is not None
    for name, tensor in whole.evaluated.state_dict().items():
        assert torch.equal(saved.weights[name], tensor), name


def test_a_model_that_is_all_head_has_no_backbone_to_freeze() -> None:
    with pytest.raises(ConfigError, match=r"fine_tuning\.freeze: linear has no backbone"):
        build_run(config(model="linear", fine_tuning={"freeze": "backbone"}))


def test_the_dry_run_prints_a_line_a_group_and_until_when_the_backbone_is_frozen(
    small: Path, softmaxce: Softmaxce
) -> None:
    small.write_text(small.read_text() + "fine_tuning: {freeze: backbone, unfreeze_epoch: 2, layer_decay: 0.5}\n")
    done = softmaxce("train", "--config", "small.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " .. " in line]
    assert [row[-2:] for row in rows] == [["0.05", "0"], ["0.025", "0"]]
    assert "the last layer alone is trained before epoch 2" in done.stdout
    assert "warning: fine_tuning.freeze without pretrained weights" in done.stderr


@pytest.mark.parametrize(
    ("name", "last"),  # of torchvision's efficientnet the last of 16 blocks has 15/16 of its argument
    [("efficientnet_b0", 15 / 16), ("convnext_tiny", 1.0)],
)
def test_drop_path_is_the_last_blocks_and_rises_as_torchvisions(name: str, last: float) -> None:
    with torch.device("meta"):
        theirs = models.get_model(name, stochastic_depth_prob=0.4 / last, num_classes=3)
        ours = torchvision_model(name, drop_path=0.4, in_channels=3, num_classes=3)
    rates = [[m.p for m in model.modules() if isinstance(m, ops.StochasticDepth)] for model in (ours, theirs)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert max(rates[0]) == pytest.approx(0.4)


def test_dropout_is_torchvisions_own_argument() -> None:
    with torch.device("meta"):
        theirs = models.efficientnet_b0(dropout=0.5)
        ours = torchvision_model("efficientnet_b0", dropout=0.5, in_channels=3, num_classes=3)
    rates = [[m.p for m in model.modules() if isinstance(m, nn.Dropout)] for model in (ours, theirs)]
    assert rates == [[0.5], [0.5]]


@pytest.mark.parametrize(("argument", "message"), [("dropout", "no dropout"), ("drop_path", "no stochastic depth")])
def test_an_architecture_that_drops_nothing_refuses_a_probability(argument: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"resnet18 has {message}"):
        torchvision_model("resnet18", in_channels=3, num_classes=2, **{argument: 0.1})
