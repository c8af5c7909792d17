"""Steps through static buffers and CUDA graphs: they train as the ordinary loop does, or are refused with a reason."""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softmaxce.build import build_run
from softmaxce.data.batches import Batch
from softmaxce.errors import ConfigError, TrainingError
from softmaxce.runs.checkpoint import load, restore, save
from softmaxce.runs.folder import LAST
from softmaxce.runtime.random_state import random_state
from softmaxce.training.cuda_graph import NoGraphError, should_use_graph, static_step
from softmaxce.training.loop import CheckpointEvent, fit, fit_with_checkpoints
from softmaxce.training.nonfinite import NonFiniteError, is_nonfinite
from softmaxce.training.run import Epoch, Run
from softmaxce.training.step import make_static_step

from ..helpers import VARIANTS, config, train_and_list_metrics

CNN: dict[str, Any] = {"name": "cnn", "channels": [4, 8]}
CONFIGS: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "muon": {"optimizer": {"name": "muon"}, "model": CNN},
    "rmsprop": {"optimizer": {"name": "rmsprop", "lr": 0.01}},
    "not fused": {"optimizer": {"name": "adam", "lr": 0.01, "fused": False}},
    "soft labels, accumulated": {"mixup_alpha": 0.4, "grad_accum_steps": 2, "model": CNN},
}


def state(run: Run) -> list[Any]:
    """All state that training changes."""
    tensors = [*run.model.state_dict().values(), run.tally.loss, run.tally.num_correct]
    tensors += [value for entry in run.optimizer.state.values() for value in entry.values()]
    return [*(tensor.tolist() for tensor in tensors), run.tally.images, str(random_state()), run.scaler.state_dict()]


def same_bits(one: Run, other: Run) -> bool:
    return all(map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values()))


# -- on the CPU: static buffers without a graph -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_training_through_static_buffers_gives_the_bits_of_the_ordinary_loop(name: str) -> None:
    ordinary, static = (build_run(config(**CONFIGS[name])) for _ in range(2))
    static.static_step = make_static_step(static)
    torch.manual_seed(3)
    expected = train_and_list_metrics(ordinary)
    torch.manual_seed(3)
    assert train_and_list_metrics(static) == expected
    assert same_bits(ordinary, static)


@pytest.mark.parametrize("name", CONFIGS)
def test_making_a_static_step_does_not_change_the_run(name: str) -> None:
    run = build_run(config(data__train=200, **CONFIGS[name]))
    for event in fit_with_checkpoints(run, AfterTwo()):  # in the middle of an epoch, with sums and an optimizer's state
        assert isinstance(event, CheckpointEvent)
        break
    before = state(run)
    make_static_step(run)
    assert state(run) == before
    assert all(parameter.grad is None for parameter in run.model.parameters())


class AfterTwo:
    """Requests a checkpoint after the second step."""

    steps = 0

    def should_checkpoint(self) -> bool:
        self.steps += 1
        return self.steps == 2

    def should_abort_evaluation(self) -> bool:
        return False


@pytest.mark.parametrize("name", ["adamw", "batch norm", "mixup and cutmix"])
def test_a_run_with_static_buffers_resumes_within_an_epoch_bit_for_bit(name: str, tmp_path: Path) -> None:
    requested = config(data__train=200, **CONFIGS[name])
    whole = build_run(requested)
    whole.static_step = make_static_step(whole)
    events = fit_with_checkpoints(whole, AfterTwo())
    assert isinstance(next(events), CheckpointEvent)
    save(whole, tmp_path, best=False)
    last = list(events)[-1]
    torch.rand(100)  # another process would have another random state
    second = build_run(requested)
    restore(second, load(tmp_path / LAST))
    second.static_step = make_static_step(second)
    again = list(fit(second))[-1]
    assert isinstance(last, Epoch)
    assert (again.train, again.validation) == (last.train, last.validation)
    assert same_bits(whole, second)


def test_a_non_finite_loss_is_reported_with_its_own_batch() -> None:
    run = build_run(config(optimizer={"name": "sgd", "lr": 1e30}, schedule="constant", data__train=400))
    run.static_step = make_static_step(run)
    batches = list(run.train.epoch(1))
    with pytest.raises(NonFiniteError) as raised:
        list(fit(run))
    assert raised.value.batch == 2
    assert torch.equal(raised.value.images, batches[1][0])


