"""`data.size: auto` and `data.normalize: model`: what timm and torchvision say of a network; recorded as a number."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.config import reader
from softmaxce.config.from_python import load_config
from softmaxce.config.keys import Config
from softmaxce.data.expected_images import with_expected_size
from softmaxce.errors import ConfigError
from softmaxce.models.pretrained_images import of_timm, of_torchvision
from softmaxce.runs.plan import resume_or_start
from softmaxce.runs.provenance import ImagesNow

from ..helpers import Softmaxce

CONFIG: dict[str, Any] = {
    "epochs": 1,
    "data": {"name": "image_folder", "size": "auto", "batch_size": 4, "normalize": "model"},
    "model": {"name": "timm:test_vit"},  # a network for timm's own tests: 160 pixels, no other size
    "optimizer": {"name": "sgd", "lr": 0.01},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def config(photos: Path, **changes: Any) -> Config:
    return load_config(CONFIG, {"data.root": str(photos)} | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.mark.parametrize(
    "architecture", ["resnet50", "resnet50.a1_in1k", "vit_base_patch16_384", "convnext_tiny", "tf_efficientnet_lite3"]
)
def test_size_interpolation_and_normalization_are_those_that_timm_resolves(architecture: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    timm = importlib.import_module("timm")
    described = timm.models.get_pretrained_cfg(architecture).to_dict()
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=described)
    ours = of_timm(architecture)
    assert ours is not None
    assert (3, *ours.size) == resolved["input_size"]
    assert (ours.interpolation, ours.mean, ours.std) == tuple(resolved[key] for key in ("interpolation", "mean", "std"))


@pytest.mark.parametrize(
    ("architecture", "weights"),
    [("resnet50", None), ("efficientnet_v2_l", "w.pth"), ("inception_v3", "DEFAULT"),
     ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")],
)  # fmt: skip
def test_size_and_normalization_are_what_torchvisions_own_transforms_make_of_a_gray_image(
    architecture: str, weights: str | None
) -> None:
    choices = get_model_weights(architecture)
    preset = choices[weights if weights in choices.__members__ else "DEFAULT"].transforms()
    made = preset(Image.new("RGB", (640, 480), (51, 51, 51)))  # 0.2
    ours = of_torchvision(architecture, weights)
    assert tuple(made.shape[1:]) == ours.size
    expected = (0.2 - torch.tensor(ours.mean)) / torch.tensor(ours.std)
    torch.testing.assert_close(made, expected.view(3, 1, 1).expand_as(made), rtol=0, atol=1e-5)
    assert ours.interpolation == preset.interpolation.value


def test_an_automatic_size_is_recorded_as_a_number_which_a_resumed_run_keeps(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.chdir(tmp_path)
    run = build_run(config(photos))
    assert run.preprocessing.shape == (3, 160, 160)
    assert run.preprocessing.resizing.interpolation == "bicubic"
    outcome = session.train(run, None)
    recorded = reader.load(str(outcome.folder / "config.yaml"))
    assert {k: recorded.source.arguments[k] for k in ("size", "interpolation")} == {
        "size": 160, "interpolation": "bicubic",
    }  # fmt: skip
    resolved = json.loads((outcome.folder / "run.json").read_text())["resolved"]
    assert resolved == {"data.size": "160, the size that timm:test_vit was pretrained with, and bicubic interpolation"}
    plan, _ = resume_or_start(config(photos), None, ImagesNow())
    assert plan.folder == outcome.folder
    assert plan.config.source == recorded.source
    by_hand = {"data__size": 160, "data__interpolation": "bicubic"}
    assert resume_or_start(config(photos, **by_hand), None, ImagesNow())[0].folder == outcome.folder
    by_hand["data__interpolation"] = "bilinear"  # which the config names
    assert not resume_or_start(config(photos, **by_hand), None, ImagesNow())[0].resume


def test_an_interpolation_that_the_config_names_stays(photos: Path) -> None:
    settings = with_expected_size(config(photos, model="torchvision:efficientnet_b0", data__interpolation="bilinear"))
    assert {k: settings.source.arguments[k] for k in ("size", "interpolation")} == {
        "size": 224, "interpolation": "bilinear",
    }  # fmt: skip
    settings = with_expected_size(config(photos, model="torchvision:efficientnet_b0"))
    assert settings.source.arguments["interpolation"] == "bicubic"


def test_a_model_without_a_size_of_its_own_is_one_line_that_asks_for_a_number(
    photos: Path, softmaxce: Softmaxce, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        "epochs: 1\ndata: {name: image_folder, root: photos, size: auto}\nmodel: resnet18\n"
        "optimizer: {name: sgd, lr: 0.1}\n"
    )
    done = softmaxce("train", "c.yaml")
    assert done.returncode == 2
    assert done.stderr == (
        "error: c.yaml:2:48: auto is the size that a network of timm or torchvision was pretrained with, and resnet18 "
        "has none; give a number: 64\n"
    )
    with pytest.raises(ConfigError, match=r"data\.size: auto is the size .* has none; give a number"):
        build_run(replace_model(config(photos)))


def replace_model(settings: Config) -> Config:
    """The config with a model of the user's own, passed as an object."""
    from softmaxce.config.objects import with_objects

    return with_objects(settings, model=torch.nn.Flatten())


def test_the_dry_run_shows_the_number_and_its_reason(photos: Path, softmaxce: Softmaxce, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    done = softmaxce("train", "c.json", "--set", f"data.root={photos}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "data.size: auto is 160, the size that timm:test_vit was pretrained with, and bicubic" in " ".join(
        done.stdout.split()
    )
