"""Code that a run names is run on the user's word alone."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_weights

from softmaxce.errors import DataError
from softmaxce.models.torchvision_models import torchvision_model
from softmaxce.runs import checkpoint

from ..helpers import SMALL, Softmaxce

LOSS = """
import os, pathlib, torch
pathlib.Path(os.environ["TRACE"]).touch()  # whoever imports this leaves a trace

def mine(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets)
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the user's code is run."""
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return tmp_path / "trace"


@pytest.fixture
def run(softmaxce: Softmaxce, tmp_path: Path, trace: Path) -> Path:
    """A run trained with the user's own loss, and no trace of it."""
    (tmp_path / "own.py").write_text(LOSS)
    (tmp_path / "own.yaml").write_text(SMALL + 'loss: "own.py:mine"\n')
    done = softmaxce("train", "--config", "own.yaml", "--output", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    trace.unlink()  # the user's own config needs no word
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_runs_code_is_refused_until_the_user_vouches_for_it(
    command: str, run: Path, trace: Path, softmaxce: Softmaxce
) -> None:
    refused = softmaxce(command, "run")
    assert refused.returncode == 2
    assert not trace.exists()
    (line,) = refused.stderr.splitlines()
    assert "best.safetensors: its config names code outside softmaxce, own.py:mine" in line
    assert "--trust-code" in line
    trusted = softmaxce(command, "run", "--trust-code")
    assert trusted.returncode == 0, trusted.stderr
    assert trace.exists()


def test_a_resumed_runs_code_is_refused_unless_the_users_own_config_names_it(
    run: Path, trace: Path, softmaxce: Softmaxce
) -> None:
    refused = softmaxce("train", "--resume", "run", "--epochs", "3")
    assert refused.returncode == 2
    assert not trace.exists()
    (line,) = refused.stderr.splitlines()
    assert "--resume run: its config names code outside softmaxce, own.py:mine" in line
    assert "--trust-code" in line
    for word in (["--config", "own.yaml"], ["--trust-code"]):
        done = softmaxce("train", "--resume", "run", "--epochs", "3", "--quiet", *word)
        assert done.returncode == 0, done.stderr
        assert trace.exists()
        trace.unlink()


def test_a_checkpoint_that_names_a_function_of_pythons_runs_nothing(
    softmaxce: Softmaxce, small: Path, tmp_path: Path, trace: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    assert softmaxce("train", "--config", str(small), "--output", "run", "--quiet").returncode == 0
    file = tmp_path / "run" / "best.safetensors"
    with safe_open(file, framework="pt") as stream:
        header = json.loads(stream.metadata()["softmaxce"].partition(" ")[2])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no dict
    own = {"name": "os:system", "command": f"touch {trace}"}
    for key in ("model", "loss", "optimizer", "schedule", "augment"):
        config = header["config"] | {key: own}
        if key == "augment":
            config = header["config"] | {"data": {**header["config"]["data"], "augment": [own]}}
        text = json.dumps({**header, "config": config})
        save_file(tensors, file, {"softmaxce": f"{checkpoint._checksum(tensors, text)} {text}"})
        done = softmaxce("eval", "run")
        assert not trace.exists()
        if key in ("model", "loss"):
            assert done.returncode == 2
            assert "os:system" in done.stderr
            assert "--trust-code" in done.stderr
        else:  # what only training runs, eval does not run
            assert done.returncode == 0, done.stderr


class Evil:
    """A pickle that leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {os.environ['TRACE']}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "text", "other"])
def test_pretrained_weights_run_no_code_and_are_named_if_they_are_none(
    form: str, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = get_model_weights("squeezenet1_1")["DEFAULT"].url
    file = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    if form in ("zip", "legacy"):
        torch.save(Evil(), file, _use_new_zipfile_serialization=form == "zip")
    elif form == "pickle":
        file.write_bytes(pickle.dumps(Evil()))
    elif form == "text":
        file.write_text("no weights")
    else:
        torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(DataError, match=f"{file}: holds no weights of squeezenet1_1"):
        torchvision_model("squeezenet1_1", "DEFAULT", in_channels=3, num_classes=5)
    assert not trace.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
