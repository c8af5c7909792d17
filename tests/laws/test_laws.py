"""The laws detect each mistake of a wrong loss with a small input, and report none for a sound loss."""

import gc
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from softmaxce.config import reader, registry
from softmaxce.errors import ConfigError
from softmaxce.laws import cost
from softmaxce.laws.examine import examine, law_named
from softmaxce.laws.law import Law, LawResult, check_law
from softmaxce.laws.subject import Subject, referring, value_and_gradient
from softmaxce.laws.transforms import compiles_with

from .wrong import WRONG, BranchesOnValues, IgnoresSmoothing, Wrong

CPU = torch.device("cpu")


def subject(name: str, reference: str | None = None, seed: int = 0, **arguments: object) -> Subject:
    overrides = [reader.Override((key,), value, key) for key, value in arguments.items()]
    component = reader.named("loss", name, overrides)
    truth = Subject(referring(reader.named("loss", reference), component), CPU) if reference else None
    return Subject(component, CPU, reference=truth, seed=seed)


def compiled(examined: Subject) -> LawResult:
    """The result of the law `compile`, by tracing alone, which also detects graph breaks and is seconds faster."""
    return check_law("compile", replace(law_named("compile"), test=compiles_with("aot_eager")), examined)


def quarter(name: str) -> Law:
    """A law with a quarter of its examples, which is enough for one that passes."""
    law = law_named(name)
    return replace(law, examples=max(1, law.examples // 4))


def failures(results: Collection[LawResult]) -> dict[str, str]:
    return {r.law: f"{r.detail} {r.case and r.case.lines()}" for r in results if r.status == "failed"}


# -- sound losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.LOSSES)
def test_a_registered_loss_passes_every_law_that_it_claims(name: str) -> None:
    examined = subject(name)
    if name == "softmax_cross_entropy":
        results = list(examine(examined, skip=["compile"]))
    else:
        claimed = set(registry.LAWS) - {"compile"} - set(examined.not_claimed)
        results = [check_law(law, quarter(law), examined) for law in claimed]
    if "compile" not in examined.not_claimed:
        results.append(compiled(examined))
    assert failures(results) == {}
    assert {result.law for result in results} >= set(registry.LAWS) - {"compile"} - set(examined.not_claimed)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch.nn.functional:cross_entropy", {"label_smoothing": 0.1, "reduction": "sum"}),
        ("softmax_cross_entropy", {"weight": [1.0, 2.0, 0.5], "label_smoothing": 0.2}),
        ("torch_cross_entropy", {"weight": [1.0, 2.0, 0.5]}),  # torch's cannot be vmapped with smoothing too
        ("softmax_cross_entropy", {"weight": "balanced", "reduction": "none"}),
    ],
    ids=str,
)
def test_cross_entropy_passes_every_law_with_weights_smoothing_and_reductions(
    name: str, arguments: dict[str, object]
) -> None:
    examined = subject(name, "softmax_cross_entropy", **arguments)
    results = [check_law(law, quarter(law), examined) for law in registry.LAWS if law != "compile"]
    assert failures(results) == {}
    not_applicable = [] if "label_smoothing" not in arguments else ["minimum"]
    assert [result.law for result in results if result.status == "not applicable"] == not_applicable


def test_a_loss_that_is_rightly_infinite_at_a_masked_class_passes_with_a_remark() -> None:
    (smoothed,) = examine(subject("torch_cross_entropy", label_smoothing=0.1), only=["finite"])
    assert (smoothed.status, smoothed.detail) == (
        "passed", "infinite only where its limit is, as with label smoothing at -inf"
    )  # fmt: skip
    (finite,) = examine(subject("torch_cross_entropy"), only=["finite"])
    assert (finite.status, finite.detail) == ("passed", "")


def test_the_exact_reference_is_torchs_in_float64_on_ordinary_logits() -> None:
    from softmaxce.laws import exact
    from softmaxce.laws.cases import Case

    case = Case([[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]], [1, 0])
    weight = [1.0, 2.0, 0.5]
    for options in ({}, {"label_smoothing": 0.3}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.3}):
        for reduction in ("none", "mean", "sum"):
            ours = exact.cross_entropy(case, reduction=reduction, **options)  # type: ignore[arg-type]
            tensors = {k: torch.tensor(v).double() if isinstance(v, list) else v for k, v in options.items()}
            torchs = value_and_gradient(
                lambda z, t, o=tensors, r=reduction: functional.cross_entropy(z, t, reduction=r, **o),  # type: ignore[misc]
                torch.tensor(case.logits, dtype=torch.float64),
                torch.tensor(case.targets),
            )
            torch.testing.assert_close(ours, torchs, rtol=1e-14, atol=1e-15)


# -- wrong losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_mistake_fails_the_laws_that_it_should_and_no_other(wrong: type[Wrong]) -> None:
    examined = subject(f"{wrong.__module__}:{wrong.__name__}", "softmax_cross_entropy", **wrong.arguments)
    results = []
    for name in sorted(set(registry.LAWS) - {"compile"}):
        results.append(check_law(name, law_named(name) if name in wrong.breaks else quarter(name), examined))
    if "compile" in wrong.breaks:
        results.append(compiled(examined))
    failed = failures(results)
    assert wrong.breaks <= set(failed)
    assert wrong.and_more or wrong.breaks == set(failed), failed
    for result in results:
        if result.law in wrong.breaks - {"compile"}:  # `compile` uses a batch of its own
            assert result.look_at
            assert result.case is not None
            assert result.case.num_classes == 2  # hypothesis shrank it
            assert len(result.case.targets) <= 2


