"""linear_cross_entropy: its values and gradients, errors and memory, against cross_entropy of linear."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from softmaxce import LinearCrossEntropyLoss, linear_cross_entropy
from softmaxce.losses import linear_chunks

from .torchs_samples import op_db

OPERATIONS = [entry for entry in op_db if entry.name == "nn.functional.linear_cross_entropy"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of so few rows that small inputs take several, the last one not full."""
    monkeypatch.setattr(linear_chunks, "MAX_LOGITS", 1)
    monkeypatch.setattr(linear_chunks, "MIN_ROWS", 3)


def torchs(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None, **rest: Any) -> Any:
    """PyTorch's two functions, one after the other."""
    return functional.cross_entropy(functional.linear(input, linear_weight, linear_bias), target, **rest)


def batch(
    rows: int = 10, features: int = 6, classes: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, the layer's weight, class ids and the layer's bias."""
    generator = torch.Generator().manual_seed(rows + classes)
    shapes = (rows, features), (classes, features), (classes,)
    x, w, b = (torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, w, torch.randint(classes, (rows,), generator=generator), b


def value_and_gradients(function: Any, x: Tensor, w: Tensor, t: Tensor, b: Tensor | None, **rest: Any) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, w, b) if tensor is not None]
    value = function(*leaves[:2], t, linear_bias=leaves[2] if b is not None else None, **rest)
    upstream = (0.5 + torch.arange(value.numel()) % 3).reshape(value.shape).to(value.dtype)
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream)]


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weighted": {"weight": torch.linspace(0.1, 2, 7, dtype=torch.float64)},
    "smoothed": {"label_smoothing": 0.2},
    "ignoring": {"ignore_index": 2},
    "all options": {
        "weight": torch.linspace(0.1, 2, 7, dtype=torch.float64),
        "label_smoothing": 0.1,
        "ignore_index": 2,
        "reduction": "none",
    },
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_cross_entropy_of_linear_with_every_option(name: str, dtype: torch.dtype) -> None:
    for with_bias in (False, True):
        x, w, t, b = batch(dtype=dtype)
        options = {key: v.to(dtype) if isinstance(v, Tensor) else v for key, v in OPTIONS[name].items()}
        exactly = {key: v.double() if isinstance(v, Tensor) else v for key, v in options.items()}
        bias = b if with_bias else None
        ours = value_and_gradients(linear_cross_entropy, x, w, t, bias, **options)
        theirs = value_and_gradients(torchs, x, w, t, bias, **options)
        exact = value_and_gradients(
            torchs, x.double(), w.double(), t, None if bias is None else bias.double(), **exactly
        )
        unit = torch.finfo(dtype).eps
        for mine, torchs_result, true in zip(ours, theirs, exact, strict=True):
            assert mine.dtype == dtype
            assert mine.shape == torchs_result.shape
            error, allowed = (mine.double() - true).abs(), 4 * unit * (true.abs() + true.abs().max())
            assert ((error <= allowed) | (error <= (torchs_result.double() - true).abs())).all()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.skipif(not OPERATIONS, reason="this PyTorch has no linear_cross_entropy (2.13 has)")
def test_every_sample_of_torchs_operation_gives_torchs_value_and_gradients() -> None:
    compared = 0
    for operation in OPERATIONS:
        for sample in operation.sample_inputs("cpu", torch.float64, requires_grad=False):
            x, (w, t), kwargs = sample.input, sample.args, dict(sample.kwargs)
            b = kwargs.pop("linear_bias", None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns where its options do not apply
                theirs = value_and_gradients(operation.op, x, w, t, b, **kwargs)
            kwargs.pop("options", None)
            ours = value_and_gradients(linear_cross_entropy, x, w, t, b, **kwargs)
            torch.testing.assert_close(ours, theirs)
            compared += 1
    assert compared > 100


@pytest.mark.skipif(not OPERATIONS, reason="this PyTorch has no linear_cross_entropy (2.13 has)")
def test_torchs_own_error_samples_raise_the_same_type_of_error() -> None:
    refused = 0
    for operation in OPERATIONS:
        for sample in operation.error_inputs("cpu") if operation.error_inputs_func else ():
            call = sample.sample_input
            if call.kwargs.get("options") is not None:
                continue
            with pytest.raises(sample.error_type):
                linear_cross_entropy(call.input, *call.args, **{k: v for k, v in call.kwargs.items() if k != "options"})
            refused += 1
    assert refused


def test_a_loss_of_k_dimensions_is_cross_entropy_of_the_reshaped_logits() -> None:
    x, w, _, b = batch(rows=5, classes=24)
    w, b = w.view(4, 2, 3, 6), b.view(4, 2, 3)  # four classes at 2 x 3 positions
    for t in (torch.arange(30).view(5, 2, 3) % 4, torch.rand(5, 4, 2, 3, dtype=torch.float64).softmax(1)):

        def reshaped(x: Tensor, w: Tensor, t: Tensor, linear_bias: Tensor, **rest: Any) -> Tensor:
            logits = functional.linear(x, w.reshape(24, 6), linear_bias.reshape(24)).view(5, 4, 2, 3)
            return functional.cross_entropy(logits, t, **rest)

        for reduction in ("mean", "none"):
            torch.testing.assert_close(
                value_and_gradients(linear_cross_entropy, x, w, t, b, reduction=reduction),
                value_and_gradients(reshaped, x, w, t, b, reduction=reduction),
            )


@pytest.mark.usefixtures("small_chunks")
def test_first_and_second_derivatives_agree_with_finite_differences() -> None:
    x, w, t, b = batch(rows=5, features=3, classes=4)
    soft = torch.rand(5, 4, dtype=torch.float64)
    leaves = tuple(tensor.requires_grad_() for tensor in (x, w, b))
    for target, options in ((t, {}), (t, {"reduction": "none", "label_smoothing": 0.1}), (soft, {"reduction": "sum"})):

        def loss(x: Tensor, w: Tensor, b: Tensor, target: Tensor = target, options: Any = options) -> Tensor:
            return linear_cross_entropy(x, w, target, linear_bias=b, **options)

        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.usefixtures("small_chunks")
def test_repeated_backward_passes_give_the_same_gradients_even_if_the_first_are_overwritten() -> None:
    x, w, t, b = batch()
    leaves = [tensor.requires_grad_() for tensor in (x, w, b)]
    for reduction in ("mean", "sum"):
        loss = linear_cross_entropy(x, w, t, linear_bias=b, reduction=reduction)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        expected = [gradient.clone() for gradient in first]
        for gradient in first:
            gradient.fill_(7)
        torch.testing.assert_close(list(torch.autograd.grad(loss, leaves, retain_graph=True)), expected)
        twice = torch.autograd.grad(loss, leaves, torch.tensor(2.0, dtype=torch.float64))
        torch.testing.assert_close([gradient / 2 for gradient in twice], expected)


def test_only_the_gradients_that_are_required_are_computed() -> None:
    x, w, t, b = batch()
    for frozen in range(3):
        leaves = [tensor.detach().requires_grad_(index != frozen) for index, tensor in enumerate((x, w, b))]
        linear_cross_entropy(leaves[0], leaves[1], t, linear_bias=leaves[2]).backward()
        assert [leaf.grad is None for leaf in leaves] == [index == frozen for index in range(3)]
    with torch.no_grad():
        assert not linear_cross_entropy(x.requires_grad_(), w, t).requires_grad


def test_func_grad_vmap_and_compile_give_torchs_results() -> None:
    x, w, t, _ = batch()
    expected = value_and_gradients(torchs, x, w, t, None)[2] / 0.5
    torch.testing.assert_close(torch.func.grad(lambda w: linear_cross_entropy(x, w, t))(w), expected)
    one_by_one = torch.func.vmap(lambda x, t: linear_cross_entropy(x, w, t))(x, t)
    torch.testing.assert_close(one_by_one, torchs(x, w, t, reduction="none"))
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, w, t), torchs(x, w, t))


def test_loss_and_gradients_under_autocast_are_float32_and_torchs() -> None:
    x, w, t, b = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_gradients(linear_cross_entropy, x, w, t, b)
        theirs = value_and_gradients(torchs, x, w, t, b)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.dtype == its.dtype == torch.float32
        torch.testing.assert_close(mine, its, rtol=2e-2, atol=2e-2)


def test_a_mean_over_ignored_rows_alone_is_nan_and_an_empty_batch_gives_torchs_loss() -> None:
    x, w, t, _ = batch()
    ignored = torch.full_like(t, -100)
    value, of_x, of_w = value_and_gradients(linear_cross_entropy, x, w, ignored, None)
    assert value.isnan()
    assert not of_x.any()
    assert not of_w.any()
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            linear_cross_entropy(x[:0], w, t[:0], reduction=reduction),
            torchs(x[:0], w, t[:0], reduction=reduction),
            equal_nan=True,
        )


def test_the_error_for_a_class_id_out_of_range_names_it_and_its_position() -> None:
    x, w, t, _ = batch(rows=300)
    t[211] = 7
    with pytest.raises(IndexError, match=r"class id 7 \(at \[211\] of the target\).*7 classes"):
        linear_cross_entropy(x, w, t)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(10, 5)}, r"linear_weight must be \[K, 5\]"),
        ({"input": torch.zeros(2, 5, 6)}, r"input must be \[H\] or \[B, H\]"),
        ({"linear_bias": torch.zeros(6)}, r"linear_bias must be \[7\]"),
        ({"linear_weight": torch.zeros(7, 6).double()}, "linear_weight must have input's dtype"),
        ({"target": torch.zeros(9).long()}, r"target must be \[10\] class ids"),
        ({"target": torch.zeros(10, 7), "ignore_index": -1}, "ignore_index -1 goes with class ids"),
        ({"reduction": "men"}, "reduction must be mean, sum or none"),
        ({"label_smoothing": 2.0}, "label_smoothing must be in"),
    ],
)
def test_the_error_for_a_wrong_argument_states_the_rule(change: dict[str, Any], message: str) -> None:
    x, w, t, _ = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**({"input": x, "linear_weight": w, "target": t} | change))


def test_the_module_equals_a_linear_layer_followed_by_the_loss() -> None:
    torch.manual_seed(0)
    ours = LinearCrossEntropyLoss(6, 7, bias=True, label_smoothing=0.1, weight=torch.linspace(1, 2, 7))
    theirs = nn.Linear(6, 7)
    theirs.load_state_dict(ours.linear.state_dict())
    x, _, t, _ = batch(dtype=torch.float32)
    expected = nn.CrossEntropyLoss(torch.linspace(1, 2, 7), label_smoothing=0.1)(theirs(x), t)
    torch.testing.assert_close(ours(x, t), expected)
    assert sorted(ours.state_dict()) == ["linear.bias", "linear.weight", "weight"]
    if hasattr(nn, "LinearCrossEntropyLoss"):
        torchs_module = nn.LinearCrossEntropyLoss(6, 7, bias=True, weight=torch.ones(7), out_features=(2,))
        mine = LinearCrossEntropyLoss(6, 7, bias=True, weight=torch.ones(7), out_features=(2,))
        mine.load_state_dict(torchs_module.state_dict())
        targets = torch.stack([t, t.flip(0)], 1)
        torch.testing.assert_close(mine(x, targets), torchs_module(x, targets))


def test_peak_memory_is_less_than_a_tenth_of_the_logits() -> None:
    x, w, t, _ = batch(rows=4096, features=32, classes=5000, dtype=torch.float32)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    logits = 4096 * 5000 * 4

    def peak(function: Any) -> float:
        torch.autograd.grad(function(x, w, t), leaves)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            torch.autograd.grad(function(x, w, t), leaves)
        live = peak_so_far = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                live += event.nbytes()
                peak_so_far = max(peak_so_far, live)
        return peak_so_far / logits

    assert peak(linear_cross_entropy) < 0.1
    assert peak(torchs) > 2


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_mean_that_float32_holds_is_right_though_the_sum_is_too_large_for_it(requires_grad: bool) -> None:
    features = torch.tensor([[1e38, 0.0]]).repeat(130, 1).requires_grad_(requires_grad)
    loss = linear_cross_entropy(features, torch.eye(2), torch.ones(130, dtype=torch.int64))  # each row's is 1e38 - 0
    assert loss.item() == pytest.approx(1e38, rel=1e-6)
