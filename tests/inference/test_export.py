"""`softmaxce export`, and eval and predict of its files, against the run and a client without softmaxce."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from softmaxce.argument_types import Fit, Interpolation
from softmaxce.data.resizing import Resizing
from softmaxce.data.splits import InMemory
from softmaxce.errors import FAILED
from softmaxce.inference.certificate import LIMIT, certify
from softmaxce.inference.export import calibration_images
from softmaxce.inference.export_metadata import MAX_METADATA
from softmaxce.inference.exported_model import ExportedModel
from softmaxce.inference.graph import ExportError
from softmaxce.inference.onnx_session import OnnxSession
from softmaxce.inference.trained_model import TrainedModel

from ..browser import Browser
from ..helpers import COLORS

ROOT = Path(__file__).parents[2]
DIGITS = ("digits", "--set", "model=mlp", "--epochs", "2", "--set", "data.augment=[]", "-q")


def run(app: typer.Typer, *words: str | Path) -> Result:
    """A command in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def digits(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, and the JSON that its export printed as export.json beside it."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    assert run(app, "train", *DIGITS, "--output", folder).exit_code == 0
    done = run(app, "export", folder, "--json")
    assert done.exit_code == 0, done.output
    (folder.parent / "export.json").write_text(done.stdout)
    return folder


PHOTOS = """\
epochs: 2
data:
  {name: image_folder, root: ROOT, size: [12, 10], fit: pad, interpolation: bicubic, batch_size: 16, validation: 0.25,
   test_fraction: 0}
model: {name: cnn, channels: [4, 8]}
optimizer: {name: adam, lr: 0.01}
tta: flip
"""


@pytest.fixture(scope="module")
def photos(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of padded images, with test-time augmentation, a temperature and no test split; exported."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(5)
    for name, color in COLORS.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = (np.array(color) + random.normal(0, 60, (15, 13, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i:02d}.png")
    (folder / "photos.yaml").write_text(PHOTOS.replace("ROOT", str(folder / "images")))
    assert run(app, "train", folder / "photos.yaml", "--output", folder / "run", "-q").exit_code == 0
    epoch = TrainedModel.open(folder / "run").epoch
    (folder / "run" / "calibration.json").write_text(json.dumps({"temperature": 0.4, "epoch": epoch}))
    done = run(app, "export", folder / "run", "--output", folder / "photos.onnx")
    assert done.exit_code == 0, done.output
    (folder / "export.txt").write_text(done.stdout)
    return folder


# -- the certificate --------------------------------------------------------------------------------------------------


def test_the_certificate_holds_the_metrics_of_eval_and_the_files_checksums(app: typer.Typer, digits: Path) -> None:
    printed = json.loads((digits.parent / "export.json").read_text())
    assert json.loads((digits / "model.onnx.json").read_text()) == printed
    content = (digits / "model.onnx").read_bytes()
    assert (printed["sha256"], printed["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    weights = hashlib.sha256((digits / "best.safetensors").read_bytes()).hexdigest()
    assert printed["metadata"]["run"]["weights_sha256"] == weights
    certificate = printed["certificate"]
    assert (certificate["split"], certificate["images"], certificate["limit"]) == ("test", 360, 1e-4)
    evaluated = json.loads(run(app, "eval", digits, "--json").stdout)
    for name in ("accuracy", "nll", "ece"):
        assert certificate["run"][name] == pytest.approx(evaluated[name], abs=1e-9)
        assert certificate["exported"][name] == pytest.approx(evaluated[name], abs=1e-5)
    assert 0 < certificate["float32"]["largest_difference"] < 1e-5
    assert certificate["float32"]["different_answers"] == 0
    for column in ("exported", "run"):
        assert set(certificate[column]["seconds"]) == {"1", "64"}
        assert min(certificate[column]["seconds"].values()) > 0


def test_the_class_names_in_the_file_are_those_of_run_json(digits: Path, photos: Path) -> None:
    for file, record in ((digits / "model.onnx", digits), (photos / "photos.onnx", photos / "run")):
        metadata = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["classes"]) == json.loads((record / "run.json").read_text())["classes"]


def test_without_a_test_split_the_validation_split_is_used_and_the_table_says_so(photos: Path) -> None:
    text = (photos / "export.txt").read_text()
    assert "on 9 validation images" in text
    rows = {line[:19].strip(): line[19:].split() for line in text.splitlines() if re.search(r"\d$", line)}
    assert float(rows["largest difference"][0]) <= LIMIT
    assert rows["answers that differ"] == ["0"]
    assert rows["accuracy"][0] == rows["accuracy"][1]


@pytest.mark.parametrize("change", [1, np.nan])
def test_a_corrupted_weight_is_noticed(digits: Path, tmp_path: Path, change: float) -> None:
    model = onnx.load(digits / "model.onnx")
    weight = next(entry for entry in model.graph.initializer if "weight" in entry.name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += change
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "corrupted.onnx")
    trained = TrainedModel.open(digits)
    shape, classes = trained.preprocessing.shape, len(trained.classes)
    intact = OnnxSession(digits / "model.onnx", shape, classes)
    assert certify(trained, trained, "test", intact).float32.different_answers == 0
    with pytest.raises(ExportError, match=r"more than 0\.0001") as raised:
        certify(trained, trained, "test", OnnxSession(tmp_path / "corrupted.onnx", shape, classes))
    assert raised.value.status == FAILED


def test_every_command_refuses_a_file_in_which_a_bit_of_a_weight_or_of_the_metadata_was_changed(
    app: typer.Typer, digits: Path, tmp_path: Path
) -> None:
    content = (digits / "model.onnx").read_bytes()
    weight = next(entry for entry in onnx.load_from_string(content).graph.initializer if "weight" in entry.name)
    (tmp_path / "3.png").write_bytes(b"")
    for position in (content.index(weight.raw_data) + 1, content.index(b'"weights_sha256": "') + 19):
        changed = bytearray(content)
        changed[position] ^= 1
        file = tmp_path / "changed.onnx"
        file.write_bytes(changed)
        for words in (("eval", file), ("predict", file, tmp_path), ("compare", digits, file), ("serve", file)):
            done = run(app, *words)
            assert done.exit_code == 2, done.output
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"error: {file}: its checksum is wrong")


def test_the_checksum_is_the_sha256_of_the_file_with_these_digits_as_zeros(digits: Path) -> None:
    content = (digits / "model.onnx").read_bytes()
    checksum = json.loads(
        {entry.key: entry.value for entry in onnx.load(digits / "model.onnx").metadata_props}["checksum"]
    )
    assert hashlib.sha256(content.replace(checksum.encode(), b"0" * 64)).hexdigest() == checksum


TWO_FACED = """
import torch

class TwoFaced(torch.nn.Module):
    '''A model that is another one while it is traced, as compiled kernels without a fallback are.'''

    def __init__(self, *, in_channels, image_size, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(in_channels * image_size[0] * image_size[1], num_classes)

    def forward(self, images):
        logits = self.head(images.flatten(1))
        return logits * 1.1 if torch.compiler.is_compiling() else logits
"""


def test_a_file_that_gives_other_probabilities_is_not_left_behind_and_the_users_code_needs_trust(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.py").write_text(TWO_FACED)
    line = ("train", *DIGITS, "--set", "model=two.py:TwoFaced", "--output", "run")
    assert run(app, *line).exit_code == 0
    before = set(Path("run").iterdir())
    refused = run(app, "export", "run")
    assert refused.exit_code == 2
    assert "--trust-code" in refused.stderr
    done = run(app, "export", "run", "--trust-code")
    assert done.exit_code == 1
    (message,) = (line for line in done.stderr.splitlines() if not line.startswith("warning:"))
    assert message.startswith("error: run: the exported file is wrong: on 360 test images a probability differs by ")
    assert message.endswith("more than 0.0001; nothing was written")
    assert run(app, "export", "run", "--trust-code", "--quantize", "int8").exit_code == 1, "the file before is checked"
    assert set(Path("run").iterdir()) == before


def test_a_torch_export_file_is_verified_in_another_process_and_differs_from_bf16_by_more_than_from_float32(
    app: typer.Typer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run(app, "train", *DIGITS, "--set", "precision=bf16", "--output", folder).exit_code == 0
    done = run(app, "export", folder, "--format", "torch_export", "--json")
    assert done.exit_code == 0, done.output
    certificate = json.loads(done.stdout)["certificate"]
    assert certificate["run"]["name"] == "cpu, bf16"
    assert certificate["float32"]["largest_difference"] < 1e-5 < certificate["run"]["largest_difference"]
    (page,) = re.findall(r"```python\n(# program\.py\n.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    (tmp_path / "program.py").write_text(page)
    shown = subprocess.run(
        [sys.executable, "program.py", str(folder / "model.pt2")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout) == pytest.approx([1, 1], abs=1e-6)
    for command in (("eval", folder / "model.pt2"), ("predict", folder / "model.pt2", "a.png")):
        refused = run(app, *command)
        assert refused.exit_code == 2
        assert len(refused.stderr.splitlines()) == 1
        assert "torch.export.load" in refused.stderr


def test_a_quantized_file_is_measured_beside_the_file_before_and_has_no_limit(
    app: typer.Typer, digits: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.onnx"
    done = run(app, "export", digits, "--quantize", "int8", "--output", file, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    exported = json.loads(done.stdout)
    assert set(tmp_path.iterdir()) == {file, tmp_path / "small.onnx.json"}
    before = json.loads((digits.parent / "export.json").read_text())
    assert exported["unquantized_bytes"] == pytest.approx(before["bytes"], abs=100)  # the metadata says int8
    assert exported["bytes"] == file.stat().st_size < exported["unquantized_bytes"] / 2
    assert exported["metadata"]["inside"]["quantization"] == "int8"
    certificate = exported["certificate"]
    for name in ("accuracy", "nll", "ece"):
        assert certificate["unquantized"][name] == pytest.approx(before["certificate"]["exported"][name], abs=1e-6)
    assert certificate["unquantized"]["largest_difference"] > LIMIT, "a limit for int8 would have refused it"
    evaluated = json.loads(run(app, "eval", file, "--json").stdout)
    for name in ("accuracy", "nll", "ece"):
        assert certificate["exported"][name] == pytest.approx(evaluated[name], abs=1e-6)
    initializers = {entry.data_type for entry in onnx.load(file).graph.initializer if len(entry.dims) == 2}
    assert initializers == {onnx.TensorProto.INT8}, "all weights have 8 bits"
    refused = run(app, "export", digits, "--quantize", "int8", "--format", "torch_export")
    assert (refused.exit_code, refused.stderr) == (2, "error: --quantize int8: is for --format onnx\n")


def test_the_images_that_8_bits_are_calibrated_on_are_evenly_spaced_in_the_training_split(digits: Path) -> None:
    model = TrainedModel.open(digits, batch_size=16)
    train = model.split("train")
    assert isinstance(train, InMemory)
    position = {image.numpy().tobytes(): index for index, image in enumerate(train.images)}
    chosen = [position[image.tobytes()] for batch in calibration_images(model) for image in batch]
    assert len(chosen) == 1000 < len(train) < 2000
    tenths = np.histogram(chosen, 10, (0, len(train)))[0]
    assert tenths.max() - tenths.min() <= 2, "files are sorted by class: a part of them would be a part of the classes"


def test_a_quantized_network_of_convolutions_has_both_files_in_its_table(
    app: typer.Typer, photos: Path, tmp_path: Path
) -> None:
    done = run(app, "export", photos / "run", "--quantize", "int8", "--output", tmp_path / "photos.onnx")
    assert done.exit_code == 0, done.output
    header, *rows = [line for line in done.stdout.splitlines() if "int8" in line or re.search(r"\d$", line)]
    assert header.split()[:3] == ["int8", "not", "quantized"]
    shown = {row[:25].strip(): row[25:].split() for row in rows}
    assert len(shown["accuracy"]) == 3
    assert len(shown["MB"]) == 2
    assert len(shown["ms per image, 64 at once"]) == 3
    assert "it has no limit for int8" in " ".join(done.stdout.split())
    lines = run(app, "predict", tmp_path / "photos.onnx", photos / "images", "--json").stdout.splitlines()
    assert len(lines) == 36


def test_an_interrupted_export_leaves_no_file(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(digits, folder, ignore=shutil.ignore_patterns("model*"))
    before = set(folder.iterdir())
    command = [str(Path(sys.executable).parent / "softmaxce"), "export", str(folder), "--format", "torch_export"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(folder.glob("model.pt2*.tmp")):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and to what it started
        assert process.stderr is not None
        message = process.stderr.read()
        assert process.wait() == 130, message
    assert message == ""
    assert set(folder.iterdir()) == before


def test_the_second_export_replaces_the_first_and_nothing_else(app: typer.Typer, digits: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"somebody's")
    done = run(app, "export", digits, "--output", other)
    assert done.exit_code == 2
    assert "exists and is not an exported model of softmaxce" in done.stderr
    beside = tmp_path / "new.onnx.json"
    for content in ('{"sha256": "somebody\'s"}', "not JSON"):
        beside.write_text(content)
        done = run(app, "export", digits, "--output", tmp_path / "new.onnx")
        assert done.exit_code == 2
        assert f"{beside}: exists and is not a certificate of softmaxce" in done.stderr
        assert beside.read_text() == content
    assert other.read_bytes() == b"somebody's"
    for output, part in (
        (tmp_path, "is a folder"),
        (tmp_path / "model.pt2", "ends in .onnx"),
        (other / "model.onnx", "Not a directory"),
    ):
        refused = run(app, "export", digits, "--output", output)
        assert refused.exit_code == 2
        assert part in refused.stderr
    first = (digits / "model.onnx").read_bytes()
    assert run(app, "export", digits).exit_code == 0
    assert (digits / "model.onnx").read_bytes() == first, "the same run gives the same file"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("onnxscript", ("export",)),
        ("onnxruntime", ("eval",)),
        ("onnxruntime", ("predict",)),
    ],
)
def test_without_the_extra_one_line_says_what_to_install(
    app: typer.Typer, digits: Path, monkeypatch: pytest.MonkeyPatch, missing: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as Python marks a module that is not there
    path = digits if words[0] == "export" else digits / "model.onnx"
    done = run(app, *words, path, *(("a.png",) if words[0] == "predict" else ()))
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert f"needs {missing}; install with: pip install 'softmaxce[export]'" in line


# -- eval and predict -------------------------------------------------------------------------------------------------


def test_eval_of_the_file_gives_the_runs_metrics_but_for_the_loss(app: typer.Typer, digits: Path) -> None:
    expected = json.loads(run(app, "eval", digits, "--json").stdout)
    done = run(app, "eval", digits / "model.onnx", "--json")
    assert done.exit_code == 0, done.output
    actual = json.loads(done.stdout)
    assert set(actual) == set(expected)
    assert actual["loss"] is None
    assert actual["checkpoint"] == str(digits / "model.onnx")
    for name in ("epoch", "split", "temperature", "tta", "accuracy", "top5_accuracy", "confusion", "classes", "images"):
        assert actual[name] == expected[name]
    for name in ("nll", "brier", "ece"):
        assert actual[name] == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.parametrize(
    ("requirement", "status"), [("accuracy>=0.1", 0), ("accuracy>=1", 1), ("recall.3>=0", 0), ("loss<=9", 2)]
)
def test_requirements_hold_for_the_file_too(app: typer.Typer, digits: Path, requirement: str, status: int) -> None:
    done = run(app, "eval", digits / "model.onnx", "--require", requirement)
    assert done.exit_code == status, done.output


def test_compare_takes_the_file_in_place_of_a_run(app: typer.Typer, digits: Path) -> None:
    done = run(app, "compare", digits, digits / "model.onnx", "--json")
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout)
    first, second = compared["runs"]
    assert (first["accuracy"], first["epoch"]) == (second["accuracy"], second["epoch"])
    assert second["nll"] == pytest.approx(first["nll"], abs=1e-5)
    assert compared["config"] == {}
    assert [group["also_differs"] for group in compared["repetitions"]] == [[]]
    refused = run(app, "calibrate", digits / "model.onnx")
    assert refused.exit_code == 2
    assert "which only eval, predict and compare take" in refused.stderr


def test_other_images_are_refused_as_for_the_run(app: typer.Typer, photos: Path, tmp_path: Path) -> None:
    file, images = photos / "photos.onnx", tmp_path / "images"
    shutil.copytree(photos / "images", images)
    whole = run(app, "eval", file, "--data", images, "--json")  # a folder of classes, all of it
    assert json.loads(whole.stdout)["images"] == 36
    reference = json.loads(run(app, "eval", photos / "run", "--data", images, "--json").stdout)
    assert json.loads(whole.stdout)["confusion"] == reference["confusion"]
    assert json.loads(whole.stdout)["misclassified"] == [
        {**image, "probability": pytest.approx(image["probability"], abs=1e-5)} for image in reference["misclassified"]
    ]
    validation = TrainedModel.open(photos / "run").split("validation")
    assert validation.files is not None
    moved = Path(validation.files[0])
    content = moved.read_bytes()
    Image.new("RGB", (13, 15), "white").save(moved)
    refused = run(app, "eval", file, "--split", "val")
    allowed = run(app, "eval", file, "--split", "val", "--allow-changed-data")
    train = run(app, "eval", file, "--split", "train")
    moved.write_bytes(content)
    assert (refused.exit_code, allowed.exit_code, train.exit_code) == (2, 0, 0)
    assert "the validation images are not those of the run" in refused.stderr


def test_predictions_of_the_file_are_the_runs(app: typer.Typer, photos: Path) -> None:
    images = photos / "images"
    both = [
        run(app, "predict", path, images, "--top", "3", "--json") for path in (photos / "run", photos / "photos.onnx")
    ]
    assert [done.exit_code for done in both] == [0, 0], both[1].output
    expected, actual = ([json.loads(line) for line in done.stdout.splitlines()] for done in both)
    assert len(actual) == len(expected) == 36
    for one, other in zip(expected, actual, strict=True):
        assert (one["path"], one["class"]) == (other["path"], other["class"])
        for a, b in zip(one["top"], other["top"], strict=True):
            assert (a["class"], a["probability"]) == (b["class"], pytest.approx(b["probability"], abs=1e-5))
    model = ExportedModel.open(photos / "photos.onnx")
    (prediction,) = model.predict(images / "red" / "00.png", top=1)
    (first,) = (line for line in actual if line["path"] == str(images / "red" / "00.png"))
    assert (prediction.class_name, prediction.probability) == (first["class"], pytest.approx(first["probability"]))


def test_a_prediction_imports_neither_torch_nor_onnx(photos: Path) -> None:
    code = (
        "import sys\nfrom softmaxce_cli.main import app\n"
        "try:\n    app(['predict', 'photos.onnx', 'images/red/00.png', '--csv'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print({'torch', 'onnx', 'onnxscript', 'scipy', 'sklearn', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=photos, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize(
    "options", [("--temperature", "1"), ("--device", "cuda"), ("--device", "cuda:1")], ids=lambda options: options[0]
)
def test_what_is_inside_the_file_cannot_be_changed(app: typer.Typer, photos: Path, options: tuple[str, ...]) -> None:
    done = run(app, "predict", photos / "photos.onnx", photos / "images", *options)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert options[0] in done.stderr


def test_another_augmentation_than_the_files_is_refused(app: typer.Typer, photos: Path) -> None:
    assert run(app, "eval", photos / "photos.onnx", "--split", "val", "--tta", "flip").exit_code == 0
    done = run(app, "eval", photos / "photos.onnx", "--split", "val", "--tta", "none")
    assert done.exit_code == 2
    assert "which has flip inside" in done.stderr


# -- a client without softmaxce ---------------------------------------------------------------------------------------


SIZES = ((17, 23), (90, 31), (12, 10))  # height and width


def odd_images(folder: Path, *, for_browsers: bool = False) -> list[Path]:
    """100 images of the kinds that go wrong elsewhere, each of noise, so that any mistake changes the probabilities.

    With `for_browsers`, without those that Chromium does not read, or decodes otherwise by one level.
    """
    random = np.random.default_rng(9)
    for height, width in SIZES:

        def noise(*shape: int, height: int = height, width: int = width) -> np.ndarray[Any, Any]:
            return random.integers(0, 256, (height, width, *shape), dtype=np.uint8)

        def save(image: Image.Image, name: str, size: str = f"{height}x{width}", **options: Any) -> None:
            stem, suffix = name.split(".")
            image.save(folder / f"{stem}_{size}.{suffix}", **options)

        rgb = Image.fromarray(noise(3))
        palette = rgb.quantize(16)
        sixteen = Image.fromarray(random.integers(0, 65536, (height, width), dtype=np.uint16))
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            save(rgb, f"turned{orientation}.jpg", exif=exif)
            save(rgb, f"turned{orientation}.png", exif=exif)
        for quality, subsampling in ((60, "4:2:0"), (90, "4:2:2"), (95, "4:4:4")):
            save(rgb, f"quality{quality}.jpg", quality=quality, subsampling=subsampling)
        save(rgb, "progressive.jpg", progressive=True)
        save(rgb.convert("L"), "gray.jpg")
        save(rgb.convert("CMYK"), "cmyk.jpg")  # without black
        save(palette, "palette.png")
        save(palette, "transparent_palette.png", transparency=3)
        save(palette, "animation.gif", save_all=True, append_images=[palette.rotate(180)])
        save(sixteen, "sixteen.png")
        save(Image.fromarray(noise(4)), "alpha.png")
        save(Image.fromarray(noise(2), "LA"), "gray_alpha.png")
        save(rgb.convert("1"), "one_bit.png")
        save(rgb.convert("L"), "gray.png")
        save(rgb, "lossless.webp", lossless=True)
        save(rgb, "plain.bmp")
        if for_browsers:
            save(rgb, "lossy.webp")
            continue
        save(Image.fromarray(noise(4), "CMYK"), "cmyk_with_black.jpg")
        save(sixteen, "sixteen.tiff")
    rgb.save(folder / "last.bmp")
    files = sorted(folder.iterdir())
    for more in files[100:]:
        more.unlink()
    return files[:100]


@pytest.mark.parametrize("kind", ["color", "gray"])
def test_ten_lines_without_softmaxce_give_predicts_probabilities_on_100_odd_images(
    app: typer.Typer, digits: Path, photos: Path, tmp_path: Path, kind: str
) -> None:
    (page,) = re.findall(r"```python\n(# classify\.py\n.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    folder = tmp_path / "images"
    folder.mkdir()
    files = odd_images(folder)
    assert len(files) == 100
    trained, exported = (photos / "run", photos / "photos.onnx") if kind == "color" else (digits, digits / "model.onnx")
    done = run(app, "predict", trained, folder, "--top", "10", "--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(file) for file in files]
    # The client, once for each file, in one process: its own lines read sys.argv.
    (tmp_path / "classify.py").write_text(page)
    code = (
        "import runpy, sys\nmodel, *files = sys.argv[1:]\nfor file in files:\n    sys.argv[1:] = [model, file]\n"
        "    runpy.run_path('classify.py')\n    print('--')\nassert not {'softmaxce', 'torch'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(exported), *map(str, files)]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for line, text in zip(lines, shown.split("--\n")[:-1], strict=True):
        client = {name: float(probability) for probability, name in map(str.split, text.splitlines())}
        assert client == {e["class"]: pytest.approx(e["probability"], abs=1e-5) for e in line["top"]}, line["path"]


def test_the_lines_reduce_jpeg_files_as_predict_does_if_the_file_says_so(photos: Path, tmp_path: Path) -> None:
    (page,) = re.findall(r"```python\n(# classify\.py\n.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    (tmp_path / "classify.py").write_text(page)
    image = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(image)
    answers = []
    for decode in ("full", "reduced"):
        model = tmp_path / f"{decode}.onnx"
        changed(
            photos / "photos.onnx", model, {"resizing": {"fit": "pad", "interpolation": "bicubic", "decode": decode}}
        )
        (prediction,) = ExportedModel.open(model).predict(image)
        command = [sys.executable, "classify.py", str(model), str(image)]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        answers.append({name: float(probability) for probability, name in map(str.split, shown.splitlines())})
        assert answers[-1] == pytest.approx(
            dict(zip(prediction.classes, prediction.probabilities, strict=True)), abs=1e-6
        )
    assert answers[0] != pytest.approx(answers[1], abs=1e-5)


@pytest.fixture(scope="module")
def ort_web() -> Path:
    """The files of onnxruntime-web, where they are."""
    folder = Path(os.environ.get("SOFTMAXCE_TEST_ORT_WEB") or ROOT / "node_modules" / "onnxruntime-web" / "dist")
    if not (folder / "ort.wasm.bundle.min.mjs").is_file():
        pytest.skip("onnxruntime-web is not installed: npm install --no-save onnxruntime-web, in the project's folder")
    return folder


@pytest.fixture
def site(ort_web: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder with the page of docs/web and onnxruntime-web, and its address."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "docs" / "web", folder)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(ort_web / name, folder)
    with served(folder) as address:
        yield folder, address


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_page_resizes_as_pillow_does_to_the_last_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with served(ROOT / "docs" / "web") as address, Browser(tmp_path / "profile") as page:
        page.open(f"{address}pixels.js")
        for fit, interpolation in product(get_args(Fit), get_args(Interpolation)):
            for (height, width), shape in (((8, 8), (40, 100)), ((12, 10), (300, 7)), ((32, 32), (5, 6))):
                plane = random.integers(0, 256, shape, dtype=np.uint8)
                resizing = Resizing(fit, interpolation)
                values = f"Uint8Array.from({plane.ravel().tolist()})"
                arguments = f"{values}, {shape[1]}, {shape[0]}, {width}, {height}, {json.dumps(asdict(resizing))}"
                answer = page.evaluate(f"import('./pixels.js').then(module => [...module.resized({arguments})])")
                expected = np.asarray(resizing(Image.fromarray(plane), (height, width)))
                assert answer == expected.ravel().tolist(), (resizing, height, width)


@pytest.mark.parametrize("kind", ["color", "gray"])
def test_the_page_without_a_server_gives_predicts_probabilities_on_100_odd_images(
    app: typer.Typer, digits: Path, photos: Path, site: tuple[Path, str], tmp_path: Path, kind: str
) -> None:
    folder, address = site
    (folder / "images").mkdir()
    files = odd_images(folder / "images", for_browsers=True)
    assert len(files) == 100
    trained, exported = (photos / "run", photos / "photos.onnx") if kind == "color" else (digits, digits / "model.onnx")
    for suffix in ("", ".json"):
        shutil.copy(f"{exported}{suffix}", folder / f"model.onnx{suffix}")
    done = run(app, "predict", trained, folder / "images", "--top", "10", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["path"]) for line in lines] == files
    with Browser(tmp_path / "profile") as page:
        page.open(address)
        page.wait("globalThis.classify !== undefined")
        for line, file in zip(lines, files, strict=True):
            ranked = page.evaluate(f"fetch('images/{file.name}').then(answer => answer.blob()).then(classify)")
            expected = {e["class"]: pytest.approx(e["probability"], abs=1e-5) for e in line["top"]}
            assert dict(ranked) == expected, file.name
            said = page.evaluate(f"fetch('images/{file.name}').then(answer => answer.blob()).then(difference)")
            assert said.startswith("A CMYK image") == file.name.startswith("cmyk"), file.name
        four = Image.fromarray(np.full((8, 8, 4), 200, dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        for name, options, cause in (("alpha", {}, "transparency"), ("turned", {"exif": exif}, "EXIF")):
            four.save(folder / f"{name}.webp", **options)
            assert cause in page.evaluate(f"fetch('{name}.webp').then(answer => answer.blob()).then(difference)")
        left, top = page.evaluate("(b => [b.left, b.top])(document.getElementById('pad').getBoundingClientRect())")
        page.drag([(left + x, top + y) for x, y in ((90, 60), (190, 60), (130, 230))])
        page.wait("document.querySelector('#classes tr') !== null")
        drawn = tmp_path / "drawn.png"
        picture = page.evaluate("document.getElementById('pad').toDataURL('image/png')")
        drawn.write_bytes(base64.b64decode(picture.partition(",")[2]))
        prediction = json.loads(run(app, "predict", trained, drawn, "--json").stdout)
        shown = page.evaluate("[...document.querySelector('#classes tr').cells].map(cell => cell.textContent)")
        assert shown == [prediction["class"], f"{100 * prediction['probability']:.2f} %"]
        page.choose("#file", [folder / "pixels.js"])
        page.wait("document.getElementById('message').textContent.includes('cannot be classified')")
        assert page.problems == []
        assert all(request.startswith((address, "data:", "blob:")) for request in page.requests)


# -- files from elsewhere ---------------------------------------------------------------------------------------------


def changed(file: Path, target: Path, changes: dict[str, Any]) -> None:
    """A copy of an ONNX file with other metadata: a JSON value, or bytes as they are, or None for none."""
    model = onnx.load(file)
    properties = {entry.key: entry.value for entry in model.metadata_props if entry.key != "checksum"}
    for key, value in changes.items():
        if value is None:
            properties.pop(key)
        else:
            properties[key] = value if isinstance(value, str) else json.dumps(value)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, target)


def without_checksum(model: onnx.ModelProto) -> onnx.ModelProto:
    """As a program writes it that changes a file on purpose."""
    (index,) = (i for i, entry in enumerate(model.metadata_props) if entry.key == "checksum")
    del model.metadata_props[index]
    return model


INPUT = {"shape": ["N", 1, 8, 8]}
INSIDE = {"normalization": {"mean": [0.3], "std": [0.2]}, "tta": "none", "temperature": 1.0}
BAD_METADATA: dict[str, dict[str, Any]] = {
    "none": dict.fromkeys(("softmaxce_export", "classes", "input"), None),
    "of a later version": {"softmaxce_export": 2},
    "no JSON": {"classes": "['a']"},
    "nested": {"classes": "[" * 100_000},
    "huge": {"other": "x" * (MAX_METADATA + 1)},
    "a huge number": {"inside": '{"temperature": 1' + "0" * 400 + "}"},
    "no classes": {"classes": None},
    "one class": {"classes": ["a"]},
    "classes that are no text": {"classes": list(range(10))},
    "repeated classes": {"classes": ["a"] * 10},
    "fewer classes than the graph": {"classes": ["a", "b"], "class_counts": [1, 1]},
    "another shape than the graph": {"input": {"shape": ["N", 1, 9, 8]}},
    "a huge shape": {"input": {"shape": ["N", 1, 1 << 20, 1 << 20]}},
    "no shape": {"input": {"shape": "8x8"}},
    "a temperature of 0": {"inside": {**INSIDE, "temperature": 0}},
    "a temperature that is no number": {"inside": {**INSIDE, "temperature": "1"}},
    "an unknown augmentation": {"inside": {**INSIDE, "tta": "\x1b[31mred"}},
    "a std of 0": {"inside": {**INSIDE, "normalization": {"mean": [0.3], "std": [0]}}},
    "no mapping": {"run": [1, 2]},
    "fingerprints that are no text": {"images": {"test": 3}},
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_hostile_metadata_is_one_line_and_status_2(app: typer.Typer, digits: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bad.onnx"
    changed(digits / "model.onnx", file, BAD_METADATA[kind])
    for words in (("eval", file), ("predict", file, tmp_path)):
        done = run(app, *words)
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {file}: "), line
        assert len(line) < 600
        assert "\x1b" not in line


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x89PNG\r\n", bytes(range(256)) * 8, b"<html>" * 50, b"\x08" * 100, b"\xff" * 4096, b"\x3a\xff"],
    ids=repr,
)
def test_what_is_no_onnx_file_is_one_line_and_status_2(app: typer.Typer, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.onnx"
    file.write_bytes(content)
    done = run(app, "predict", file, tmp_path)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {file}: ")


@pytest.mark.parametrize("part", [0.2, 0.8, 0.999])
def test_a_file_that_was_cut_off_is_one_line_and_status_2(
    app: typer.Typer, digits: Path, tmp_path: Path, part: float
) -> None:
    content = (digits / "model.onnx").read_bytes()
    file = tmp_path / "bad.onnx"
    file.write_bytes(content[: int(part * len(content))])
    done = run(app, "eval", file)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_graph_is_refused_by_onnx_runtime_in_one_line(app: typer.Typer, digits: Path, tmp_path: Path) -> None:
    model = onnx.load(digits / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(without_checksum(model), tmp_path / "bad.onnx")
    done = run(app, "predict", tmp_path / "bad.onnx", tmp_path)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be loaded by ONNX Runtime" in line
    assert "NoSuchOperator" in line


def test_class_names_and_code_from_elsewhere_move_no_cursor_and_run_nothing(
    app: typer.Typer, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 90).save("a.png")
    names = [f"{i}\x1b[2J\r\u202e" for i in range(10)]
    changed(digits / "model.onnx", Path("names.onnx"), {"classes": names})
    for options in ((), ("--csv",), ("--json",)):
        done = run(app, "predict", "names.onnx", "a.png", *options)
        assert done.exit_code == 0, done.output
        assert not set("\x1b\r\u202e") & set(done.stdout)
    Path("evil.py").write_text("import pathlib\npathlib.Path('trace').touch()\ndef data():\n    pass\n")
    config = json.loads((digits.parent / "export.json").read_text())["metadata"]["config"]
    config["data"] = {**config["data"], "name": "evil.py:data"}
    changed(digits / "model.onnx", Path("code.onnx"), {"config": config})
    done = run(app, "eval", "code.onnx")
    assert done.exit_code == 2
    assert "--trust-code" in done.stderr
    assert not Path("trace").exists()
    assert run(app, "predict", "code.onnx", "a.png").exit_code == 0  # which needs no data set


def test_a_probability_that_is_zero_in_float32_has_a_finite_nll(app: typer.Typer, digits: Path, tmp_path: Path) -> None:
    model = onnx.load(digits / "model.onnx")
    last = [entry for entry in model.graph.initializer if "weight" in entry.name][-1]
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * np.float32(1e4), last.name))
    onnx.save(without_checksum(model), tmp_path / "confident.onnx")
    confident = ExportedModel.open(tmp_path / "confident.onnx")
    split = confident.split("test")
    assert isinstance(split, InMemory)
    probabilities = confident.probabilities(split.images.numpy())[np.arange(len(split)), split.labels.numpy()]
    assert (probabilities == 0).any()
    done = run(app, "eval", tmp_path / "confident.onnx", "--json")
    by_hand = -np.log(np.maximum(probabilities, np.finfo(np.float32).smallest_subnormal)).mean()
    assert json.loads(done.stdout)["nll"] == pytest.approx(by_hand, rel=1e-5)
