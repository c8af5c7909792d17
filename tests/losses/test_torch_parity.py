"""Our loss in place of PyTorch's: its own samples, its errors, and autograd, torch.func, torch.compile and autocast."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from softmaxce import SoftmaxCrossEntropy, cross_entropy
from softmaxce.losses import reference

from .references import OPERATION, as_double, assert_as_accurate, value_and_gradient
from .torchs_samples import module_db

MODULE = next(entry for entry in module_db if entry.module_cls is nn.CrossEntropyLoss)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [cross_entropy, reference.cross_entropy])
def test_every_sample_of_torchs_operation_gives_torchs_value_and_gradient(
    dtype: torch.dtype, function: Callable[..., Tensor]
) -> None:
    samples = list(OPERATION.sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) > 20
    for sample in samples:
        exact_args = [as_double(each) for each in sample.args]
        exact_kwargs = {key: as_double(each) for key, each in sample.kwargs.items()}
        assert_as_accurate(
            value_and_gradient(function, sample.input, *sample.args, **sample.kwargs),
            value_and_gradient(functional.cross_entropy, sample.input, *sample.args, **sample.kwargs),
            value_and_gradient(functional.cross_entropy, sample.input.double(), *exact_args, **exact_kwargs),
        )


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_every_sample_of_torchs_module_gives_torchs_value_and_gradient(dtype: torch.dtype) -> None:
    samples = MODULE.module_inputs_func(MODULE, device="cpu", dtype=dtype, requires_grad=False, training=True)
    assert len(samples) > 10
    for sample in samples:
        constructor, call = sample.constructor_input, sample.forward_input
        ours, torchs = (
            cls(*constructor.args, **constructor.kwargs) for cls in (SoftmaxCrossEntropy, nn.CrossEntropyLoss)
        )
        exact = nn.CrossEntropyLoss(
            *map(as_double, constructor.args), **{key: as_double(each) for key, each in constructor.kwargs.items()}
        )
        assert_as_accurate(
            value_and_gradient(ours, *call.args, **call.kwargs),
            value_and_gradient(torchs, *call.args, **call.kwargs),
            value_and_gradient(exact, *map(as_double, call.args), **call.kwargs),
        )


def test_torchs_own_error_samples_raise_the_same_type_of_error() -> None:
    if OPERATION.error_inputs_func is None:  # this torch ships none; the table below has our own
        return
    for sample in OPERATION.error_inputs("cpu"):
        with pytest.raises(sample.error_type):
            cross_entropy(sample.sample_input.input, *sample.sample_input.args, **sample.sample_input.kwargs)


X, Y = torch.randn(3, 5), torch.tensor([0, 1, 2])
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "int32 ids": ((X, Y.int()), {}),
    "bool ids": ((X, Y.bool()), {}),
    "float ids": ((X, Y.float()), {}),
    "integer probabilities": ((X, torch.ones(3, 5).long()), {}),
    "another batch": ((X, Y[:2]), {}),
    "an id too large": ((X, Y + 4), {}),
    "a negative id": ((X, Y - 3), {}),
    "an id too large, smoothed": ((X, Y + 4), {"label_smoothing": 0.1}),
    "smoothing above 1": ((X, Y), {"label_smoothing": 1.5}),
    "weight of another length": ((X, Y, torch.ones(4)), {}),
    "weight of another dtype": ((X, Y, torch.ones(5).double()), {}),
    "weight of two dimensions": ((X, Y, torch.ones(5, 1)), {}),
    "weight that requires a gradient": ((X, Y, torch.ones(5, requires_grad=True)), {}),
    "an unknown reduction": ((X, Y), {"reduction": "avg"}),
    "probabilities with ignore_index": ((X, X.softmax(1)), {"ignore_index": 2}),
    "a scalar": ((torch.tensor(1.0), torch.tensor(0)), {}),
    "one row, an id too large": ((X[0], torch.tensor(7)), {}),
    "three dimensions, another length": ((torch.randn(2, 5, 4), torch.zeros(2, 3).long()), {}),
    "four dimensions, another height": ((torch.randn(2, 5, 4, 4), torch.zeros(2, 3, 4).long()), {}),
    "ids as a column": ((X, Y[:, None]), {}),
    "integer logits": ((X.long(), Y), {}),
    "complex logits": ((X.cfloat(), Y), {}),
    "a list of logits": (([1.0], Y), {}),
    "a list of ids": ((X, [0, 1, 2]), {}),
    "no classes": ((torch.randn(3, 0), torch.zeros(3).long()), {}),
    "another device": ((X.to("meta"), Y), {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_torch_refuses_raise_the_same_type_of_error(name: str) -> None:
    args, kwargs = REFUSED[name]
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)) as torchs:
        functional.cross_entropy(*args, **kwargs)
    kind = RuntimeError if torchs.type is NotImplementedError else torchs.type
    with pytest.raises(kind):
        cross_entropy(*args, **kwargs)


SHAPES = st.sampled_from(
    [(5,), (1, 1), (3, 5), (4, 1), (2, 5, 3), (2, 3, 2, 4), (1, 4, 2, 1, 2), (0, 5), (2, 5, 0), (260, 3), (3, 40)]
)


@settings(deadline=None, max_examples=150)
@given(
    shape=SHAPES,
    soft=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignore_index=st.sampled_from([-100, 0, 1]),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_combination_of_arguments_gives_torchs_value_and_gradient(
    shape: tuple[int, ...],
    soft: bool,
    weighted: bool,
    smoothing: float,
    reduction: str,
    ignore_index: int,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    if transposed and len(shape) > 1:
        logits = logits.transpose(0, -1).contiguous().transpose(0, -1)
    num_classes = shape[0] if len(shape) == 1 else shape[1]
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = torch.rand(num_classes, generator=generator, dtype=torch.float64)
    if soft:
        target = torch.rand(shape, generator=generator, dtype=torch.float64)
    else:
        target = torch.randint(num_classes, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=generator)
        options["ignore_index"] = ignore_index
    for function in (cross_entropy, reference.cross_entropy):
        ours = value_and_gradient(function, logits, target, **options)
        torchs = value_and_gradient(functional.cross_entropy, logits, target, **options)
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12, equal_nan=True)


# -- autograd, torch.func, torch.compile, autocast, threads -----------------------------------------------------------


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_first_and_second_derivatives_agree_with_finite_differences(
    batch: tuple[Tensor, Tensor], reduction: str
) -> None:
    logits = batch[0].requires_grad_()

    def loss(z: Tensor) -> Tensor:
        return cross_entropy(z, batch[1], label_smoothing=0.1, reduction=reduction)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_the_gradient_for_soft_targets_agrees_with_finite_differences(batch: tuple[Tensor, Tensor]) -> None:
    soft = batch[0].flip(0).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(cross_entropy, (batch[0].requires_grad_(), soft))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_second_backward_pass_gives_the_same_gradient(batch: tuple[Tensor, Tensor], smoothing: float) -> None:
    for scale in (1.0, 3.0):
        leaf = batch[0].clone().requires_grad_()
        loss = cross_entropy(leaf * 1, batch[1], label_smoothing=smoothing)
        (first,) = torch.autograd.grad(loss, leaf, torch.tensor(scale, dtype=loss.dtype), retain_graph=True)
        first = first.clone()
        (second,) = torch.autograd.grad(loss, leaf, torch.tensor(scale, dtype=loss.dtype))
        torch.testing.assert_close(first, second, rtol=1e-14, atol=0)


def test_overwriting_a_gradient_does_not_change_a_later_backward_pass(batch: tuple[Tensor, Tensor]) -> None:
    leaf = batch[0].clone().requires_grad_()
    loss = cross_entropy(leaf, batch[1])
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    expected = first.clone()
    first.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected, rtol=1e-14, atol=0)


def test_logits_changed_in_place_before_a_second_backward_pass_are_an_error(
    batch: tuple[Tensor, Tensor],
) -> None:
    leaf = batch[0].clone().requires_grad_()
    logits = leaf * 1
    loss = cross_entropy(logits, batch[1])
    loss.backward(retain_graph=True)
    logits.data = logits.data  # the same numbers: no error
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_vmap_jvp_and_hessian_are_torchs(batch: tuple[Tensor, Tensor]) -> None:
    logits, ids = batch
    tangent = torch.ones_like(logits).cumsum(1)

    def results(loss: Callable[..., Tensor]) -> list[Tensor]:
        return [
            torch.func.grad(loss)(logits, ids),
            torch.func.vmap(loss)(logits, ids),
            torch.func.vmap(torch.func.grad(loss))(logits, ids),
            torch.func.jvp(lambda z: loss(z, ids), (logits,), (tangent,))[1],
            torch.func.hessian(lambda z: loss(z, ids))(logits),
        ]

    torch.testing.assert_close(results(cross_entropy), results(functional.cross_entropy))


def test_forward_mode_derivatives_are_torchs(batch: tuple[Tensor, Tensor]) -> None:
    tangents = []
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(batch[0], torch.ones_like(batch[0]).cumsum(1))
        for loss in (cross_entropy, functional.cross_entropy):
            tangents.append(forward_ad.unpack_dual(loss(dual, batch[1])).tangent)
    torch.testing.assert_close(*tangents)


def test_it_compiles_without_a_graph_break_and_gives_torchs_result(batch: tuple[Tensor, Tensor]) -> None:
    logits = batch[0].float()
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    ours = value_and_gradient(compiled, logits, batch[1])
    torch.testing.assert_close(ours, value_and_gradient(functional.cross_entropy, logits, batch[1]))


def test_under_autocast_the_loss_is_float32_and_rounded_once(batch: tuple[Tensor, Tensor]) -> None:
    logits = batch[0].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for options in ({}, {"weight": torch.rand(4)}, {"reduction": "none"}):
            ours = value_and_gradient(cross_entropy, logits, batch[1], **options)
            torchs = value_and_gradient(functional.cross_entropy, logits, batch[1], **options)
            assert ours[0].dtype == torch.float32
            torch.testing.assert_close(ours, torchs)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    logits, ids = torch.randn(512, 1000), torch.randint(1000, (512,))
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for number in (1, 2, 3, 2):
            torch.set_num_threads(number)
            results.append(value_and_gradient(cross_entropy, logits, ids))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for loss, gradient in results:
        assert torch.equal(results[0][0], loss)
        assert torch.equal(results[0][1], gradient)


def test_a_subclass_of_tensor_keeps_its_class() -> None:
    class Mine(Tensor):
        pass

    loss = cross_entropy(torch.randn(3, 5).as_subclass(Mine), Y)
    assert type(loss) is Mine


def test_uint8_ids_and_strided_logits_and_ids_give_torchs_result() -> None:
    wide = torch.randn(6, 20)
    for logits in (wide[:, :5], wide[::2, ::4][:, :5], wide[:5, :3].T):
        ids = torch.arange(len(logits)) % logits.shape[1]
        for target in (ids, ids.byte(), torch.stack([ids, ids], 1)[:, 0]):
            torch.testing.assert_close(
                value_and_gradient(cross_entropy, logits, target),
                value_and_gradient(functional.cross_entropy, logits, target),
            )


def test_nan_and_infinite_logits_give_torchs_loss() -> None:
    special = [float("nan"), float("inf"), -float("inf"), -float("nan"), 0.0]
    for row in itertools.product(special, repeat=3):
        logits = torch.tensor([row, (1.0, 2.0, 3.0)])
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            ours, torchs = (
                function(logits.to(dtype), torch.tensor([0, 1]), reduction="none")
                for function in (cross_entropy, functional.cross_entropy)
            )
            torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_an_ignored_row_has_gradient_0_even_if_it_is_nan() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]], requires_grad=True)
    cross_entropy(logits, torch.tensor([-100, 0])).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0.0, 0.0]


def test_the_loss_works_in_several_threads_after_a_fork() -> None:
    import multiprocessing

    logits, ids = torch.randn(512, 1000), torch.randint(1000, (512,))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = cross_entropy(logits, ids).item()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(_loss, (logits.numpy(), ids.numpy())).get(60) == expected
    finally:
        torch.set_num_threads(threads)


def _loss(logits: Any, ids: Any) -> float:
    torch.set_num_threads(2)  # a fork of a process that has built a run has one
    return float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(ids)).item())
