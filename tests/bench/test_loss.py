"""What `bench loss` measures: exact values, errors, memory, one cell."""

import gc
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from softmaxce.bench import candidates
from softmaxce.bench.accuracy import errors, exact_loss_and_gradient
from softmaxce.bench.loss import Case, compare, inputs, measure
from softmaxce.bench.memory import peak_bytes
from softmaxce.config import registry
from softmaxce.config.components import Component

CPU = torch.device("cpu")


def test_the_exact_values_are_mpmaths_to_13_digits_for_ordinary_and_confident_right_and_wrong_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 7, generator=generator)
    targets = torch.arange(6)
    logits[1, 1], logits[2, 2], logits[3, 3], logits[4, 4] = 30.0, 90.0, -60.0, -900.0
    loss, gradient = exact_loss_and_gradient(logits, targets)
    with mpmath.workdps(60):
        losses = []
        for row, y, got in zip(logits.double().tolist(), targets.tolist(), gradient.tolist(), strict=True):
            e = [mpmath.exp(mpmath.mpf(z)) for z in row]
            others = mpmath.fsum(x for i, x in enumerate(e) if i != y)
            losses.append(mpmath.log1p(others / e[y]))
            exact = [(x if i != y else -others) / (others + e[y]) / 6 for i, x in enumerate(e)]
            assert got == pytest.approx([float(x) for x in exact], rel=1e-13, abs=1e-300)
        assert loss.item() == pytest.approx(float(mpmath.fsum(losses) / 6), rel=1e-13)


def test_a_loss_that_is_one_percent_too_large_has_an_error_of_one_percent() -> None:
    logits, targets = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 4
    result = errors(
        lambda z, y: 1.01 * functional.cross_entropy(z, y), logits, targets, exact_loss_and_gradient(logits, targets)
    )
    assert result.loss == pytest.approx(0.01, rel=1e-9)
    assert result.gradient == pytest.approx(0.01, rel=1e-9)


def test_the_naive_loss_is_right_on_ordinary_logits_and_infinite_where_the_model_is_confident_and_wrong() -> None:
    targets = torch.tensor([0, 1])
    ordinary, wrong = torch.randn(2, 5), torch.tensor([[0.0, 200.0], [0.0, 0.0]])
    assert errors(candidates.naive, ordinary, targets, exact_loss_and_gradient(ordinary, targets)).largest < 1e-5
    assert errors(candidates.naive, wrong, targets, exact_loss_and_gradient(wrong, targets)).largest == float("inf")


def test_the_peak_is_the_most_that_was_alive_at_once() -> None:
    def call() -> None:
        first = torch.ones(1000)  # 4,000 bytes
        second = torch.ones(3000)  # 16,000 alive
        del first
        third = torch.ones(500)  # 14,000
        del second, third

    assert peak_bytes(call, CPU) == 16_000


def test_garbage_that_is_collected_during_a_call_does_not_lower_its_peak() -> None:
    def call() -> None:
        gc.collect()
        torch.ones(1000)

    garbage: list[object] = [torch.ones(10_000)]
    garbage.append(garbage)
    del garbage
    assert peak_bytes(call, CPU) == 4000


def test_every_third_row_of_the_inputs_is_confident() -> None:
    logits, targets = inputs(Case(90, 12, "float32", CPU, 1))
    margin = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.scatter(1, targets.unsqueeze(1), -99).amax(1)
    confident = margin >= 4.99
    assert confident[::3].all()
    assert confident.sum() == 30
    again, _ = inputs(Case(90, 12, "float32", CPU, 1))
    assert torch.equal(logits, again)


def test_a_cell_has_each_candidates_times_memory_and_errors() -> None:
    slow_calls = 0

    def slow(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal slow_calls
        slow_calls += 1
        return sum((functional.cross_entropy(logits, targets) for _ in range(8)), torch.tensor(0.0)) / 8

    case = Case(256, 100, "float32", CPU, 1)
    results = measure(case, {**candidates.candidates(with_compiled=False), "slow": slow}, rounds=5)
    assert list(results) == ["torch", "ours", "naive", "slow"]
    assert results["slow"].both.ratio.median > 4
    assert results["slow"].forward.ratio.median > 4
    assert slow_calls > 10
    logits_bytes = 256 * 100 * 4
    for result in results.values():
        assert result.memory >= 1.0  # the gradient at least
        assert result.memory == pytest.approx(round(result.memory * logits_bytes) / logits_bytes)
    assert results["torch"].errors.largest > 0.4  # where the model is confident
    assert results["ours"].errors.largest < 1e-5


def test_a_cells_threads_are_what_torch_may_use_in_it_and_only_in_it() -> None:
    seen = set()

    def recording(logits: Tensor, targets: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return functional.cross_entropy(logits, targets)

    before = torch.get_num_threads()
    measure(Case(4, 3, "float32", CPU, 5), {"torch": recording}, rounds=2)
    assert seen == {5}
    assert torch.get_num_threads() == before


def test_every_registered_loss_and_the_users_function_can_be_compared(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch.nn import functional\n\n\n"
        "def mine(logits, targets):\n    return functional.cross_entropy(logits, targets, reduction='none')\n"
    )
    others = [Component(name, target, {}) for name, target in registry.LOSSES.items()]
    others.append(Component("mine", f"{tmp_path / 'mine.py'}:mine", {}))
    results = compare(Case(16, 4, "float32", CPU, 1), rounds=2, with_compiled=False, others=others)
    assert set(results) == {"torch", "ours", "naive", "mine", *registry.LOSSES}
    assert results["torch_cross_entropy"].errors == results["torch"].errors
    assert results["mine"].errors.gradient == pytest.approx(results["torch"].errors.gradient, rel=1e-3)
    assert results["focal"].errors.largest > 0.1  # it is another loss


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is the GNU C library's")
def test_freed_memory_stays_in_the_process() -> None:
    script = (
        "import resource, torch\n"
        "from softmaxce.bench.allocator import never_trim, reserve\n"
        "print(never_trim())\n"
        "reserve(2**28)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(2**24)\n"  # 64 MB: 16,384 pages of 4 KB
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    note, faults = done.stdout.splitlines()
    if "mallopt" not in note:
        pytest.skip(note)
    assert int(faults) < 100
