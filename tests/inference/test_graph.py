"""Every model on the menu as one graph of bytes to probabilities: ONNX Runtime against PyTorch."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from softmaxce.build import build_model
from softmaxce.config.reader import from_dict
from softmaxce.config.registry import REGISTRIES
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.errors import FAILED
from softmaxce.inference.export_metadata import TTA, ExportMetadata, read_metadata, read_properties
from softmaxce.inference.graph import ExportError, onnx_bytes, program_bytes, trace
from softmaxce.inference.tta import with_tta

CLASSES = tuple(f"class {i}" for i in range(7))
TEMPERATURE = 0.4
SMALL = {
    "cnn": {"channels": [4, 8]},
    "airbench": {"widths": [8, 8, 8]},
    "resnet9": {"width": 4},
    "wide_resnet": {"depth": 10, "width": 1},
}
# name, test-time augmentation, (C, H, W). Deep models have no views here: each view is another copy in the graph.
CASES = [
    ("linear", "flip_crops", (1, 9, 7)),
    ("mlp", "crops", (3, 8, 8)),
    ("lenet", "crops", (1, 14, 12)),
    ("cnn", "flip_crops", (3, 16, 16)),
    ("airbench", "flip", (3, 10, 9)),
    ("resnet9", "flip", (1, 8, 8)),
    ("wide_resnet", "none", (3, 8, 8)),
    ("resnet18", "none", (3, 8, 8)),
    ("resnet34", "none", (3, 4, 4)),
    ("resnet50", "none", (1, 4, 4)),
    ("torchvision:squeezenet1_1", "none", (3, 32, 32)),
]


def metadata(tta: str = "none", shape: tuple[int, int, int] = (3, 16, 16)) -> ExportMetadata:
    """Of a model that was never trained."""
    return ExportMetadata(
        classes=CLASSES,
        class_counts=(3,) * len(CLASSES),
        shape=shape,
        mean=(0.4, 0.5, 0.6)[: shape[0]],
        std=(0.2, 0.3, 0.1)[: shape[0]],
        tta=tta,
        temperature=TEMPERATURE,
        run="never/1",
        recipe="never",
        epoch=0,
        weights="best.safetensors",
        weights_sha256="0" * 64,
        config={"data": {"eval_batch_size": 8}},
        images={"test": "pixels:0123"},
        versions={"softmaxce": "0"},
    )


def model_of(name: str, about: ExportMetadata) -> nn.Module:
    """A model with random weights and statistics, laid out in memory as a run's is, in evaluation mode."""
    torch.manual_seed(3)
    data = {"epochs": 1, "data": {"name": "digits", "batch_size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}}
    config = from_dict({**data, "model": {"name": name, **SMALL.get(name, {})}})
    preprocessing = Preprocessing(about.shape, about.mean, about.std)
    model = build_model(config, preprocessing, len(about.classes), torch.device("cpu"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return with_tta(model.eval(), about.tta)


def expected(model: nn.Module, images: torch.Tensor, about: ExportMetadata) -> torch.Tensor:
    """The definition: (x / 255 - mean) / std, logits, divided by the temperature, softmax; in channels-last memory."""
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (about.mean, about.std))
    pixels = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return torch.softmax(model(pixels).double() / about.temperature, 1)


def batches(about: ExportMetadata) -> Iterator[torch.Tensor]:
    """Random images, by ones, by threes, and more than in any traced batch."""
    generator = torch.Generator().manual_seed(4)
    for count in (1, 3, 257):
        yield torch.randint(256, (count, *about.shape), generator=generator, dtype=torch.uint8)


def test_every_model_on_the_menu_is_exported_and_every_augmentation_with_grey_and_color_images() -> None:
    assert set(REGISTRIES["model"].targets) == {name for name, _, _ in CASES if ":" not in name}
    assert {(tta, shape[0]) for _, tta, shape in CASES} == {(tta, channels) for tta in TTA for channels in (1, 3)}


@pytest.mark.parametrize(("name", "tta", "shape"), CASES)
def test_onnx_runtime_gives_the_models_probabilities_for_any_number_of_images(
    name: str, tta: str, shape: tuple[int, int, int]
) -> None:
    about = metadata(tta, shape)
    model = model_of(name, about)
    content = onnx_bytes(trace(model, about), about)
    onnx.checker.check_model(content, full_check=True)
    session = onnxruntime.InferenceSession(content)
    for images in batches(about):
        (actual,) = session.run(None, {"images": images.numpy()})
        reference = expected(model, images, about).numpy()
        assert np.ptp(reference, 1).max() > 0.01, "a model that gives the same probability to all tests nothing"
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Exported:
    """A small model, in both formats."""

    about: ExportMetadata
    model: nn.Module
    onnx: bytes
    program: bytes


@pytest.fixture(scope="module")
def small() -> Exported:
    """A small model, in both formats."""
    about = metadata()
    model = model_of("cnn", about)
    program = trace(model, about)
    return Exported(about, model, onnx_bytes(program, about), program_bytes(program, '{"classes": ["a"]}'))


def test_the_metadata_is_what_onnx_runtime_reads(small: Exported, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(small.onnx)
    stored = onnxruntime.InferenceSession(small.onnx).get_modelmeta().custom_metadata_map
    assert read_properties(file) == stored
    assert {key: text for key, text in stored.items() if key != "checksum"} == small.about.to_properties()
    assert read_metadata(file) == small.about


def test_the_files_name_no_folder_of_this_machine(small: Exported) -> None:
    for content in (small.onnx, small.program):
        for folder in (Path(__file__).parents[2], Path(torch.__file__).parents[1], Path.home()):
            assert str(folder).encode() not in content


def test_a_torch_export_file_holds_nothing_pickled_and_gives_the_models_probabilities(small: Exported) -> None:
    with zipfile.ZipFile(BytesIO(small.program)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for name, content in contents.items():  # torch.save writes a zip file; pickles begin with the number of protocol
        raw = "/weights/weight_" in name or "/constants/tensor_" in name
        assert raw or not content.startswith((b"PK", b"\x80")), name
        assert b'"use_pickle": true' not in content or not name.endswith("_config.json")
    assert [content for name, content in contents.items() if name.endswith("metadata.json")] == [b'{"classes": ["a"]}']
    loaded = torch.export.load(BytesIO(small.program)).module()
    for images in batches(small.about):
        actual = loaded(images).detach().numpy()
        np.testing.assert_allclose(actual, expected(small.model, images, small.about), rtol=0, atol=1e-5)


class Undecided(nn.Module):
    """A model whose path depends on the values of its images, which no graph can express."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] -> logits [N, K]."""
        logits = images.flatten(1)[:, : len(CLASSES)]
        return logits if images.sum() > 0 else -logits


def test_a_model_that_cannot_be_traced_is_one_line_and_status_1() -> None:
    with pytest.raises(ExportError, match=r"torch\.export cannot trace this model") as raised:
        trace(Undecided(), metadata())
    assert raised.value.status == FAILED
    assert "\n" not in str(raised.value)
