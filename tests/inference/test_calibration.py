"""The fitted temperature against the law that its optimum obeys, and the metrics against a simple loop and SciPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from scipy.special import log_softmax, softmax
from torch import Tensor
from typer.testing import CliRunner

from softmaxce.inference.calibration import Calibration, CalibrationMetrics, calibrate
from softmaxce.inference.temperature import fit_temperature, temperature_of
from softmaxce.inference.trained_model import TrainedModel

HARD = """\
epochs: 6
data: {name: synthetic, train: 600, test: 400, classes: 6, noise: 1.2, batch_size: 32, validation: 0.5}
model: {name: mlp, hidden: [64]}
optimizer: {name: adam, lr: 0.01}
"""


@pytest.fixture(scope="module")
def run(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that is overconfident."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "hard.yaml").write_text(HARD)
    done = CliRunner().invoke(app, ["train", "--config", str(folder / "hard.yaml"), "--output", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run"


def outputs(run: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The run's logits on a split as float64, and the labels."""
    logits, labels = TrainedModel.open(run).logits(split)
    return logits.double().numpy(), labels.numpy()


def ece_by_a_loop(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3, image by image."""
    total = 0.0
    for number in range(15):
        confidences, num_correct = [], 0
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            confidence = max(row)
            if number / 15 < confidence <= (number + 1) / 15:
                confidences.append(confidence)
                num_correct += row.index(confidence) == label
        if confidences:
            accuracy, mean = num_correct / len(confidences), sum(confidences) / len(confidences)
            total += len(confidences) / len(labels) * abs(accuracy - mean)
    return total


def drawn(count: int, spread: float) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their own softmax."""
    generator = torch.Generator().manual_seed(3)
    logits = spread * torch.randn(count, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    return logits, labels


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.0])
def test_the_temperature_undoes_a_factor_on_calibrated_logits(factor: float) -> None:
    logits, labels = drawn(50_000, 1.5)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.02)


def test_at_the_fitted_temperature_the_slope_of_the_nll_is_zero() -> None:
    logits, labels = drawn(2_000, 1.0)
    temperature = fit_temperature(3 * logits, labels)
    z = 3 * logits.numpy()
    # by hand: d nll / d(1/T) = mean(sum_k S_k z_k - z_y)
    slope = np.mean((softmax(z / temperature, 1) * z).sum(1) - z[np.arange(len(z)), labels.numpy()])
    assert abs(slope) < 1e-6


def test_the_metrics_are_those_of_scipy_and_a_simple_loop(run: Path) -> None:
    fitted = calibrate(run)
    assert fitted.test is not None
    for name, metrics in (("validation", fitted.validation), ("test", fitted.test)):
        logits, labels = outputs(run, name)
        assert metrics.images == len(labels)
        for index, temperature in enumerate((1.0, fitted.temperature)):
            scaled = logits / temperature
            nll = -log_softmax(scaled, 1)[np.arange(len(labels)), labels].mean()
            assert metrics.nll[index] == pytest.approx(nll, abs=1e-9)
            assert metrics.ece[index] == pytest.approx(ece_by_a_loop(softmax(scaled, 1), labels), abs=1e-6)


def test_an_overfitted_model_becomes_less_confident_and_its_calibration_error_falls(run: Path) -> None:
    fitted = calibrate(run)
    assert fitted.test is not None
    assert fitted.temperature > 1
    for split in (fitted.validation, fitted.test):
        assert split.nll[1] < split.nll[0]
        assert split.ece[1] < split.ece[0]


def test_eval_uses_the_stored_temperature_unless_another_is_given(app: typer.Typer, run: Path) -> None:
    def metrics(*arguments: str) -> dict[str, float]:
        return json.loads(CliRunner().invoke(app, ["eval", str(run), "--json", *arguments]).stdout)

    fitted = json.loads(CliRunner().invoke(app, ["calibrate", str(run), "--json"]).stdout)
    uncalibrated, scaled = metrics("--temperature", "1"), metrics()
    assert scaled["temperature"] == fitted["temperature"] == temperature_of(run)
    assert [uncalibrated["ece"], scaled["ece"]] == pytest.approx(fitted["test"]["ece"], abs=1e-12)
    assert [uncalibrated["nll"], scaled["nll"]] == pytest.approx(fitted["test"]["nll"], abs=1e-12)
    assert uncalibrated["confusion"] == scaled["confusion"]
    assert uncalibrated["loss"] == scaled["loss"]
    shown = " ".join(CliRunner().invoke(app, ["eval", str(run)]).stdout.split())
    assert f"macro_average_precision at temperature {scaled['temperature']:.4f}; loss at temperature 1" in shown


