"""A trained model opened in Python gives what the commands give."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from scipy.special import softmax
from typer.testing import CliRunner

from softmaxce.errors import ConfigError, DataError, RunError
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.runs import checkpoint
from softmaxce.runs.header import read_header


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return TrainedModel.open(folder / "run", device="cpu")


def rewritten(run: Path, file: Path, **config: object) -> Path:
    """The run's best checkpoint with other values in its config."""
    best = run / "best.safetensors"
    header = read_header(best)
    file.write_bytes(checkpoint.serialized(load_file(best), header | {"config": header["config"] | config})[0])
    return file


def test_its_metrics_are_those_of_eval(app: typer.Typer, folder: Path, model: TrainedModel) -> None:
    for split in ("train", "validation", "test"):
        line = ["eval", str(folder / "run"), "--split", split, "--device", "cpu", "--json"]
        printed = json.loads(CliRunner().invoke(app, line).stdout)
        metrics = model.evaluate(split)
        assert {name: printed[name] for name in ("loss", "accuracy", "nll", "brier", "ece", "images")} == {
            name: getattr(metrics, name) for name in ("loss", "accuracy", "nll", "brier", "ece", "images")
        }


def test_its_predictions_are_those_of_predict_for_files_images_and_arrays(
    app: typer.Typer, folder: Path, model: TrainedModel
) -> None:
    files = sorted((folder / "images").rglob("*.png"))[::3]
    line = ["predict", str(folder / "run"), *map(str, files), "--json", "--top", "3", "--device", "cpu"]
    printed = [json.loads(row) for row in CliRunner().invoke(app, line).stdout.splitlines()]
    images = [Image.open(file) for file in files]
    for predictions in (model.predict(files), model.predict(images), model.predict([np.asarray(i) for i in images])):
        assert [p.class_name for p in predictions] == [row["class"] for row in printed]
        for prediction, row in zip(predictions, printed, strict=True):
            assert list(prediction.classes) == [entry["class"] for entry in row["top"]]
            expected = [entry["probability"] for entry in row["top"]]
            assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
    assert [p.path for p in model.predict(files)] == [row["path"] for row in printed]
    assert model.predict(files[0]) == model.predict(files[:1])


def test_a_tensor_in_the_models_shape_is_classified_as_the_split_it_is_from(model: TrainedModel) -> None:
    split = model.split("test")
    logits, labels = model.logits("test")
    assert labels.equal(split.labels)
    predictions = model.predict(split.take(torch.arange(len(split))).images, top=1)  # type: ignore[union-attr]
    expected = softmax(logits.double().numpy(), 1)
    assert [p.class_name for p in predictions] == [model.classes[i] for i in expected.argmax(1)]
    assert [p.probability for p in predictions] == pytest.approx(expected.max(1), abs=1e-6)
    assert model.predict(torch.empty(0, 3, 12, 10, dtype=torch.uint8)) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 12, 10), "must be uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"images are \[3, 8, 8\]"),
        (np.zeros((12, 10, 3)), "must be uint8"),
        (np.zeros((2, 12, 10, 3), np.uint8), r"\[height, width\]"),
        ("no.png", "no.png: No such file"),
    ],
)
def test_images_that_it_cannot_take_are_refused_with_the_reason(
    model: TrainedModel, images: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(images)  # type: ignore[arg-type]


def test_without_a_device_it_opens_on_the_runs_own_if_the_machine_has_it_else_on_auto(
    folder: Path, tmp_path: Path
) -> None:
    on_cpu = TrainedModel.open(rewritten(folder / "run", tmp_path / "cpu.safetensors", device="cpu"))
    assert on_cpu.device == torch.device("cpu")
    missing = rewritten(folder / "run", tmp_path / "cuda.safetensors", device="cuda:77")
    assert TrainedModel.open(missing).device == TrainedModel.open(missing, device="auto").device
    assert TrainedModel.open(missing).config.device == "cuda:77"
    with pytest.raises(ConfigError, match="'cuda:77' is not there"):
        TrainedModel.open(missing, device="cuda:77")
    with pytest.raises(ConfigError, match="device"):
        TrainedModel.open(missing, device="gpu")


def test_the_stored_temperature_is_applied_unless_another_is_given(folder: Path) -> None:
    run = folder / "run"
    stored = run / "calibration.json"
    stored.write_text(json.dumps({"temperature": 2.5, "epoch": read_header(run / "best.safetensors")["epoch"]}))
    try:
        calibrated, plain = TrainedModel.open(run), TrainedModel.open(run, temperature=1.0)
    finally:
        stored.unlink()
    image = torch.full((1, 3, 12, 10), 100, dtype=torch.uint8)
    before, after = plain.probabilities(image).numpy(), calibrated.probabilities(image).numpy()
    assert after == pytest.approx(softmax(np.log(before) / 2.5, 1), rel=1e-6)
    assert calibrated.metrics("test").nll != plain.metrics("test").nll
    assert calibrated.metrics("test").loss == plain.metrics("test").loss


def test_a_split_whose_images_have_changed_is_refused_unless_allowed(folder: Path, model: TrainedModel) -> None:
    for name in ("train", "validation", "test"):
        model.split(name)
    run, file = folder / "run", folder / "images" / "red" / "00.png"
    before = file.read_bytes()
    Image.new("RGB", (12, 10), "white").save(file)
    try:
        changed = TrainedModel.open(run, allow_changed_data=True)
        refused = 0
        for name in ("train", "validation", "test"):
            assert changed.evaluate(name).images == len(changed.split(name))
            if changed.fingerprints[name] == model.fingerprints[name]:
                assert len(TrainedModel.open(run).split(name))
            else:
                refused += 1
                with pytest.raises(RunError, match="not those of the run"):
                    TrainedModel.open(run).split(name)
        assert refused == 1
    finally:
        file.write_bytes(before)


def test_a_split_that_the_run_has_not_is_named_with_those_it_has(model: TrainedModel) -> None:
    with pytest.raises(DataError, match="no holdout split; it has train and validation and test"):
        model.split("holdout")


def test_json_of_a_model_that_gives_nan_has_null_instead_of_nan(app: typer.Typer, folder: Path, tmp_path: Path) -> None:
    best = folder / "run" / "best.safetensors"
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(best).items()}
    (tmp_path / "nan.safetensors").write_bytes(checkpoint.serialized(broken, read_header(best))[0])
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "nan.safetensors"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout, parse_constant=pytest.fail)["nll"] is None