# -- steps that a replay would not repeat -----------------------------------------------------------------------------


class Counting(nn.Linear):
    """Its output is multiplied by the number of its calls, a Python attribute."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * self.calls


class Renewing(nn.Linear):
    """It assigns a new tensor to its running mean at each call."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, images: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * images.detach().mean(0)
        return super().forward(images - self.mean)


class Drawing(nn.Linear):
    """It drops its output at random, by Python's random numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (random.random() < 0.5)


def make_step(model: nn.Module, loss: Any = nn.functional.cross_entropy) -> Any:
    """A StaticStep of a model with 4 inputs and 3 classes."""
    num_calls = torch.zeros(())

    def body(images: Tensor, targets: Tensor) -> Tensor:
        value = loss(model(images), targets)
        value.backward()
        num_calls.add_(1)
        return is_nonfinite(value)

    torch.manual_seed(0)
    return static_step(body, torch.randn(6, 4), torch.arange(6) % 3, (model, loss), (num_calls,), copied=False)


def test_a_step_that_changes_python_state_or_draws_python_random_numbers_is_refused() -> None:
    make_step(nn.Linear(4, 3))
    counting, renewing = Counting(4, 3), Renewing()
    with pytest.raises(NoGraphError, match="a step changes the attribute 'calls' of Counting"):
        make_step(counting)
    with pytest.raises(NoGraphError, match="a step changes the attribute 'mean' of Renewing"):
        make_step(renewing)
    with pytest.raises(NoGraphError, match="a step draws random numbers on the CPU"):
        make_step(Drawing(4, 3))
    assert counting.calls == 0
    assert torch.equal(renewing.mean, torch.zeros(4))


def test_a_step_that_gives_another_result_when_replayed_is_refused() -> None:
    calls = itertools.count(1)
    with pytest.raises(NoGraphError, match="replayed, a step is not the same: the gradient of 'weight' differs"):
        make_step(nn.Linear(4, 3), lambda logits, ids: nn.functional.cross_entropy(logits, ids) * next(calls))


def test_an_error_in_a_step_is_the_reason_given_and_the_models_state_is_restored() -> None:
    class Broken(nn.BatchNorm1d):
        def forward(self, images: Tensor) -> Tensor:
            super().forward(images)
            raise RuntimeError("a wrong turn")

    model = Broken(4)
    with pytest.raises(NoGraphError, match="a step cannot be captured: a wrong turn"):
        make_step(model)
    assert model.num_batches_tracked == 0
    assert torch.equal(model.running_mean, torch.zeros(4))  # type: ignore[arg-type]


# -- the key cuda_graph -----------------------------------------------------------------------------------------------


def test_cuda_graph_true_is_refused_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="cuda_graph: it needs a CUDA device, and this is cpu"):
        build_run(config(cuda_graph=True))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compile": True}, "it is not supported with compile: true"),
        ({"on_nonfinite": "skip"}, "on_nonfinite: skip waits for every loss"),
        ({"data__batch_size": 500}, "no batch is full: there are 72 training images, and data.batch_size is 500"),
    ],
)
def test_a_run_that_cannot_use_a_graph_reports_the_reason_in_one_line(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = torch.device("cuda")
    assert should_use_graph(config(), 72, cuda)
    assert not should_use_graph(config(cuda_graph=False, **changes), 72, cuda)
    assert not should_use_graph(config(**changes), 72, torch.device("cpu"))
    assert not caplog.messages
    assert not should_use_graph(config(**changes), 72, cuda)
    assert caplog.messages == [f"no CUDA graph: {reason}"]
    with pytest.raises(ConfigError, match=reason):
        should_use_graph(config(cuda_graph=True, **changes), 72, cuda)


def test_a_step_that_cannot_be_captured_is_reported_once_and_the_run_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ordinary, run = build_run(config(model="linear")), build_run(config(model="linear"))
    for each in (ordinary, run):
        each.model.register_forward_hook(lambda *_: random.random() and None)
    run.use_graph = True
    with caplog.at_level(logging.WARNING):
        assert train_and_list_metrics(run) == train_and_list_metrics(ordinary)
    assert caplog.messages == ["no CUDA graph: a step draws random numbers on the CPU"]


def test_a_step_that_cannot_be_captured_stops_a_run_with_cuda_graph_true() -> None:
    run = build_run(config(model="linear"))
    run.model.register_forward_hook(lambda *_: random.random() and None)
    run.config, run.use_graph = replace(run.config, cuda_graph=True), True
    with pytest.raises(TrainingError, match=r"no CUDA graph: a step draws .*; cuda_graph: auto trains without"):
        list(fit(run))


# -- on a GPU only ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_training_with_a_graph_on_a_gpu_matches_the_ordinary_loop(name: str) -> None:
    runs = [build_run(config(device="cuda", cuda_graph=requested, **CONFIGS[name])) for requested in (True, False)]
    results = []
    for run in runs:
        torch.manual_seed(3)
        results.append([(epoch.train.loss, epoch.train.images) for epoch in fit(run)])
    assert runs[0].static_step is not None
    assert runs[0].static_step.body is None  # it was captured
    assert runs[1].static_step is None
    tolerance = 0.02 if name in ("bf16", "fp16") else 1e-3
    for (loss, images), (expected, expected_images) in zip(*results, strict=True):
        assert images == expected_images
        assert loss == pytest.approx(expected, rel=tolerance)
    for ours, reference in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert (ours - reference).norm() <= 5 * tolerance * reference.norm() + 1e-6


@pytest.mark.gpu
def test_capturing_the_graph_does_not_change_the_run_on_a_gpu() -> None:
    run = build_run(config(device="cuda", cuda_graph=False, model=CNN))
    list(fit(run))
    before = state(run)
    assert make_static_step(run).body is None
    assert state(run) == before


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["auto", False])
@pytest.mark.parametrize("name", CONFIGS)
def test_no_step_synchronizes_with_the_gpu(graph: Any, name: str) -> None:
    run = build_run(config(device="cuda", cuda_graph=graph, data__train=1000, **CONFIGS[name]))

    def without_synchronizing(batches: Iterable[Batch], done: int, epoch: int) -> Iterator[Batch]:
        try:
            for number, batch in enumerate(batches):
                if number == 2:  # the first two compile, and create the optimizer's state
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")

    assert len(list(fit(run, without_synchronizing))) == 2


@pytest.mark.gpu
def test_a_model_that_synchronizes_with_the_gpu_is_reported_and_still_trains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = build_run(config(device="cuda"))
    run.model.register_forward_hook(lambda _, __, logits: logits * (logits.mean().item() < 1e9))
    assert len(list(fit(run))) == 2
    assert len(caplog.messages) == 1
    assert "no CUDA graph: a step cannot be captured: called a synchronizing CUDA operation" in caplog.messages[0]


@pytest.mark.gpu
def test_after_a_failed_capture_random_numbers_and_streams_work(caplog: pytest.LogCaptureFixture) -> None:
    run = build_run(config(device="cuda"))  # with dropout

    def wait(*_: Any) -> None:
        torch.cuda.synchronize()  # the debug mode allows it, a capture does not

    run.model.register_forward_hook(wait)
    assert len(list(fit(run))) == 2
    assert len(caplog.messages) == 1
    torch.rand(3, device="cuda")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
def test_a_run_with_a_graph_resumes_within_an_epoch_bit_for_bit(tmp_path: Path) -> None:
    requested = config(device="cuda", deterministic=True, data__train=200, optimizer={"name": "adamw", "lr": 0.01})
    whole = build_run(requested)
    events = fit_with_checkpoints(whole, AfterTwo())
    assert isinstance(next(events), CheckpointEvent)
    save(whole, tmp_path, best=False)
    list(events)
    torch.rand(100, device="cuda")
    second = build_run(requested)
    restore(second, load(tmp_path / LAST))
    list(fit(second))
    assert second.static_step is not None
    assert same_bits(whole, second)
    torch.use_deterministic_algorithms(False)
