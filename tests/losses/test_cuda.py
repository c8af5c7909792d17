"""The results of the Triton kernels, on a GPU or in Triton's interpreter on the CPU.

`TRITON_INTERPRET=1 pytest tests/losses/test_cuda.py` runs these in the interpreter; test_triton_kernels.py does so.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from softmaxce import cross_entropy, linear_cross_entropy
from softmaxce.losses import cross_entropy as module_of_cross_entropy
from softmaxce.losses import cuda, linear_chunks, reference

from .references import BITS, OPERATION, ROWS, as_double, assert_as_accurate, cast_row, exact_result, ulp_error
from .references import value_and_gradient as parity

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter uses NumPy, which warns of inf - inf
]
needs_gpu = pytest.mark.skipif(INTERPRETED, reason="in Triton's interpreter")


def ours(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The kernels' loss, called as `cross_entropy` calls it."""
    return cuda.fused_cross_entropy(logits, target, weight, ignore_index, reduction, label_smoothing, logits.dtype)


def on_device(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(DEVICE, dtype) if value.is_floating_point() else value.to(DEVICE)


def value_and_gradient(function: Callable[..., Tensor], logits: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The loss and its gradient, for an upstream gradient other than 1; in float64."""
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf, *args, **kwargs)
    upstream = (0.5 + 0.25 * (torch.arange(value.numel(), device=value.device) % 5)).reshape(value.shape)
    (gradient,) = torch.autograd.grad(value, leaf, upstream.to(value.dtype))
    assert gradient.dtype == leaf.dtype
    return [value.detach().double(), gradient.double()]


def tolerance(dtype: torch.dtype) -> float:
    """The allowed relative error. Triton's interpreter truncates to bfloat16 where a GPU rounds."""
    if dtype == torch.float32:
        return 2e-6
    return 2.0 ** -(BITS[dtype] - (INTERPRETED and dtype == torch.bfloat16)) * 1.01


OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "defaults": lambda classes: {},
    "sum": lambda classes: {"reduction": "sum"},
    "none": lambda classes: {"reduction": "none"},
    "weighted": lambda classes: {"weight": torch.linspace(0.25, 2, classes)},
    "smoothed": lambda classes: {"label_smoothing": 0.125},
    "ignoring": lambda classes: {"ignore_index": 1},
    "all options": lambda classes: {
        "weight": torch.linspace(0.25, 2, classes),
        "label_smoothing": 0.125,
        "reduction": "none",
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1), (200, 10), (2, 5000)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient_are_torchs_with_every_option(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(shape[1])
    logits = on_device(torch.randn(*shape, generator=generator) * 3, dtype)
    options = {key: on_device(value, dtype) for key, value in OPTIONS[name](shape[1]).items()}
    ids = torch.randint(shape[1], shape[:1], generator=generator).to(DEVICE)
    soft = on_device(torch.randn(*shape, generator=generator).softmax(1), dtype)
    for target in (ids, soft) if "ignore_index" not in options else (ids,):
        got = value_and_gradient(ours, logits, target, **options)
        exactly = {key: value.double() if isinstance(value, Tensor) else value for key, value in options.items()}
        exact_target = target.double() if target.is_floating_point() else target
        exact = value_and_gradient(functional.cross_entropy, logits.double(), exact_target, **exactly)
        for mine, true in zip(got, exact, strict=True):
            assert torch.equal(mine.isnan(), true.isnan())
            scale = true.abs().nan_to_num()
            if options.get("label_smoothing") or target is soft:  # T S - Q cancels, in PyTorch's loss too
                scale += scale.amax(-1, keepdim=True) / 16
            assert ((mine - true).abs().nan_to_num() <= scale * tolerance(dtype) + 6e-8).all()


@pytest.fixture
def through_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the public functions use the kernels in the interpreter too, as they do on a GPU."""
    assert cuda._work(DEVICE, torch.float32)
    if INTERPRETED:
        original = module_of_cross_entropy.fused_backend
        for module in (module_of_cross_entropy, linear_chunks):
            monkeypatch.setattr(module, "fused_backend", lambda *arguments: original(*arguments) and cuda)
        monkeypatch.setattr(module_of_cross_entropy, "fits_fast_path", lambda *arguments: False)


@pytest.mark.usefixtures("through_public_functions")
def test_every_sample_of_torchs_operation_gives_torchs_value_and_gradient() -> None:
    samples = list(OPERATION.sample_inputs(DEVICE.type, torch.float32, requires_grad=False))
    assert len(samples) > 20
    for sample in samples:
        exact_args = [as_double(each) for each in sample.args]
        exact_kwargs = {key: as_double(each) for key, each in sample.kwargs.items()}
        assert_as_accurate(
            parity(cross_entropy, sample.input, *sample.args, **sample.kwargs),
            parity(functional.cross_entropy, sample.input, *sample.args, **sample.kwargs),
            parity(functional.cross_entropy, sample.input.double(), *exact_args, **exact_kwargs),
        )


@pytest.mark.usefixtures("through_public_functions")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy_in_chunks_is_cross_entropy_of_linear(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_chunks, "MAX_LOGITS", 1)
    monkeypatch.setattr(linear_chunks, "MIN_ROWS", 30)
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((70, 8), (50, 8), (50,)))
    ids = (torch.arange(70) % 50).to(DEVICE)
    leaves = [tensor.requires_grad_() for tensor in (x, w, b)]
    mine = linear_cross_entropy(x, w, ids, linear_bias=b, reduction=reduction)
    true = functional.cross_entropy(x.double() @ w.double().T + b.double(), ids, reduction=reduction)
    upstream = torch.rand(mine.shape, generator=generator).to(DEVICE)
    torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-6)
    got, exact = (torch.autograd.grad(v, leaves, upstream.to(v.dtype)) for v in (mine, true))
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradient_are_within_10_ulp_in_float32_and_rounded_once_in_16_bits(dtype: torch.dtype) -> None:
    bound = 10.0 if dtype == torch.float32 else 0.501
    if INTERPRETED and dtype == torch.bfloat16:
        bound = 1.001  # the interpreter truncates, and rounds subnormal numbers differently
    for name in ROWS:
        case = cast_row(name, dtype)
        if case is None or (INTERPRETED and len(case[0]) > 10_000):  # too slow there; the next test has a long row
            continue
        row, target = case
        exact, gradient = exact_result(row, target)
        leaf = row.to(DEVICE).unsqueeze(0).requires_grad_()
        loss = ours(leaf, torch.tensor([target], device=DEVICE))
        (got,) = torch.autograd.grad(loss, leaf)
        pairs = [(loss.item(), exact), *zip(got[0].double().tolist(), gradient, strict=True)]
        if INTERPRETED and dtype == torch.bfloat16:
            pairs = [(a, b) for a, b in pairs if abs(b) > 2e-38]
        assert max((ulp_error(a, b, dtype) for a, b in pairs[:3000]), default=0) <= bound, name


def test_rising_logits_lose_no_digits_between_blocks() -> None:
    row = torch.linspace(-30, 0, 20_000).to(DEVICE)
    exact, _ = exact_result(row, 19_999)
    assert ulp_error(ours(row.unsqueeze(0), torch.tensor([19_999], device=DEVICE)).item(), exact, torch.float32) <= 10


@settings(max_examples=15)
@given(
    rows=st.integers(1, 40),
    classes=st.integers(1, 70),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
    shift=st.sampled_from([0.0, -1e3, 1e4]),
    seed=st.integers(0, 99),
)
def test_random_shapes_and_logits_give_the_loss_and_gradient_of_the_reference_implementation(
    rows: int, classes: int, scale: float, shift: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=generator) * scale + shift).to(DEVICE)
    ids = torch.randint(classes, (rows,), generator=generator).to(DEVICE)
    mine, exact = (
        value_and_gradient(ours, logits, ids),
        value_and_gradient(reference.cross_entropy, logits.double(), ids),
    )
    torch.testing.assert_close(mine, exact, rtol=3e-6, atol=1e-15)


def test_infinite_and_nan_logits_give_the_result_of_the_reference_implementation() -> None:
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor(
        [[1.0, -inf, 0.0], [-inf, -inf, -inf], [-inf, 2.0, -inf], [inf, 0.0, 1.0], [nan, 0.0, 1.0], [0.0, inf, nan]]
    ).to(DEVICE)
    for target in (torch.tensor([0, 0, 1, 0, 0, 1]), torch.tensor([1, 1, 0, 1, 1, 0]), torch.full((6,), 2)):
        for smoothing in (0.0, 0.1):
            got = value_and_gradient(ours, rows, target.to(DEVICE), reduction="none", label_smoothing=smoothing)
            true = value_and_gradient(
                reference.cross_entropy, rows, target.to(DEVICE), reduction="none", label_smoothing=smoothing
            )
            assert torch.equal(got[0].isinf(), true[0].isinf())
            finite = true[0].isfinite()
            assert not got[0][~finite & ~true[0].isinf()].isfinite().any()
            torch.testing.assert_close(got[0][finite], true[0][finite])
            torch.testing.assert_close(got[1][finite], true[1][finite])


def test_a_class_at_minus_infinity_with_target_probability_0_adds_nothing_to_the_loss() -> None:
    logits = torch.tensor([[0.0, -float("inf"), 1.0]], device=DEVICE)
    soft = torch.tensor([[0.25, 0.0, 0.75]], device=DEVICE)
    two = value_and_gradient(ours, logits[:, ::2], soft[:, ::2])
    three = value_and_gradient(ours, logits, soft)
    torch.testing.assert_close(three[0], two[0])
    torch.testing.assert_close(three[1], torch.stack([two[1][:, 0], torch.zeros_like(two[0])[None], two[1][:, 1]], 1))


def test_the_largest_probability_of_a_soft_label_may_be_in_any_block() -> None:
    classes = cuda.TILE * 2 + 100
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, classes, generator=generator).to(DEVICE)
    soft = torch.full((6, classes), 0.3 / classes)
    for row, column in enumerate((0, 5, cuda.TILE - 1, cuda.TILE, 2 * cuda.TILE, classes - 1)):
        soft[row, column] += 0.7
    soft[3, 7] += 0.2  # the largest of the first block, but not of the row
    got, true = (
        value_and_gradient(f, logits.to(d), soft.to(DEVICE, d), reduction="none")
        for f, d in ((ours, torch.float32), (functional.cross_entropy, torch.float64))
    )
    torch.testing.assert_close(got, true, rtol=3e-6, atol=1e-7)


def test_the_upstream_gradient_is_multiplied_in_before_the_gradient_is_rounded() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16).requires_grad_()
    ids = torch.arange(50, device=DEVICE) % 10
    # a confident row's gradient, divided by the number of rows, is 0 in float16; multiplied by 2^16 first it is not
    with torch.no_grad():
        logits[0, 0] = 12.0
    loss = cuda.fused_cross_entropy(logits, ids, None, -100, "mean", 0.0, torch.float32)
    (gradient,) = torch.autograd.grad(loss * 65536, logits)
    exact = value_and_gradient(reference.cross_entropy, logits.double(), ids)[1] * 2  # its upstream gradient is 0.5
    torch.testing.assert_close(gradient.double(), exact * 65536, rtol=2.0**-11 * 1.01, atol=3e-8)
    losses = ours(logits, ids, reduction="none")
    (summed,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)  # an expanded upstream gradient
    (ones,) = torch.autograd.grad(losses, logits, torch.ones_like(losses))
    assert torch.equal(summed, ones)


def test_repeated_backward_passes_give_the_same_gradient_and_leave_the_logits_unchanged() -> None:
    logits = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    leaf = logits.clone().requires_grad_()
    loss = ours(leaf, torch.arange(7, device=DEVICE))
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)
    assert torch.equal(leaf, logits)
    leaf.data.add_(0)
    with torch.no_grad():
        leaf.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_those_of_the_reference_implementation() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids = torch.tensor([0, 2, 4, 1], device=DEVICE)
    hessians = []
    for function in (ours, reference.cross_entropy):
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf, ids, label_smoothing=0.1), leaf, create_graph=True)
        hessians.append(torch.autograd.grad(gradient.pow(2).sum(), leaf)[0])
    torch.testing.assert_close(*hessians)


def test_logits_in_any_layout_give_the_loss_of_contiguous_ones() -> None:
    wide = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids = torch.arange(6, device=DEVICE)
    for view in (wide[:, 3:20], wide[::2, 1:9].repeat(2, 1), wide.T[:6], wide[:, ::2], wide[:1].expand(6, 40)):
        torch.testing.assert_close(ours(view, ids), ours(view.contiguous(), ids))
        torch.testing.assert_close(ours(view, view.softmax(1)), ours(view.contiguous(), view.softmax(1).contiguous()))


def test_an_ignored_row_changes_no_result_even_if_it_is_nan() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logits[2] = float("nan")
    ids = torch.tensor([0, 1, -100, 8], device=DEVICE)
    others = torch.tensor([0, 1, 3], device=DEVICE)
    for options in ({}, {"label_smoothing": 0.2}):
        value, gradient = value_and_gradient(ours, logits, ids, **options)
        expected = value_and_gradient(functional.cross_entropy, logits[others], ids[others], **options)
        torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient[others], expected[1], rtol=1e-5, atol=1e-8)
        assert not gradient[2].any()
    empty_mean, zero = value_and_gradient(ours, logits, torch.full_like(ids, -100))
    assert empty_mean.isnan()
    assert not zero.any()


def test_a_class_id_out_of_range_makes_its_row_nan_and_is_named_by_check_class_ids() -> None:
    cuda.check_class_ids()
    logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    for wrong in (10, -1, 2**40):
        ids = torch.arange(300, device=DEVICE) % 10
        ids[211] = wrong
        losses = ours(logits, ids, reduction="none")
        assert losses.isnan().nonzero().flatten().tolist() == [211]
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert gradient.isnan().any(1).nonzero().flatten().tolist() == [211]
        assert ours(logits, ids).isnan()
        with pytest.raises(IndexError, match=f"class id {wrong} is out of range: with 10 classes"):
            cuda.check_class_ids()
        cuda.check_class_ids()  # it is reported once


def test_float64_and_inputs_promoted_to_it_use_the_reference_implementation() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    soft = torch.rand(3, 4, dtype=torch.float64, device=DEVICE)
    loss = cuda.fused_cross_entropy(logits, soft, None, -100, "mean", 0.0, torch.float64)
    torch.testing.assert_close(loss, functional.cross_entropy(logits.double(), soft))


# -- memory traffic ---------------------------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """Bytes that a forward and a backward pass read and write, and the smallest possible number of them."""

    moved: int
    minimum: int


def traffic(num_rows: int, num_classes: int, dtype: torch.dtype, soft: torch.dtype | None = None) -> Traffic:
    """The traffic of a mean without weights, over class ids or over probabilities of the dtype `soft`.

    The minimum: both passes read the logits and the labels, and the gradient is written once.
    """
    plan = cuda.launch_plan(num_rows, num_classes)
    logits = num_rows * num_classes * dtype.itemsize
    labels = num_rows * (8 if soft is None else num_classes * soft.itemsize)
    targets = num_rows * dtype.itemsize if soft is None else 0  # each row's target logit is looked up
    per_row = 4 * cuda.SAVED * num_rows
    sums = 4 * 2 * plan.programs
    forward = logits + labels + targets + per_row + sums
    reduce = sums + dtype.itemsize + 4
    scalars = (dtype.itemsize + 4) * plan.programs * plan.blocks  # the upstream gradient and the divisor
    backward = logits + (labels if soft else 0) + per_row * plan.blocks + scalars + logits
    return Traffic(forward + reduce + backward, 3 * logits + 2 * labels)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of every load and store that the interpreter carries out."""
    from triton.runtime import interpreter

    counts: list[int] = []
    for name in ("create_masked_load", "create_masked_store"):
        original = getattr(interpreter.InterpreterBuilder, name)

        def counted(builder: Any, pointers: Any, *rest: Any, original: Any = original, name: str = name) -> Any:
            mask = rest[0] if name == "create_masked_load" else rest[1]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            counts.append(int(mask.data.sum()) * size)
            return original(builder, pointers, *rest)

        monkeypatch.setattr(interpreter.InterpreterBuilder, name, counted)
    return counts


@pytest.mark.skipif(not INTERPRETED, reason="bytes are counted in Triton's interpreter")
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("shape", [(200, 10), (9, 1000), (2, 5000)], ids=str)
def test_the_kernels_read_and_write_as_many_bytes_as_predicted(
    moved: list[int], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    for soft in (None, torch.float32):
        logits = torch.randn(*shape).to(dtype).requires_grad_()
        target = torch.arange(shape[0]) % shape[1] if soft is None else torch.rand(*shape)
        moved.clear()
        cuda.fused_cross_entropy(logits, target, None, -100, "mean", 0.0, dtype).backward()
        # an id out of range would also be stored; there is none
        assert sum(moved) == traffic(*shape, dtype, soft).moved


@pytest.mark.parametrize(
    ("shape", "bound"), [((65536, 1000), 1.02), ((8192, 32000), 1.003), ((8192, 128256), 1.003), ((1024, 10), 1.4)]
)
def test_memory_traffic_is_close_to_the_minimum(shape: tuple[int, int], bound: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        moved, minimum = traffic(*shape, dtype)
        assert 1 <= moved / minimum < 1 + (bound - 1) * 4 / dtype.itemsize


# -- on a GPU only ----------------------------------------------------------------------------------------------------


@needs_gpu
def test_the_public_function_uses_the_kernels_on_a_gpu_without_synchronizing() -> None:
    logits = torch.randn(64, 1000, device=DEVICE, requires_grad=True)
    ids = torch.arange(64, device=DEVICE)
    cross_entropy(logits, ids).backward()  # compiles
    assert cuda.available(logits.device, logits.dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = cross_entropy(logits, ids)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "_Fused" in type(loss.grad_fn).__name__


@needs_gpu
def test_a_step_can_be_captured_in_a_cuda_graph_and_replayed_on_other_logits() -> None:
    logits = torch.randn(64, 1000, device=DEVICE, requires_grad=True)
    ids = torch.arange(64, device=DEVICE)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.autograd.grad(cross_entropy(logits, ids), logits)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = cross_entropy(logits, ids)
        (gradient,) = torch.autograd.grad(loss, logits)
    with torch.no_grad():
        logits.normal_()
    graph.replay()
    exact = value_and_gradient(functional.cross_entropy, logits.double(), ids)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1] * 2, rtol=1e-5, atol=1e-9)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_cross_entropy_on_a_gpu_is_cross_entropy_of_linear(dtype: torch.dtype) -> None:
    x, w = torch.randn(700, 64, device=DEVICE, dtype=dtype), torch.randn(9000, 64, device=DEVICE, dtype=dtype) / 8
    ids = torch.arange(700, device=DEVICE)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    mine = torch.autograd.grad(linear_cross_entropy(x, w, ids), leaves)
    exact = torch.autograd.grad(functional.cross_entropy(x.double() @ w.double().T, ids), leaves)
    for got, true in zip(mine, exact, strict=True):
        assert (got - true).norm() <= true.norm() * (1e-4 if dtype == torch.float32 else 2e-2)


@needs_gpu
def test_more_logits_than_a_32_bit_index_can_address_give_torchs_loss_and_gradient() -> None:
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("the GPU has no 14 GB free")
    logits = torch.randn(8200, 262_144, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.arange(8200, device=DEVICE) * 31
    losses = ours(logits, ids, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    for row in (0, 8199):
        exact = value_and_gradient(functional.cross_entropy, logits[row : row + 1].double(), ids[row : row + 1])
        torch.testing.assert_close(losses[row].double(), exact[0], rtol=2.0**-8, atol=0)
        torch.testing.assert_close(gradient[row].double(), exact[1][0] * 2, rtol=2.0**-8, atol=1e-30)