def test_the_temperature_is_of_the_weights_it_was_fitted_to(app: typer.Typer, run: Path) -> None:
    assert calibrate(run).temperature == temperature_of(run) == temperature_of(run / "best.safetensors")
    stored = run / "calibration.json"
    of_another_epoch = json.loads(stored.read_text()) | {"epoch": 99}
    stored.write_text(json.dumps(of_another_epoch))
    assert temperature_of(run) == 1
    done = CliRunner().invoke(app, ["eval", str(run)])
    assert done.exit_code == 0
    assert done.stderr == (
        f"warning: {stored}: is not used, since it was fitted for epoch 99 and best.safetensors is of epoch "
        f"{TrainedModel.open(run).epoch}; fit it again: softmaxce calibrate {run}\n"
    )
    assert "at temperature" not in done.stdout
    stored.unlink()
    assert temperature_of(run) == 1


def test_a_temperature_of_few_images_or_that_worsens_the_test_nll_is_a_warning(
    app: typer.Typer, tmp_path: Path
) -> None:
    (tmp_path / "few.yaml").write_text(HARD.replace("validation: 0.5", "validation: 30"))
    folder = tmp_path / "run"
    CliRunner().invoke(app, ["train", "--config", str(tmp_path / "few.yaml"), "--output", str(folder)])
    done = CliRunner().invoke(app, ["calibrate", str(folder), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["validation"]["images"]) == (0, 30)
    assert done.stderr.startswith("warning: the temperature is fitted on 30 images only; hold out at least 100 ")

    few, many = (CalibrationMetrics(images, (0.5, 0.4), (0.1, 0.1)) for images in (99, 100))
    worse = CalibrationMetrics(50, (0.5, 0.6), (0.1, 0.1))
    for validation, test, count in ((few, None, 1), (many, None, 0), (many, many, 0), (many, worse, 1)):
        lines = Calibration(1.5, folder / "best.safetensors", 3, validation, test).warnings()
        assert len(lines) == count
    assert lines[0].startswith(
        "on the test images the temperature makes the nll worse, 0.6000 instead of 0.5000; delete"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"temperature": -1, "epoch": 1}', '{"temperature": NaN, "epoch": 1}'])
def test_a_damaged_calibration_is_named_in_one_line(app: typer.Typer, run: Path, text: str) -> None:
    (run / "calibration.json").write_text(text)
    done = CliRunner().invoke(app, ["eval", str(run)])
    (run / "calibration.json").unlink()
    assert done.exit_code == 2
    assert done.stderr == f"error: {run}/calibration.json: is damaged; fit it again: softmaxce calibrate {run}\n"


def test_without_a_validation_split_nothing_is_fitted(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HARD.replace(", validation: 0.5", ""))
    folder = tmp_path / "run"
    CliRunner().invoke(app, ["train", "--config", str(tmp_path / "a.yaml"), "--epochs", "1", "--output", str(folder)])
    done = CliRunner().invoke(app, ["calibrate", str(folder)])
    assert done.exit_code == 2
    assert "this run has no validation split to fit a temperature on" in done.stderr
    assert not (folder / "calibration.json").exists()


def test_if_every_validation_image_is_right_no_temperature_is_fitted(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "easy.yaml").write_text(HARD.replace("noise: 1.2", "noise: 0.05"))
    folder = tmp_path / "run"
    CliRunner().invoke(app, ["train", "--config", str(tmp_path / "easy.yaml"), "--output", str(folder)])
    done = CliRunner().invoke(app, ["calibrate", str(folder)])
    assert done.exit_code == 2
    assert "all 300 validation images are classified correctly" in done.stderr
    assert not (folder / "calibration.json").exists()


def test_logits_that_have_no_best_temperature_are_refused() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match="all 2 validation images are classified correctly"):
        fit_temperature(logits, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no better than chance"):
        fit_temperature(logits, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(logits / 0, torch.tensor([0, 1]))
