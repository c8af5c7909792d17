"""The models: the sizes their papers give, the shapes they take, what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from PIL import Image
from timm.models import adapt_input_conv
from torch import nn
from torchvision.models import get_model, get_model_weights

from softmaxce.build import build_run
from softmaxce.config.components import Component, build, check_component
from softmaxce.config.objects import with_objects
from softmaxce.config.registry import MODELS, torchvision_names
from softmaxce.config.signatures import read_signature
from softmaxce.data.batches import Batches
from softmaxce.data.folder import image_folder
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.splits import InMemory
from softmaxce.errors import DataError
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.models.airbench import Airbench
from softmaxce.models.cnn import cnn
from softmaxce.models.layers import adapt_first_layer
from softmaxce.models.lenet import LeNet
from softmaxce.models.linear import linear
from softmaxce.models.mlp import mlp
from softmaxce.models.resnet import resnet9, resnet18, resnet50, wide_resnet
from softmaxce.models.torchvision_models import torchvision_model
from softmaxce.runs.checkpoint import save
from softmaxce.runs.folder import LAST
from softmaxce.training.loop import fit

from ..helpers import config

CPU = torch.device("cpu")
GREY: dict[str, Any] = {"in_channels": 1, "image_size": (28, 28), "num_classes": 10}
COLOUR: dict[str, Any] = {"in_channels": 3, "image_size": (32, 32), "num_classes": 10}


def size(model: nn.Module) -> int:
    """How many parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "parameters", "source"),
    [
        (lambda: linear(**GREY), 784 * 10 + 10, "by hand"),
        (lambda: mlp([300, 100], **GREY), 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10, "by hand"),
        (lambda: LeNet(**GREY), 61_706, "LeNet-5 with full connections"),
        (lambda: resnet18(in_channels=3, num_classes=10), 11_173_962, "the well-known CIFAR ResNet-18"),
        (lambda: resnet50(in_channels=3, num_classes=10), 23_520_842, "the well-known CIFAR ResNet-50"),
        (lambda: wide_resnet(28, 10, in_channels=3, num_classes=10), 36_479_194, "Zagoruyko & Komodakis, 36.5M"),
        (lambda: resnet9(64, **COLOUR), 6_573_120, "David Page's ResNet-9"),
        (lambda: Airbench(**COLOUR), 1_972_792, "Jordan's airbench94"),
        (
            lambda: cnn([16, 32], batch_norm=False, hidden=256, **GREY),
            (25 * 16 + 16) + (9 * 16 * 32 + 32) + (7 * 7 * 32 * 256 + 256) + (256 * 10 + 10),
            "by hand",
        ),
    ],
)
def test_a_model_has_as_many_parameters_as_its_source_says(
    make: Callable[[], nn.Module], parameters: int, source: str
) -> None:
    assert size(make()) == parameters, source


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_every_model_turns_images_into_one_logit_a_class(name: str, channels: int, side: int) -> None:
    arguments = {"depth": 10, "width": 1} if name == "wide_resnet" else {}
    component = Component(name, MODELS[name], arguments, {}, "here")
    component, problems = check_component(component, read_signature(MODELS[name]), tuple(GREY))
    assert not problems
    model = build(component, {"in_channels": channels, "image_size": (side, side), "num_classes": 7})
    logits = model(torch.rand(2, channels, side, side))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_linear_is_the_articles_weighted_sums_and_nothing_else() -> None:
    model = linear(**GREY)
    (weight, bias) = model.parameters()
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(model(images), images.flatten(1) @ weight.T + bias)


