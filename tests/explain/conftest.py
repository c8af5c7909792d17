"""Trained runs to explain, and the command in this process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

Explain = Callable[..., Result]


@pytest.fixture(scope="session")
def explain(app: typer.Typer) -> Explain:
    """`softmaxce explain`, 80 columns wide."""

    def run(*arguments: str, **environment: str) -> Result:
        env = {"COLUMNS": "80", "FORCE_COLOR": None, "NO_COLOR": None, **environment}
        return CliRunner().invoke(app, ["explain", *arguments], env=env)

    return run


def trained(app: typer.Typer, folder: Path, config: str) -> Path:
    """A run folder of this config."""
    file = folder / "config.yaml"
    file.write_text(config)
    arguments = ["train", "--config", str(file), "--output", str(folder / "run"), "--quiet"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return folder / "run"


LINEAR = """\
epochs: 1
data: {name: digits, validation: 0.2}
model: linear
loss: {name: softmax_cross_entropy, label_smoothing: 0.1, weight: [1, 2, 1, 1, 1, 1, 1, 1, 1, 0.5]}
optimizer: {name: adam, lr: 0.01}
"""


@pytest.fixture(scope="session")
def linear_run(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Softmax regression on scikit-learn's digits, its loss smoothed and weighted."""
    return trained(app, tmp_path_factory.mktemp("linear"), LINEAR)


@pytest.fixture(scope="session")
def mnist_run(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """Softmax regression on a little of MNIST."""
    config = (
        f"epochs: 2\ndata: {{name: mnist, train_limit: 2000, root: {os.fspath(real_data)}}}\n"
        "model: linear\noptimizer: {name: adam, lr: 0.001}\n"
    )
    return trained(app, tmp_path_factory.mktemp("mnist"), config)


CONVOLUTIONAL = """\
epochs: 1
data: {name: digits, validation: 0.2, batch_size: 128}
model: {name: cnn, channels: [8, 16], convs_per_stage: 2}
optimizer: {name: adam, lr: 0.02}
"""


@pytest.fixture(scope="session")
def convolutional_run(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network on scikit-learn's digits."""
    return trained(app, tmp_path_factory.mktemp("convolutional"), CONVOLUTIONAL)
