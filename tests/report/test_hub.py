"""The folder of `export --format hub`, as huggingface_hub reads it and as its own model card says to use it."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from softmaxce.inference.trained_model import TrainedModel

ROOT = Path(__file__).parents[2]
CLASSES = ("a|b", "<b>*c*", "plain")  # the first two are Markdown
CONFIG = """\
epochs: 1
data: {name: image_folder, root: images, size: 8, batch_size: 8, test_fraction: 0.5}
model: {name: mlp, hidden: [8]}
optimizer: {name: sgd, lr: 0.05}
"""


@pytest.fixture
def hub(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `hub` of a run in the current folder, which has classes with odd names."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(1)
    for name in CLASSES:
        Path("images", name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(f"images/{name}/{i}.png")
    Path("odd.yaml").write_text(CONFIG)
    assert CliRunner().invoke(app, ["train", "odd.yaml", "--output", "run", "-q"]).exit_code == 0
    done = CliRunner().invoke(app, ["export", "run", "--format", "hub"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].endswith("then: hf upload NAME run/hub")
    return Path("run/hub")


FILES = {"README.md", "config.yaml", "model.onnx", "model.onnx.json", "model.safetensors"}


def test_huggingface_hub_reads_the_folders_card_with_the_metrics_of_the_certificate(hub: Path) -> None:
    library = pytest.importorskip("huggingface_hub")
    assert {file.name for file in hub.iterdir()} == FILES
    card = library.ModelCard.load(hub / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "softmaxce")
    certificate = json.loads((hub / "model.onnx.json").read_text())["certificate"]
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured == {name: certificate["exported"][name] for name in ("accuracy", "nll", "ece")}
    (split,) = {result.dataset_split for result in card.data.eval_results}
    assert split == certificate["split"] == "test"
    for file in hub.iterdir():  # what an upload sends
        operation = library.CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
        assert operation.upload_info.sha256 == hashlib.sha256(file.read_bytes()).digest()


def test_the_weights_are_the_runs_and_the_cards_program_gives_predicts_probabilities(
    app: typer.Typer, hub: Path
) -> None:
    expected = load_file("run/last.safetensors")
    weights = load_file(hub / "model.safetensors")
    assert all(bool((expected[name] == tensor).all()) for name, tensor in weights.items())
    assert set(weights) == {name for name in expected if not name.startswith("training/")}
    page = (hub / "README.md").read_text()
    for row in (r"| 0 | \<b\>\*c\* |", r"| 1 | a\|b |", "| 2 | plain |"):
        assert row in page
    assert f"SHA-256 `{hashlib.sha256(Path('run/last.safetensors').read_bytes()).hexdigest()}`" in page
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert f"```python\n{program}```" in (ROOT / "docs/export.md").read_text()
    Path("classify.py").write_text(program)
    image = "images/plain/0.png"
    command = [sys.executable, "classify.py", str(hub / "model.onnx"), image]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    probabilities = {name: float(text) for text, name in (line.split("  ") for line in shown.splitlines())}
    for path in ("run", hub / "model.safetensors"):
        (prediction,) = TrainedModel.open(path).predict(image)
        assert probabilities == pytest.approx(
            dict(zip(prediction.classes, prediction.probabilities, strict=True)), abs=1e-5
        )
    start = CliRunner().invoke(app, ["train", "odd.yaml", "--from", str(hub / "model.safetensors"), "--dry-run"])
    assert start.exit_code == 0, start.output


def test_a_folder_with_files_is_left_as_it_is_unless_forced(app: typer.Typer, hub: Path) -> None:
    (hub / "README.md").write_text("edited")
    words = ["export", "run", "--format", "hub"]
    for more, part in (
        ((), "is not empty; choose another, or add --force"),
        (("--output", "odd.yaml"), "is not a folder"),
        (("--output", "other", "--quantize", "int8"), "--quantize int8: is for --format onnx"),
    ):
        refused = CliRunner().invoke(app, [*words, *more])
        assert refused.exit_code == 2
        (line,) = refused.stderr.splitlines()
        assert part in line
    assert (hub / "README.md").read_text() == "edited"
    assert not Path("other").exists()
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
    assert (hub / "README.md").read_text().startswith("---\nlibrary_name: softmaxce\n")
    assert {file.name for file in hub.iterdir()} == FILES
    assert [entry.name for entry in Path("run").iterdir() if entry.name.startswith(".hub")] == []
