"""Tensors in unusual memory layouts, and calls that are refused, interrupted or concurrent."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from softmaxce import SoftmaxCrossEntropy, cross_entropy, linear_cross_entropy
from softmaxce.kernels import numba_runtime
from softmaxce.kernels.all_finite import FiniteCheck
from softmaxce.kernels.gather_normalize import BatchGatherer
from softmaxce.losses.variants.focal import FocalLoss
from softmaxce.models.max_pool import MaxPool2x2

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLASSES = [1, 2, 10, 50]  # short rows and long ones
N = 6


def layouts(num_classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits [N, K] or [1, K] in unusual memory layouts."""
    generator = torch.Generator().manual_seed(num_classes)
    numbers = torch.randn(4 * N * num_classes + 99, generator=generator).to(dtype)
    K = num_classes
    return {
        "one row, stride 1": numbers[: K + 1].as_strided((1, K), (1, 1)),
        "one row, stride 0": numbers[:K].expand(1, K).as_strided((1, K), (0, 1)),
        "one column, any stride": numbers[:N].as_strided((N, K), (1, 1 if K > 1 else 77)),
        "overlapping by one": numbers.unfold(0, K, max(K - 1, 1))[:N],
        "sliding by one": numbers.unfold(0, K, 1)[:N],
        "expanded rows": numbers[:K].expand(N, K),
        "expanded columns": numbers[:N].unsqueeze(1).expand(N, K),
        "one number": numbers[:1].expand(N, K),
        "transposed": numbers[: N * K].view(K, N).t(),
        "every other column": numbers[: 2 * N * K].view(N, 2 * K)[:, ::2],
        "every other row": numbers[: 2 * N * K].view(2 * N, K)[::2],
        "an offset and gaps": numbers[3 : 3 + N * (K + 5)].view(N, K + 5)[:, 2 : 2 + K],
    }