def test_a_small_stem_resnet_is_torchvisions_behind_the_stem() -> None:
    ours, theirs = resnet18(in_channels=3, num_classes=10), get_model("resnet18", num_classes=10)
    theirs.load_state_dict(
        {**theirs.state_dict(), **{k: v for k, v in ours.state_dict().items() if k != "conv1.weight"}}
    )
    theirs.conv1, theirs.maxpool = ours.conv1, nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeNet(in_channels=1, image_size=(8, 8), num_classes=10), "at least 12x12, got 8x8"),
        (lambda: cnn(in_channels=1, image_size=(2, 28), num_classes=10), "at least 4x4"),
        (lambda: cnn([4, 4], hidden=8, in_channels=1, image_size=(3, 9), num_classes=10), "at least 4x4, got 3x9"),
        (lambda: resnet9(in_channels=1, image_size=(4, 4), num_classes=10), "at least 8x8, got 4x4"),
        (lambda: Airbench(in_channels=1, image_size=(8, 8), num_classes=10), "at least 9x9, got 8x8"),
        (lambda: wide_resnet(27, in_channels=3, num_classes=10), "depth must be 6 n [+] 4"),
        (lambda: adapt_first_layer(nn.Linear(9, 2), 4), "1 or 3 channels, got 4: it begins with no convolution"),
        (lambda: torchvision_model("resnet18", "V9", in_channels=3, num_classes=10), "one of IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_what_a_model_cannot_take_is_refused_with_the_rule(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_other_channels_have_the_colors_weights_as_timm_adapts_them() -> None:
    for channels in (2, 4, 5):
        torch.manual_seed(0)
        color = torchvision_model("resnet18", in_channels=3, num_classes=7)
        torch.manual_seed(0)
        model = torchvision_model("resnet18", in_channels=channels, num_classes=7)
        before, after = color.state_dict(), model.state_dict()
        assert torch.equal(
            after.pop("model.conv1.weight"), adapt_input_conv(channels, before.pop("model.conv1.weight"))
        )
        assert all(torch.equal(before[name], after[name]) for name in before | after)
        assert model.eval()(torch.rand(2, channels, 32, 32)).shape == (2, 7)


def test_a_cnn_halves_before_relu_and_gives_what_relu_first_gives() -> None:
    model = cnn([5, 6], convs_per_stage=2, in_channels=1, image_size=(12, 12), num_classes=3).train()
    conv, norm, relu, images = nn.functional.conv2d, nn.functional.batch_norm, torch.relu, torch.randn(4, 1, 12, 12)
    weights = [module for module in model if isinstance(module, nn.Conv2d)]
    x = images
    for index, layer in enumerate(weights):
        x = relu(norm(conv(x, layer.weight, padding=1), None, None, training=True))
        x = nn.functional.max_pool2d(x, 2) if index == 1 else x
    torch.testing.assert_close(model(images), model[-1](x.amax((2, 3))))


# -- airbench ---------------------------------------------------------------------------------------------------------


def patches_of(images: torch.Tensor) -> torch.Tensor:
    """Every 2x2 patch as a row."""
    rows = [
        images[:, :, top : top + 2, left : left + 2].flatten(1)
        for top in range(images.shape[2] - 1)
        for left in range(images.shape[3] - 1)
    ]
    return torch.cat(rows)


def test_the_prepared_first_layer_whitens_the_patches() -> None:
    mixed = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    images = nn.functional.conv2d(torch.randn(40, 3, 16, 16), mixed.view(12, 3, 2, 2)[:3], padding=1)  # correlated
    model = Airbench(in_channels=3, image_size=(17, 17), num_classes=2)
    model.prepare(images)
    patches = patches_of(images)
    assert (torch.corrcoef(patches.T) - torch.eye(12)).abs().max() > 0.1
    outputs = patches @ model.whitening.weight.flatten(1).T
    second = outputs.T @ outputs / len(outputs)
    torch.testing.assert_close(second[:12, :12], torch.eye(12), atol=0.02, rtol=0)
    torch.testing.assert_close(second[:12, 12:], -torch.eye(12), atol=0.02, rtol=0)
    assert not model.whitening.weight.requires_grad


def test_without_a_trained_first_layer_no_gradient_is_worked_out_for_what_comes_before_the_second() -> None:
    model = Airbench(widths=[8], whitening_bias=False, in_channels=1, image_size=(8, 8), num_classes=2)
    needed: list[bool] = []
    model.whitening.register_forward_hook(lambda module, inputs, output: needed.append(output.requires_grad))
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    assert needed == [False]
    assert model.groups[1].weight.grad is not None


def test_airbench_is_the_published_network() -> None:
    model = Airbench(**COLOUR).eval()
    state = model.state_dict()
    first, *filters = (state[key] for key in state if state[key].ndim == 4)
    x = nn.functional.gelu(nn.functional.conv2d(torch.ones(2, 3, 32, 32), first, state["whitening.bias"]))
    for index, weight in enumerate(filters):
        identity = torch.zeros_like(weight[: weight.shape[1]])
        identity[range(len(identity)), range(len(identity)), 1, 1] = 1
        assert weight[: weight.shape[1]].equal(identity)
        x = nn.functional.conv2d(x, weight, padding="same")
        x = nn.functional.gelu(nn.functional.max_pool2d(x, 2) if index % 2 == 0 else x)
    expected = nn.functional.max_pool2d(x, 3).flatten(1) @ state["head.weight"].T / 9
    torch.testing.assert_close(model(torch.ones(2, 3, 32, 32)), expected, rtol=2e-3, atol=1e-5)


# -- torchvision's ----------------------------------------------------------------------------------------------------


def test_the_names_offered_are_torchvisions_classifiers() -> None:
    assert set(torchvision_names()) == set(zoo.list_models(module=zoo))


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_1", "vgg11", "shufflenet_v2_x0_5", "regnet_y_400mf"]
)
def test_a_torchvision_model_takes_grey_images_and_other_sizes(name: str) -> None:
    model = torchvision_model(name, input_size=64, in_channels=1, num_classes=4).eval()
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_pretrained_weights_are_used_but_for_the_head(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file that a download would have put there, made here from a model with known weights.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    original = get_model(name)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = get_model_weights(name)["DEFAULT"].url
    torch.save(original.state_dict(), folder / url.rsplit("/", 1)[1])
    tuned = torchvision_model(name, "DEFAULT", "backbone", in_channels=3, num_classes=5)
    same, new = [], []
    state = tuned.model.state_dict()  # type: ignore[union-attr, operator]
    for key, value in original.state_dict().items():
        (same if state[key].shape == value.shape and torch.equal(state[key], value) else new).append(key)
    assert len(new) == 2, new  # the head's weight and bias
    trained = [key for key, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert [key.removeprefix("model.") for key in trained] == new


def test_a_frozen_backbone_without_weights_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    torchvision_model("resnet18", freeze="backbone", in_channels=3, num_classes=5)
    assert "warning: torchvision:resnet18: freeze: backbone without weights trains a head" in capsys.readouterr().err
    torchvision_model("resnet18", in_channels=3, num_classes=5)
    torchvision_model("resnet18", freeze="backbone", in_channels=3, num_classes=5, pretrained_weights="none")
    assert capsys.readouterr().err == ""  # the last is a trained model that is opened


def test_a_frozen_backbone_keeps_its_batch_statistics() -> None:
    model = torchvision_model("resnet18", freeze="backbone", in_channels=3, num_classes=5).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.rand(4, 3, 32, 32))
    assert before.keys()
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_weights_that_cannot_be_downloaded_are_reported_with_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there, so there is no network
    with pytest.raises(DataError) as caught:
        torchvision_model("resnet18", "DEFAULT", in_channels=3, num_classes=5)
    message = str(caught.value)
    assert "/resnet18-" in message
    assert "put the file resnet18-" in message
    assert str(tmp_path / "hub" / "checkpoints") in message


def test_whitening_is_computed_from_the_training_images_and_saved_in_the_checkpoint(tmp_path: Path) -> None:
    run = build_run(config(model={"name": "airbench", "widths": [8]}))
    assert isinstance(run.train.split, InMemory)
    images = (run.train.split.images.float() / 255 - run.train.mean) / run.train.std
    patches = patches_of(images)
    outputs = patches @ run.model.whitening.weight[:4].flatten(1).T  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(outputs.T @ outputs / len(outputs), torch.eye(4), atol=0.02, rtol=0)
    for epoch in fit(run):
        save(run, tmp_path, best=epoch.best)
    evaluation = TrainedModel.open(tmp_path / LAST, data_root=Path("nowhere"))
    assert evaluation.model.whitening.weight.equal(run.model.whitening.weight)  # type: ignore[union-attr, operator, arg-type]


def test_a_model_is_shown_no_more_images_on_disk_than_in_memory(tmp_path: Path) -> None:
    for index in range(30):
        file = tmp_path / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (8 * index, 0, 0)).save(file)
    samples = []
    for in_memory in (True, False):
        split = image_folder(test_fraction=0.0, in_memory=in_memory, root=str(tmp_path)).train
        batches = Batches(split, Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3), batch_size=4, device=CPU)
        samples.append(batches.sample(13))
    assert len(samples[0]) == 10
    assert samples[0].equal(samples[1])


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "inception_v3"])
def test_a_model_whose_weights_follow_is_the_pretrained_one_without_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted: dict[str, Any] = {"in_channels": 3, "num_classes": 5}
    without = torchvision_model(name, "DEFAULT", pretrained_weights="none", **wanted)
    with pytest.raises(DataError, match="downloads nothing"):
        torchvision_model(name, "DEFAULT", pretrained_weights="local", **wanted)
    assert not (tmp_path / "hub").exists()
    file = tmp_path / "hub" / "checkpoints" / Path(get_model_weights(name)["DEFAULT"].url).name
    file.parent.mkdir(parents=True)
    options = {} if name == "squeezenet1_1" else {"aux_logits": True, "init_weights": False}
    torch.save(get_model(name, weights=None, **options).state_dict(), file)
    reference = torchvision_model(name, "DEFAULT", pretrained_weights="local", **wanted)
    without.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(without.eval()(images), reference.eval()(images))


def test_a_model_that_ends_in_softmax_is_trained_with_a_warning_and_one_that_gives_logits_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = (nn.Flatten(), nn.Linear(64, 10))
    for last in ((), (nn.ReLU(),), (nn.Sigmoid(),), (nn.LogSoftmax(1),)):
        build_run(with_objects(config(data="digits"), model=nn.Sequential(*layers, *last)))
    assert "probabilities" not in capsys.readouterr().err
    build_run(with_objects(config(data="digits"), model=nn.Sequential(*layers, nn.Softmax(1))))
    assert "returns probabilities (each row sums to 1)" in capsys.readouterr().err
