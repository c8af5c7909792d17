"""torch's optimizers without their wrappers: the same numbers, and no compiler is imported."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from softmaxce.build import build_run
from softmaxce.optim import unwrapped
from softmaxce.training.loop import fit

from ..helpers import config

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"lr": 0.01},
    "adamw": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "adagrad": {"lr": 0.05},
    "rmsprop": {"lr": 0.01},
    "adadelta": {"lr": 1.0},
}


def weights(run: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_beneath_the_wrappers_is_the_same_bits(name: str) -> None:
    one, other = (build_run(config(optimizer={"name": name, **OPTIMIZERS[name]})) for _ in range(2))
    step, clear = unwrapped.stepper(one.optimizer), unwrapped.clearer(one.optimizer)
    assert getattr(step, "__func__", None) is not type(one.optimizer).step  # it is another function
    for images, labels in list(one.train.epoch(1)) * 3:
        for run in (one, other):
            torch.manual_seed(1)  # the same dropout
            nn.functional.cross_entropy(run.model(images), labels).backward()
        step()
        clear()
        other.optimizer.step()
        other.optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert str(unwrapped.state_dict(one.optimizer)) == str(other.optimizer.state_dict())


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_a_runs_fused_steps_are_the_unfused_ones_to_a_ten_thousandth(name: str) -> None:
    ends = []
    for fused in (True, False):
        run = build_run(config(optimizer={"name": name, **OPTIMIZERS[name], "fused": fused}))
        torch.manual_seed(3)
        list(fit(run))
        ends.append(weights(run))
    for fused_weight, unfused in zip(*ends, strict=True):
        torch.testing.assert_close(fused_weight, unfused, rtol=1e-4, atol=1e-6)


def test_a_step_with_hooks_calls_them() -> None:
    run = build_run(config())
    called: list[int] = []
    run.optimizer.register_step_post_hook(lambda *_: called.append(1))
    list(fit(run))
    assert len(called) == 2 * len(run.train)


def test_a_users_own_optimizer_keeps_its_wrappers() -> None:
    class Counted(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            Counted.steps += 1
            return super().step(closure)

    run = build_run(config())
    run.optimizer = Counted(run.model.parameters(), lr=0.1)
    run.optimizer.param_groups[0]["initial_lr"] = 0.1
    list(fit(run))
    assert Counted.steps == 2 * len(run.train)


def test_a_run_imports_no_compiler(tmp_path: Path, small: Path) -> None:
    code = (
        "import sys\nfrom softmaxce_cli.main import app\n"
        "try:\n    app(['train', '--config', 'small.yaml', '--quiet'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy', 'torchvision', 'sklearn',"
        " 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_optimizers_built_by_several_threads_leave_torchs_class_as_it_was() -> None:
    before = torch.optim.Optimizer.add_param_group
    entered, left = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def construct(number: int) -> None:
        with unwrapped.construction():
            entered[number].set()
            left[number].wait(10)

    threads = [threading.Thread(target=construct, args=(number,)) for number in range(2)]
    for number in range(2):
        threads[number].start()
        entered[number].wait(0.5)  # the second enters only after the first has left
    for number in range(2):
        left[number].set()
        threads[number].join()
    assert torch.optim.Optimizer.add_param_group is before


def test_without_torchs_private_registries_the_wrapped_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run(config())
    assert unwrapped.stepper(run.optimizer) != run.optimizer.step
    monkeypatch.delattr(sys.modules["torch.optim.optimizer"], "_global_optimizer_pre_hooks")
    assert unwrapped.stepper(run.optimizer) == run.optimizer.step


def test_a_global_hook_is_called() -> None:
    run = build_run(config())
    calls: list[int] = []
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    try:
        list(fit(run))
    finally:
        handle.remove()
    assert len(calls) == 2 * len(run.train)