def test_the_reported_input_is_minimal() -> None:
    def smallest(name: str, law: str) -> list[str]:
        (result,) = examine(subject(f"tests.laws.wrong:{name}"), only=[law])
        assert result.case is not None
        return result.case.lines()

    assert smallest("WithoutTheMaximum", "finite") == [
        "logits = torch.tensor([[0., 10000.]])",
        "targets = torch.tensor([0])",
    ]
    assert smallest("ZeroTimesInfinity", "finite")[0] == "logits = torch.tensor([[0., -torch.inf]])"
    assert smallest("SumForMean", "rows") == [
        "logits = torch.tensor([[0., 0.], [0., 0.]])",
        "targets = torch.tensor([0, 0])",
    ]
    assert smallest("RoundsTargets", "soft_targets")[2:] == ["mixed_with = [1]", "share = 0.5"]


def test_the_same_seed_gives_the_same_case() -> None:
    name = "tests.laws.wrong:WithAnEpsilon"
    first, second = (list(examine(subject(name, seed=3), only=["dtypes", "shift"])) for _ in range(2))
    assert [(r.status, r.case, r.detail, r.examples) for r in first] == [
        (r.status, r.case, r.detail, r.examples) for r in second
    ]


def test_ignored_smoothing_is_detected_only_if_the_reference_smooths() -> None:
    name = f"tests.laws.wrong:{IgnoresSmoothing.__name__}"
    (unsmoothed,) = examine(subject(name, "softmax_cross_entropy"), only=["value"])
    (smoothed,) = examine(subject(name, "torch_cross_entropy", label_smoothing=0.1), only=["value"])
    assert (unsmoothed.status, smoothed.status) == ("passed", "failed")


def test_a_users_reference_is_evaluated_in_float64() -> None:
    (own,) = examine(subject("softmax_cross_entropy", "tests.laws.wrong:Sound"), only=["gradient"])
    assert (own.status, own.detail) == ("passed", "in float64")
    (other,) = examine(subject("softmax_cross_entropy", "tests.laws.wrong:CapsLogits"), only=["gradient"])
    assert other.status == "failed"


# -- exempt laws ------------------------------------------------------------------------------------------------------


class Capped(BranchesOnValues):
    not_claimed = {"compile": "it branches on values", "vmap": "it branches on values"}  # noqa: RUF012


class Misspelt(BranchesOnValues):
    not_claimed = {"vmpa": "it branches on values"}  # noqa: RUF012


def test_laws_in_not_claimed_or_skipped_are_exempt() -> None:
    results = {result.law: result for result in examine(subject(f"{__name__}:Capped"), skip=["shift"])}
    assert (results["compile"].status, results["vmap"].detail) == ("exempt", "it branches on values")
    assert (results["shift"].status, results["shift"].detail) == ("exempt", "skipped by --skip")
    assert failures(results.values()) == {}


def test_an_unknown_law_in_not_claimed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Misspelt.not_claimed has an unknown law: 'vmpa'; did you mean 'vmap'\?"):
        subject(f"{__name__}:Misspelt")


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a process's peak memory")
def test_the_memory_of_torchs_cross_entropy_is_three_times_the_logits() -> None:
    memory = cost.memory(subject("torch_cross_entropy"))
    assert memory is not None
    assert memory.peak == pytest.approx(3.0, abs=0.1)  # log-softmax, its gradient, the logits' gradient
    assert memory.torch_peak == pytest.approx(3.0, abs=0.1)


class LeavesGarbage(Wrong):
    """The first call leaves garbage of the logits' size, which the second call collects."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        gc.collect()
        garbage: list[object] = [logits.detach().clone()]
        garbage.append(garbage)
        return functional.cross_entropy(logits, targets, reduction="none")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a process's peak memory")
def test_garbage_that_is_collected_while_memory_is_measured_makes_no_difference() -> None:
    memory = cost.memory(subject(f"{__name__}:LeavesGarbage"))
    assert memory is not None
    assert memory.peak == pytest.approx(4.0, abs=0.1)  # as above, and the garbage of the measured call


IN_A_THREAD = """
import threading
import torch
from softmaxce.config import reader
from softmaxce.laws import cost
from softmaxce.laws.subject import Subject
from softmaxce.runtime.allocator import keep_freed_memory

def block(size):
    return torch.ones(size << 20, dtype=torch.uint8)

def measure():
    held = []
    for _ in range(6):
        freed = [block(41)]
        held += [block(20), block(20)]
        freed += [block(41)]
        del freed
        memory = cost.memory(Subject(reader.named("loss", "torch_cross_entropy", []), torch.device("cpu")))
        print(memory.peak, memory.torch_peak)

keep_freed_memory()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is the GNU C library's")
def test_freed_memory_that_glibc_keeps_counts_as_new_in_a_thread_too() -> None:
    """A thread has an arena of its own, as the main thread has one after memory ran out."""
    done = subprocess.run([sys.executable, "-c", IN_A_THREAD], capture_output=True, text=True, check=True)
    assert [float(peak) for peak in done.stdout.split()] == pytest.approx([3.0] * 12, abs=0.1)


def test_the_time_ratio_of_a_loss_with_twice_the_work_is_between_1_3_and_4() -> None:
    assert 1.3 < cost.times(subject(f"{__name__}:torch_twice"))[1].ratio < 4  # other programs share the caches


def torch_twice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits * 1, targets)) / 2
