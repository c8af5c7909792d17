"""Knowledge distillation: `distillation: {teacher, temperature, weight}`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from softmaxce import api, session
from softmaxce.errors import ConfigError, RunError
from softmaxce.runs import checkpoint
from softmaxce.training.loop import fit
from softmaxce.training.run import Epoch, Run

from ..helpers import Softmaxce, config

CNN = {"name": "cnn", "channels": [4, 8], "hidden": 16, "dropout": 0.3}  # evaluation mode matters to it
STUDENT: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [16]},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": "constant",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    session.train(api.build_run(config(model=CNN, epochs=1)), folder)
    return folder


def student(teacher: Path, **changes: Any) -> Run:
    distillation = {"teacher": str(teacher), "temperature": 3.0, "weight": 0.7}
    return api.build_run(config(**{**STUDENT, "distillation": distillation, **changes}))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("changes", [{}, {"grad_accum_steps": 2}])
def test_training_is_that_of_hintons_loss_written_in_torch(changes: dict[str, Any], teacher: Path) -> None:
    run, plain = student(teacher, **changes), api.build_run(config(**STUDENT))
    theirs = api.load(teacher).model.eval()
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.05)
    for epoch in (1, 2):
        batches = list(plain.train.epoch(epoch))
        size = changes.get("grad_accum_steps", 1)
        for first in range(0, len(batches), size):
            images, labels = (torch.cat(parts) for parts in zip(*batches[first : first + size], strict=True))
            with torch.no_grad():
                wanted = functional.softmax(theirs(images) / 3, 1)
            logits = plain.model(images)
            # The divergence has the gradient of the cross-entropy with soft targets.
            soft = functional.kl_div(functional.log_softmax(logits / 3, 1), wanted, reduction="batchmean")
            (0.3 * functional.cross_entropy(logits, labels) + 0.7 * 3**2 * soft).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert run.teacher is not None
    before = {name: tensor.clone() for name, tensor in run.teacher.model.state_dict().items()}
    list(fit(run))
    for ours, reference in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    assert all(map(torch.equal, run.teacher.model.state_dict().values(), before.values()))
    assert not any(module.training for module in run.teacher.model.modules())


def test_a_weight_of_0_trains_the_bits_of_a_run_without_a_teacher(teacher: Path) -> None:
    changes = {"model": {"name": "mlp", "hidden": [16], "dropout": 0.2}}
    run = student(teacher, distillation={"teacher": str(teacher), "weight": 0.0}, **changes)
    list(fit(run))
    plain = api.build_run(config(**{**STUDENT, **changes}))
    list(fit(plain))
    assert same_weights(run.model, plain.model)


class StopsAfterTheFirst(session.Reporter):
    def epoch(self, epoch: Epoch) -> None:
        raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_undisturbed_runs_bits_and_only_with_the_same_teacher(
    teacher: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "teacher"
    shutil.copytree(teacher, mine)
    changes = {"model": {"name": "mlp", "hidden": [16], "dropout": 0.2}, "mixup_alpha": 0.4}
    whole = student(mine, **changes)
    list(fit(whole))
    with pytest.raises(KeyboardInterrupt):
        session.train(student(mine, **changes), tmp_path / "run", reporters=[StopsAfterTheFirst()])
    record = session.runfolder.read_record(tmp_path / "run")["distillation"]
    assert record["teacher"] == str(mine / "best.safetensors")

    best = mine / "best.safetensors"
    kept = best.read_bytes()
    shutil.copy(tmp_path / "run" / "best.safetensors", best)
    with pytest.raises(RunError, match=r"its teacher .*best.safetensors has changed: its SHA-256 was"):
        session.train(student(mine, **changes), tmp_path / "run", resume=True)

    best.write_bytes(kept)
    session.train(student(mine, **changes), tmp_path / "run", resume=True)
    saved, _ = checkpoint.newest(tmp_path / "run")
    assert saved is not None
    for name, tensor in whole.evaluated.state_dict().items():
        assert torch.equal(saved.weights[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__normalize": "none"}, r"normalized otherwise; give the run the same: data.normalize: \{mean: \["),
        ({"data__size": 12}, "its images are 1x16x16, and the run's 1x12x12"),
        ({"data__classes": 4}, "its classes are others than the run's"),
        ({"loss": {"name": "softmax_cross_entropy", "reduction": "sum"}}, "distillation needs a loss that is a mean"),
        ({"distillation": {"teacher": "nowhere"}}, "there is no such run folder or checkpoint"),
    ],
)
def test_a_teacher_that_does_not_suit_is_refused(changes: dict[str, Any], message: str, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        student(teacher, **changes)


def test_train_names_the_teacher_and_answers_a_wrong_one_before_torch_is_imported(
    teacher: Path, softmaxce: Softmaxce, small: Path
) -> None:
    done = softmaxce("train", small.name, "--set", f"distillation.teacher={teacher}", "--epochs", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    assert f"teacher {teacher / 'best.safetensors'} (epoch 1), cnn" in done.stderr
    wrong = softmaxce("train", small.name, "--set", "distillation.teacher=nowhere")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: --set distillation.teacher=nowhere: nowhere: there is no such run folder or checkpoint\n"
    )
