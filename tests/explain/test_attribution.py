"""Attributions are captum's on the same inputs, change nothing, and are shown with what they are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel, Occlusion, Saliency
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import densenet, resnet, squeezenet, vgg, vision_transformer
from torchvision.models.googlenet import GoogLeNet

from softmaxce.argument_types import AttributionMethod
from softmaxce.explain import attribution, trained
from softmaxce.explain.attribution import (
    Score,
    grad_cam,
    input_gradient,
    last_feature_map,
    logit_of,
    negative_loss,
    occlusion,
    smooth_grad,
)
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.models.cnn import cnn
from softmaxce.models.lenet import LeNet
from softmaxce.models.resnet import resnet9
from softmaxce.report.attribution import overlay

from .conftest import Explain

SIZES: dict[str, Any] = {"in_channels": 3, "num_classes": 5, "image_size": (20, 24)}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: cnn((4, 8), convs_per_stage=2, dropout=0.5, **SIZES),
    "resnet9": lambda: resnet9(4, **SIZES),
    "in place": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(8 * 16 * 20, 5),
    ),
}  # fmt: skip
SOFT_LABEL, TEMPERATURE = torch.tensor([0.1, 0.6, 0.0, 0.0, 0.3], dtype=torch.float64), 1.5


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["logit", "loss"])
def scored(request: pytest.FixtureRequest, model: nn.Module) -> tuple[Score, Callable[[Tensor], Tensor]]:
    """Our score, and the function that captum attributes."""
    if request.param == "logit":
        return logit_of(3), lambda images: model(images)[:, 3]
    loss = nn.CrossEntropyLoss(reduction="none")
    return negative_loss(
        SOFT_LABEL, TEMPERATURE
    ), lambda images: -loss(model(images) / TEMPERATURE, SOFT_LABEL.float().expand(len(images), -1))


def assert_close(ours: Tensor, theirs: Tensor, rounding: float = 0.0) -> None:
    largest = float(theirs.abs().max())
    assert largest > 10 * rounding
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * largest + rounding)


def test_grad_cam_is_captums_at_each_convolution(
    model: nn.Module, image: Tensor, scored: tuple[Score, Callable[..., Tensor]]
) -> None:
    score, function = scored
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    ours = torch.cat([grad_cam(model, image, score, name).flatten() for name in layers])
    theirs = [LayerGradCam(function, layer).attribute(image, relu_attributions=True) for layer in layers.values()]
    assert_close(ours, torch.cat([cam.flatten() for cam in theirs]).detach())


def test_input_gradient_and_smooth_grad_on_the_same_noise_are_captums(
    model: nn.Module, image: Tensor, scored: tuple[Score, Callable[..., Tensor]]
) -> None:
    score, function = scored
    assert_close(input_gradient(model, image, score), Saliency(function).attribute(image.clone(), abs=False)[0])
    torch.manual_seed(attribution.SEED)
    theirs = NoiseTunnel(Saliency(function)).attribute(
        image.clone(), nt_type="smoothgrad", nt_samples=20, nt_samples_batch_size=attribution.CHUNK,
        stdevs=0.2 * float(image.max() - image.min()), abs=False,
    )  # fmt: skip
    assert_close(smooth_grad(model, image, score, samples=20, noise=0.2), theirs[0])


@pytest.mark.parametrize("window", [(6, 9), (20, 24)], ids=str)
def test_occlusion_is_captums(
    model: nn.Module, image: Tensor, scored: tuple[Score, Callable[..., Tensor]], window: tuple[int, int]
) -> None:
    score, function = scored
    strides = (3, window[0] // 2, window[1] // 2)
    theirs = Occlusion(function).attribute(image, sliding_window_shapes=(3, *window), strides=strides, baselines=0)
    ours = occlusion(model, image, score, window)
    assert_close(ours, theirs[0, 0], rounding=5e-7)  # captum's differences are of float32 scores of about 2


def test_a_map_changes_neither_the_model_nor_the_random_numbers_and_is_the_same_again(image: Tensor) -> None:
    torch.manual_seed(0)
    model = MODELS["cnn"]().train()  # with batch normalization, dropout, and a layer of the user's in another mode
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    layer = last_feature_map(model, image)
    for method in get_args(AttributionMethod):
        first, second = (attribution.attribute(model, image, method, logit_of(1), 1, layer) for _ in range(2))
        assert torch.equal(first.values, second.values), method
        assert first.values.shape == (20, 24)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_frozen_layers_have_maps_too(image: Tensor) -> None:
    torch.manual_seed(0)
    model = LeNet(**SIZES).eval()
    before = grad_cam(model, image, logit_of(0), "features.2")
    assert torch.equal(grad_cam(model.requires_grad_(False), image, logit_of(0), "features.2"), before)


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: resnet.resnet18(), "layer4"),
        (lambda: nn.Sequential(vgg.make_layers(vgg.cfgs["D"]), nn.AdaptiveAvgPool2d(1)), "0.29"),  # relu5_3
        (lambda: GoogLeNet(5, aux_logits=False, init_weights=False), "inception5b"),  # its four branches
        (lambda: densenet.DenseNet(4, (2, 2), 8, num_classes=5), "features"),
        (lambda: squeezenet.SqueezeNet("1_1", 5), "classifier.2"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)), "the model has no convolution"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 64), nn.Flatten()), "no convolution whose output is larger than 1x1"),
        (
            lambda: vision_transformer.VisionTransformer(64, 16, 1, 2, 8, 16),
            "only convolution, conv_proj, cuts the image into patches",
        ),
    ],
)
def test_the_layer_is_the_last_map_of_the_convolutions(build: Callable[[], nn.Module], layer: str) -> None:
    model = build().eval()
    if " " not in layer:
        assert last_feature_map(model, torch.zeros(1, 3, 64, 64)) == layer
        return
    with pytest.raises(ValueError, match=layer):
        last_feature_map(model, torch.zeros(1, 3, 64, 64))


def test_maps_depend_on_the_trained_weights(convolutional_run: Path) -> None:
    # the randomization test of Adebayo et al. 2018, section 3, by the rank correlation
    run = TrainedModel.open(convolutional_run, device="cpu")
    image, label = trained.split_image(run, "test", 3)
    everything = trained.Attributions(get_args(AttributionMethod))
    before = trained.explain_image(run, image, label, title="", attributions=everything).attributions
    torch.manual_seed(5)
    for module in run.model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    after = trained.explain_image(run, image, label, title="", attributions=everything).attributions
    for one, other in zip(before, after, strict=True):
        if one.class_id == label:
            assert spearmanr(one.values.flatten(), other.values.flatten()).statistic < 0.7, one.method


# -- the command and the page ----------------------------------------------------------------------------------------


def test_the_maps_of_the_command_are_of_the_image_without_test_time_augmentation(
    explain: Explain, convolutional_run: Path
) -> None:
    command = (str(convolutional_run), "--index", "5", "--json")
    answers = [json.loads(explain(*command, *more).stdout) for more in ((), ("--layer", "7"), ("--of", "loss"))]
    run = TrainedModel.open(convolutional_run, device="cpu")
    pixels, label = trained.split_image(run, "test", 5)
    image = (pixels[None].float() / 255 - run.preprocessing.mean[0]) / run.preprocessing.std[0]
    others = [run.classes.index(shown["class"]) for shown in answers[0]["attributions"]]
    assert others[0] == label
    for answer, layer in zip(answers, ("11", "7", "11"), strict=True):
        for shown in answer["attributions"]:
            score = negative_loss(functional.one_hot(torch.tensor(label), 10).double(), 1.0)
            score = score if shown["class"] is None else logit_of(run.classes.index(shown["class"]))
            assert (shown["method"], shown["layer"]) == ("grad_cam", layer)
            cam = grad_cam(run.model, image, score, layer)
            expected = functional.interpolate(cam[None, None], (8, 8), mode="bilinear")[0, 0]
            np.testing.assert_allclose(shown["values"], expected, rtol=1e-4, atol=1e-6)
    assert [shown["of"] for shown in answers[2]["attributions"]] == ["loss"]
    flipped = replace(run, model=TrainedModel.open(convolutional_run, device="cpu", tta="flip").model)
    both = [trained.explain_image(one, pixels, label, title="") for one in (run, flipped)]
    assert both[0].steps.raw_logits != both[1].steps.raw_logits
    assert torch.equal(both[0].attributions[0].values, both[1].attributions[0].values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--attribution", "gradcam"), "--attribution: must be some of grad_cam, input_gradient, smooth_grad, "),
        (("--attribution", "occlusion", "--layer", "3"), "--layer: is for --attribution grad_cam"),
        (("--attribution", "none", "--of", "loss"), "--of: says what the maps"),
        (("--of", "losses"), "--of: 'losses' is not one of"),
        (("--layer", "conv"), "--layer: the model has no layer conv; its convolutions are 0, 3, 6, 9\n"),
        (("--layer", "13"), "--layer: the output of 13 is [1, 16]; Grad-CAM needs a map"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    explain: Explain, convolutional_run: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = explain(str(convolutional_run), *arguments)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_without_a_convolution_it_is_said_what_works(explain: Explain, linear_run: Path) -> None:
    for asked in (("--attribution", "grad_cam"), ("--of", "loss")):
        refused = explain(str(linear_run), *asked)
        assert refused.exit_code == 2
        assert refused.stderr == (
            "error: --attribution: the model has no convolution; of --attribution, input_gradient, smooth_grad and "
            "occlusion work without one\n"
        )
    assert "Grad-CAM" not in explain(str(linear_run)).stdout  # the contributions of the pixels are shown
    shown = json.loads(explain(str(linear_run), "--attribution", "input_gradient", "--json").stdout)
    weight = TrainedModel.open(linear_run, device="cpu").model[1].weight.detach()  # type: ignore[index]
    for row in shown["attributions"]:
        np.testing.assert_allclose(row["values"], weight[int(row["class"])].abs().view(8, 8), rtol=1e-6)
    alone = explain("--logits", "1,2", "--label", "0", "--attribution", "all")
    assert alone.stderr == "error: --attribution: needs a model and an image, and cannot be combined with --logits\n"


def test_a_map_is_drawn_over_the_gray_image() -> None:
    image = torch.full((1, 1, 3), 100, dtype=torch.uint8)
    red, gray, blue = overlay(image, torch.tensor([[2.0, 0.0, -2.0]]), 2.0)[:, 0].T.tolist()
    assert gray[0] == gray[1] == gray[2]
    assert red[0] > gray[0] > red[2]
    assert blue[2] > gray[2] > blue[0]
