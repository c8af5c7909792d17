"""Max-pooling in one pass beside PyTorch's two layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from softmaxce.kernels import numba_runtime
from softmaxce.models import max_pool
from softmaxce.models.max_pool import MaxPool2x2

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-7, -1e-7, float("inf"), -float("inf"), float("nan"), -float("nan"), 60000.0]


def torchs(relu: bool) -> nn.Module:
    """PyTorch's layers."""
    return nn.Sequential(nn.MaxPool2d(2), nn.ReLU()) if relu else nn.MaxPool2d(2)


def both_ways(layer: nn.Module, images: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output, and the gradient with respect to the images."""
    images = images.detach().requires_grad_()
    pooled = layer(images)
    return pooled.detach(), torch.autograd.grad(pooled, images, gradient)[0]


def assert_same(images: Tensor, relu: bool) -> None:
    """Every bit of it is PyTorch's (but for the sign of 0 and of a NaN)."""
    batch, channels, height, width = images.shape
    gradient = torch.randn(batch, channels, height // 2, width // 2).to(images.dtype)
    expected = both_ways(torchs(relu), images, gradient)
    assert_close(both_ways(MaxPool2x2(relu), images, gradient), expected, rtol=0, atol=0, equal_nan=True)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(2, 9), st.integers(2, 9)),
    dtype=st.sampled_from(DTYPES),
    relu=st.booleans(),
    levels=st.integers(1, 1000),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_torchs_layers(
    shape: tuple[int, int, int, int], dtype: torch.dtype, relu: bool, levels: int, seed: int
) -> None:
    torch.manual_seed(seed)
    images = torch.randint(-levels, levels + 1, shape).to(dtype)  # with few levels, most maxima are there twice
    images = images.contiguous(memory_format=torch.channels_last)
    assert max_pool.fits_kernel(images)
    assert_same(images, relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_infinities_and_nans_are_ordered_as_torch_orders_them(dtype: torch.dtype, relu: bool) -> None:
    values = torch.tensor(SPECIAL).to(dtype)
    squares = torch.cartesian_prod(values, values, values, values)  # every four of them
    images = squares.view(1, -1, 2, 2).contiguous(memory_format=torch.channels_last)
    gradient = torch.ones(1, len(squares), 1, 1, dtype=dtype)
    pooled, slope = both_ways(MaxPool2x2(relu), images, gradient)
    expected, expected_slope = both_ways(torchs(relu), images, gradient)
    assert_close(pooled, expected, rtol=0, atol=0, equal_nan=True)
    # Of several NaNs, and of zeros of both signs, another one may have the gradient than PyTorch gives it to.
    signs = (squares == 0).unsqueeze(1) & (squares.signbit().unsqueeze(1) == torch.tensor([[False], [True]]))
    clear = (squares.isnan().sum(1) <= 1) & ~signs.any(2).all(1)
    assert clear.sum() > len(squares) / 3
    assert torch.equal(slope.flatten(0, 1)[clear], expected_slope.flatten(0, 1)[clear])
    assert torch.equal(slope.sum((2, 3)), expected_slope.sum((2, 3)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 6, 16, 24, 40])
def test_many_parts_in_several_threads_leave_no_seam(channels: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for height, width in ((28, 28), (27, 15)):
            images = torch.randn(64, channels, height, width).to(memory_format=torch.channels_last)
            assert images.numel() >= 2 * numba_runtime.NUMBERS_PER_THREAD or channels == 1
            assert_same(images, relu=True)
    finally:
        torch.set_num_threads(before)


def test_images_that_lie_otherwise_go_through_torchs_own_operations() -> None:
    images = torch.randn(2, 3, 6, 7)
    assert not max_pool.fits_kernel(images)
    assert_same(images, relu=True)
    with pytest.raises(RuntimeError):
        MaxPool2x2()(torch.zeros(2, 3, 1, 1))


def test_its_derivatives_are_those_of_finite_differences_twice_over() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert max_pool.fits_kernel(images)
    for relu in (False, True):
        assert torch.autograd.gradcheck(MaxPool2x2(relu), images)
        assert torch.autograd.gradgradcheck(MaxPool2x2(relu), images)


def test_transforms_and_forward_mode_see_torchs_operations() -> None:
    images = torch.randn(3, 2, 4, 6).to(memory_format=torch.channels_last)
    layer = MaxPool2x2(relu=True)
    assert_close(torch.vmap(lambda image: layer(image.unsqueeze(0)))(images).squeeze(1), layer(images))
    tangent = torch.randn_like(images)
    forward = torch.func.jvp(layer, (images,), (tangent,))
    assert_close(forward, torch.func.jvp(torchs(relu=True), (images,), (tangent,)))


def test_the_backward_pass_needs_one_byte_per_output_and_nothing_else() -> None:
    images = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        MaxPool2x2()(images)
    assert sum(tensor.nbytes for tensor in kept) == images.numel() // 4
