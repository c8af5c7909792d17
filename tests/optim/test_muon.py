"""Muon against its published update, worked out anew in float64, and against torch's own."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from softmaxce.build import build_run
from softmaxce.errors import ConfigError
from softmaxce.models.airbench import Airbench
from softmaxce.models.resnet import resnet18
from softmaxce.optim.muon import Muon, hidden_weights, orthogonalized
from softmaxce.runs.checkpoint import load, restore, save
from softmaxce.runs.folder import LAST
from softmaxce.training.loop import fit

from ..helpers import config, train_and_list_metrics


def published(weight: np.ndarray, gradients: list[np.ndarray], lr: float, momentum: float) -> np.ndarray:
    """The post's update in float64, through the singular values: M = mu M + G; G + mu M; each s -> f(f(...)); step."""
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + gradient
        left, values, right = np.linalg.svd(gradient + momentum * average, full_matrices=False)
        values = values / np.sqrt((values**2).sum())
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        weight = weight - lr * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * (left * values) @ right
    return weight


def net() -> nn.Sequential:
    """A model with a hidden layer that is tall, one that is wide and one of filters."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * 16, 12),
        nn.Linear(12, 30),
        nn.Linear(30, 5),
    )


def test_the_step_is_the_published_one_for_matrices_and_for_filters() -> None:
    model = net()
    optimizer = Muon(model.parameters(), model, lr=0.1, momentum=0.9)
    weights = hidden_weights(model)
    assert [list(weight.shape) for weight in weights] == [[6, 4, 3, 3], [12, 96], [30, 12]]
    before = [weight.detach().flatten(1).double().numpy().copy() for weight in weights]
    generator = torch.Generator().manual_seed(3)
    seen: list[list[np.ndarray]] = [[] for _ in weights]
    for _ in range(4):
        for weight, gradients in zip(weights, seen, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            gradients.append(weight.grad.flatten(1).double().numpy().copy())
        optimizer.step()
    for weight, start, gradients in zip(weights, before, seen, strict=True):
        expected = published(start, gradients, 0.1, 0.9)
        moved = np.linalg.norm(expected - start)
        error = np.linalg.norm(weight.detach().flatten(1).double().numpy() - expected)
        assert error < 0.02 * moved  # of the way; bfloat16 has 8 bits


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_on_matrices_it_is_torchs_muon_and_on_the_rest_torchs_adamw(nesterov: bool, weight_decay: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(9, 40), nn.Linear(40, 20), nn.Linear(20, 60), nn.Linear(60, 4))
    theirs = nn.Sequential(*(nn.Linear(layer.in_features, layer.out_features) for layer in ours))  # type: ignore[union-attr, arg-type]
    theirs.load_state_dict(ours.state_dict())
    matrices = [theirs[1].weight, theirs[2].weight]
    rest = [parameter for parameter in theirs.parameters() if all(parameter is not matrix for matrix in matrices)]
    one = Muon(ours.parameters(), ours, 0.03, 0.8, nesterov, weight_decay, adamw_lr=0.01, adamw_weight_decay=0.1)
    reference = (
        torch.optim.Muon(matrices, lr=0.03, momentum=0.8, nesterov=nesterov, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1),
    )
    images, targets = torch.randn(16, 9), torch.randint(4, (16,))
    for _ in range(5):
        for model, optimizers in ((ours, (one,)), (theirs, reference)):
            nn.functional.cross_entropy(model(images), targets).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_levels_its_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    levelled = left.T @ orthogonalized(matrix, 5) @ right.T
    values = levelled.diagonal()
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert (levelled - values.diag()).abs().max() < 0.05


def test_a_normalized_matrix_has_rows_of_length_1_in_the_mean_square() -> None:
    model = net()
    optimizer = Muon(model.parameters(), model, lr=1e-9, normalize=True)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    for weight in hidden_weights(model):
        assert weight.flatten(1).square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)


def test_the_first_layer_the_last_biases_and_norms_are_adamws() -> None:
    model = Airbench(in_channels=3, image_size=(32, 32), num_classes=10)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, rest = (group["params"] for group in Muon(trained, model).param_groups)
    assert [list(matrix.shape[:2]) for matrix in matrices] == [
        *([64, 24], [64, 64], [256, 64], [256, 256], [256, 256], [256, 256])
    ]
    assert len(matrices) + len(rest) == len(trained)
    residual = resnet18(in_channels=3, num_classes=10)
    hidden = {id(weight) for weight in hidden_weights(residual)}
    others = [name for name, weight in residual.named_parameters() if weight.ndim > 1 and id(weight) not in hidden]
    assert others == ["conv1.weight", "fc.weight"]


def test_a_copy_steps_on_its_own() -> None:
    model = net()
    twin, optimizer = copy.deepcopy((model, Muon(model.parameters(), model)))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    twin(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    for parameter, was, copied in zip(model.parameters(), before, twin.parameters(), strict=True):
        assert parameter.equal(was)
        assert not copied.equal(was)


def test_a_model_without_a_hidden_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model has no hidden layer for Muon"):
        build_run(config(model="linear", optimizer="muon"))


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [16, 16]}, {"name": "airbench", "widths": [8, 8]}])
def test_interrupted_and_resumed_is_bit_identical(model: dict[str, object], tmp_path: Path) -> None:
    settings = config(epochs=3, model=model, optimizer={"name": "muon", "lr": 0.05}, precision="bf16")
    expected = train_and_list_metrics(build_run(settings))
    first = build_run(settings)
    for epoch in fit(first):
        save(first, tmp_path, best=epoch.best)
        break
    second = build_run(settings)
    restore(second, load(tmp_path / LAST))
    assert train_and_list_metrics(second) == expected[1:]