def assert_bits_of_contiguous(loss: Callable[..., Tensor], logits: Tensor, *arguments: Any, **options: Any) -> None:
    """The loss and its gradient have the bits that they have for the same logits in a contiguous tensor."""
    results = []
    for each in (logits, torch.tensor(logits.tolist(), dtype=logits.dtype)):
        leaf = each.detach().requires_grad_()
        value = loss(leaf, *arguments, **options)
        upstream = torch.full((), 1.5, dtype=value.dtype).expand(value.shape)  # strides 0
        (gradient,) = torch.autograd.grad(value, leaf, upstream)
        results.append((value.detach(), gradient, loss(each.detach(), *arguments, **options)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", CLASSES)
def test_loss_and_gradient_do_not_depend_on_the_layout_of_the_logits(num_classes: int, dtype: torch.dtype) -> None:
    for logits in layouts(num_classes, dtype).values():
        ids = torch.arange(len(logits)).mul_(7).remainder_(num_classes)
        soft = torch.full((), 1 / num_classes, dtype=dtype).expand(logits.shape)  # all strides are 0
        weight = torch.rand((), dtype=dtype).expand(num_classes)
        for reduction in ("mean", "sum", "none"):
            assert_bits_of_contiguous(cross_entropy, logits, ids, reduction=reduction)
            assert_bits_of_contiguous(cross_entropy, logits, soft, weight, reduction=reduction)
        assert_bits_of_contiguous(cross_entropy, logits, ids, weight, label_smoothing=0.1, reduction="sum")
        assert_bits_of_contiguous(cross_entropy, logits, ids[:1].expand(len(logits)))
        assert_bits_of_contiguous(FocalLoss(2.0, reduction="none"), logits, ids)


def test_a_row_from_a_transposed_product_has_torchs_loss() -> None:
    torch.manual_seed(0)
    weights, x = torch.randn(50, 8), torch.randn(8)
    z = (weights @ x[:, None]).t()
    assert z.is_contiguous()
    assert z.stride() == (1, 1)
    for reduction in ("sum", "none", "mean"):
        mine, torchs = (
            f(z, torch.tensor([30]), reduction=reduction) for f in (cross_entropy, functional.cross_entropy)
        )
        torch.testing.assert_close(mine, torchs)
    mine = linear_cross_entropy(x.as_strided((1, 8), (1, 1)), weights, torch.tensor([30]), reduction="sum")
    torch.testing.assert_close(mine, functional.cross_entropy(z, torch.tensor([30]), reduction="sum"))


def negative_view(shape: tuple[int, ...]) -> Tensor:
    """A view with PyTorch's negative bit: its numbers are stored negated."""
    view = torch.complex(torch.zeros(shape), torch.randn(shape)).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_classes", CLASSES)
def test_negative_views_have_torchs_loss(num_classes: int, reduction: str) -> None:
    ids = torch.arange(N) % num_classes
    for logits in (negative_view((N, num_classes)), torch._neg_view(torch.randn(N, num_classes))):
        for weight in (None, torch._neg_view(-torch.rand(num_classes))):
            mine, torchs = (
                f(logits, ids, weight, reduction=reduction) for f in (cross_entropy, functional.cross_entropy)
            )
            torch.testing.assert_close(mine, torchs)
    logits = torch.randn(N, num_classes).requires_grad_()
    upstream = torch._neg_view(torch.arange(1.0, N + 1))
    gradients = [
        torch.autograd.grad(f(logits, ids, reduction="none"), logits, upstream)
        for f in (cross_entropy, functional.cross_entropy)
    ]
    torch.testing.assert_close(*gradients)


def test_a_zero_tensor_without_memory_has_the_loss_of_zeros() -> None:
    zeros = torch._efficientzerotensor((4, 3))
    for reduction in ("mean", "sum", "none"):
        expected = functional.cross_entropy(torch.zeros(4, 3), torch.arange(4) % 3, reduction=reduction)
        torch.testing.assert_close(cross_entropy(zeros, torch.arange(4) % 3, reduction=reduction), expected)


@pytest.mark.parametrize("name", ["meta", "cpu"])
def test_another_default_device_or_dtype_changes_no_result(name: str) -> None:
    logits, ids = torch.randn(4, 3), torch.arange(4) % 3
    images = torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)
    expected = [cross_entropy(logits, ids, reduction=r) for r in ("mean", "sum", "none")], MaxPool2x2()(images)
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device(name):
            got = [cross_entropy(logits, ids, reduction=r) for r in ("mean", "sum", "none")], MaxPool2x2()(images)
    finally:
        torch.set_default_dtype(dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_that_overflows_is_infinite_and_its_gradient_finite(dtype: torch.dtype, reduction: str) -> None:
    largest = torch.finfo(dtype).max
    logits = torch.tensor([[largest, -largest]], dtype=dtype).expand(8, 2)
    assert cross_entropy(logits, torch.ones(8, dtype=torch.long), reduction=reduction) == float("inf")
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy(leaf, torch.ones(8, dtype=torch.long), reduction=reduction)
    assert loss == float("inf")
    assert torch.isfinite(torch.autograd.grad(loss, leaf)[0]).all()


@pytest.mark.parametrize("num_classes", [3, 40])
def test_a_class_of_weight_0_and_probability_0_has_gradient_0(num_classes: int) -> None:
    weight = torch.rand(num_classes) + 0.1
    weight[0] = 0
    logits = torch.randn(5, num_classes)
    logits[:, 0] = -3000
    leaf = logits.requires_grad_()
    loss = cross_entropy(leaf, torch.zeros(5, dtype=torch.long), weight, label_smoothing=0.6, reduction="sum")
    assert torch.autograd.grad(loss, leaf)[0][:, 0].tolist() == [0] * 5


# -- tensors changed between forward and backward pass ----------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ids_changed_through_numpy_after_the_forward_pass_are_checked_again(reduction: str) -> None:
    logits, ids = torch.randn(4, 3, requires_grad=True), torch.arange(4) % 3
    loss = cross_entropy(logits, ids, reduction=reduction)
    ids.numpy()[:] = 1 << 40
    with pytest.raises(IndexError, match="out of range"):
        torch.autograd.grad(loss, logits, torch.full_like(loss, 2.0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_logits_resized_after_the_forward_pass_are_refused(reduction: str) -> None:
    logits, ids = torch.randn(4, 3, requires_grad=True), torch.arange(4) % 3
    loss = cross_entropy(logits, ids, reduction=reduction)
    logits.data = torch.randn(100_000, 3)
    with pytest.raises((ValueError, RuntimeError)):
        torch.autograd.grad(loss, logits, torch.full_like(loss, 2.0))


# -- calls that are refused, interrupted or concurrent ----------------------------------------------------------------


@pytest.mark.parametrize(
    "ignore_index", [-1.0, 2**70, -(2**70), 2**63, True, None, "1", float("nan"), torch.tensor(-1.0)]
)
@pytest.mark.parametrize("before", [(2, 3), (300, 3), (4, 3)])
def test_an_ignore_index_that_torch_refuses_is_refused_and_changes_no_later_call(
    ignore_index: Any, before: tuple[int, int]
) -> None:
    logits, ids = torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    expected = functional.cross_entropy(logits, ids, ignore_index=-1)
    cross_entropy(logits, ids, ignore_index=-1)  # a cached launch must not be reused for -1.0, although -1 == -1.0
    cross_entropy(torch.randn(before), torch.arange(before[0]) % 3)
    with pytest.raises((TypeError, ValueError)) as torchs:
        functional.cross_entropy(logits, ids, ignore_index=ignore_index)
    for loss in (cross_entropy, functional.cross_entropy):
        torch.testing.assert_close(loss(logits, ids, ignore_index=-1), expected)
    for reduction in ("mean", "sum", "none"):
        with pytest.raises(torchs.type, match="ignore_index"):
            cross_entropy(logits, ids, ignore_index=ignore_index, reduction=reduction)
    with pytest.raises(torchs.type, match="ignore_index"):
        SoftmaxCrossEntropy(ignore_index=ignore_index)(logits, ids)
    with pytest.raises(torchs.type, match="ignore_index"):
        FocalLoss(2.0, ignore_index=ignore_index)(logits, ids)
    if ignore_index is not None:
        with pytest.raises(torchs.type, match="ignore_index"):
            linear_cross_entropy(logits, torch.eye(3), ids, ignore_index=ignore_index)
    torch.testing.assert_close(cross_entropy(logits, ids, ignore_index=-1), expected)


def test_ignore_index_may_be_any_integer_type_that_torch_accepts() -> None:
    import numpy as np

    logits, ids = torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    for value in (np.int64(-1), torch.tensor(-1), torch.tensor([-1])):
        expected = functional.cross_entropy(logits, ids, ignore_index=value)  # type: ignore[arg-type]
        torch.testing.assert_close(cross_entropy(logits, ids, ignore_index=value), expected)  # type: ignore[arg-type]


def test_a_signal_handler_may_call_the_loss_during_a_call() -> None:
    """At every line of the CPU path's code, the loss is called again with other shapes."""
    logits, ids = torch.randn(8, 5), torch.arange(8) % 5
    expected = functional.cross_entropy(logits, ids)
    others = [(torch.randn(*shape), torch.arange(shape[0]) % shape[1]) for shape in ((8, 5), (300, 7), (1, 1))]
    calls = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal calls
        if frame.f_code.co_filename.rpartition("/")[2].startswith("cpu") and event == "line":
            sys.settrace(None)
            for other in others:
                torch.testing.assert_close(cross_entropy(*other), functional.cross_entropy(*other))
            calls += 1
            sys.settrace(trace)
        return trace

    for _ in range(2):
        sys.settrace(trace)
        try:
            loss = cross_entropy(logits, ids)
        finally:
            sys.settrace(None)
        torch.testing.assert_close(loss, expected)
    assert calls > 15


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
def test_a_call_interrupted_at_any_line_does_not_change_the_next_ones_result(options: dict[str, Any]) -> None:
    small, large = ((torch.randn(n, 5), torch.arange(n) % 5) for n in (3, 400))
    for stop in range(1, 400):
        lines = 0

        def trace(frame: Any, event: str, argument: Any, stop: int = stop) -> Any:
            nonlocal lines
            if "softmaxce" in frame.f_code.co_filename and event == "line":
                lines += 1
                if lines == stop:
                    raise KeyboardInterrupt
            return trace

        cross_entropy(*large, **options)
        sys.settrace(trace)
        try:
            cross_entropy(*small, **options)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        for case in (small, large):
            torch.testing.assert_close(
                cross_entropy(*case, **options), functional.cross_entropy(*case, **options), msg=f"line {stop}"
            )
        if lines < stop:
            break
    assert 10 < stop < 399  # it was interrupted at each of its lines


def test_two_backward_passes_return_equal_gradients_in_different_memory() -> None:
    logits = torch.randn(8, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.arange(8) % 5)
    one, other = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert one.data_ptr() != other.data_ptr()
    assert torch.equal(one, other)


def test_concurrent_calls_with_different_shapes_give_torchs_loss() -> None:
    failures = []

    def work(rows: int) -> None:
        logits, ids = torch.randn(rows, 10), torch.arange(rows) % 10
        expected = functional.cross_entropy(logits, ids)
        for _ in range(300):
            if not torch.allclose(cross_entropy(logits, ids), expected):
                failures.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (3, 3, 40, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


INTERRUPTED = """
import signal, sys, torch
from torch.nn import functional
from softmaxce import cross_entropy

def stop(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
x = {k: torch.randn(40, k) for k in (5, 50)}
interrupted = 0
for k in (5, 50):
    ids = torch.arange(40) % k
    delay = 0.02
    while True:
        signal.setitimer(signal.ITIMER_REAL, delay)
        try:
            loss = cross_entropy(x[k], ids, reduction="sum")
            signal.setitimer(signal.ITIMER_REAL, 0)
            break
        except KeyboardInterrupt:
            interrupted += 1
            delay *= 2.5
    torch.testing.assert_close(loss, functional.cross_entropy(x[k], ids, reduction="sum"))
    torch.testing.assert_close(cross_entropy(x[k], ids), functional.cross_entropy(x[k], ids))
import numba
assert numba.config.CACHE_DIR in ("", sys.argv[1]), numba.config.CACHE_DIR
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_the_loss_is_torchs_after_interrupted_compilations(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4


# -- the other kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 5, 7), (1, 3, 2, 2)])
def test_pooling_of_negative_views_and_overlapping_memory_is_torchs(shape: tuple[int, int, int, int]) -> None:
    for images in (
        torch._neg_view(torch.randn(shape).to(memory_format=torch.channels_last)),
        torch.randn(shape[1:]).expand(shape),
        torch.randn(1).expand(shape),
    ):
        leaf = images.detach().requires_grad_()
        results = []
        for layer in (MaxPool2x2(), torch.nn.MaxPool2d(2)):
            pooled = layer(leaf)
            upstream = torch._neg_view(torch.randn(1, generator=torch.Generator().manual_seed(0))).expand(pooled.shape)
            results.append((pooled, torch.autograd.grad(pooled, leaf, upstream)))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_gatherer_refuses_indices_out_of_range_and_means_of_another_dtype_size_or_stride() -> None:
    images = torch.arange(5 * 3 * 4, dtype=torch.uint8).view(5, 3, 2, 2)
    gatherer = BatchGatherer(images, torch.zeros(3), torch.ones(3))
    strided = torch.tensor([4, 9, 0, 9, 2])[::2]
    torch.testing.assert_close(gatherer.normalized(strided), images[strided].float())
    torch.testing.assert_close(gatherer.normalized(torch.tensor([3]).expand(4)), images[[3] * 4].float())
    for wrong in (5, -1, 1 << 40):
        with pytest.raises(IndexError, match="outside"):
            gatherer.normalized(torch.tensor([0, wrong]))
    for mean in (torch.zeros(1), torch.zeros(3, dtype=torch.float64), torch.zeros(6)[::2]):
        with pytest.raises(ValueError, match="kernel expects"):
            BatchGatherer(images, mean, torch.ones(3))


def test_non_finite_gradients_of_any_layout_and_dtype_are_detected() -> None:
    size = 1000
    parameter = torch.zeros(size, 2, requires_grad=True)
    double = torch.zeros(size, 2, dtype=torch.float64, requires_grad=True)
    check = FiniteCheck([parameter, double])
    for bad in (0.0, float("nan"), float("inf")):
        sparse = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.full((1, 2), bad), (size, 2))
        for gradient in (
            torch.full((1, 1), bad).expand(size, 2),
            torch.full((2, size), bad).t(),
            torch.full((size, 4), bad)[:, ::2],
            sparse,
        ):
            parameter.grad = gradient
            assert check.all_finite() is (bad == 0)
    parameter.grad, double.grad = None, torch.full((size, 2), float("nan"), dtype=torch.float64)
    assert not check.all_finite()


def test_an_interrupted_job_returns_only_after_its_threads_have_finished() -> None:
    lock, running, done = threading.Lock(), [], []

    def part(address: int) -> None:
        running.append(address)
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)
            return
        with lock:
            done.append(address)

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    class Job(ctypes.Structure):
        _fields_ = (("next_chunk", ctypes.c_int64),)

    before = signal.signal(signal.SIGUSR1, stop)
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            numba_runtime._run_in_pool(part, Job(), 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(done) == len(running) - 1 > 0
