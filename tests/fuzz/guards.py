"""Run every kernel on tensors that begin or end at a guard page, so that a read or write outside them crashes.

test_losses.py starts `python -m tests.fuzz.guards` as a process, because a failure is a crash. Gradients and results
that PyTorch allocates cannot be placed at a guard page; their values are compared instead.
"""

import ctypes
import itertools
import mmap
import sys

import torch
from torch import Tensor
from torch.nn import functional

from softmaxce import cross_entropy, linear_cross_entropy
from softmaxce.kernels import cross_entropy as kernels_cross_entropy
from softmaxce.kernels import max_pool, numbers
from softmaxce.kernels.all_finite import FiniteCheck
from softmaxce.kernels.gather_normalize import BatchGatherer
from softmaxce.kernels.normalize import Normalizer
from softmaxce.losses.cpu_launch import CrossEntropyKernel
from softmaxce.losses.variants.focal import FocalLoss
from softmaxce.losses.variants.z_loss import ZLossCrossEntropy
from softmaxce.models.max_pool import MaxPool2x2

PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


def guarded(values: Tensor, *, at_end: bool, strides: tuple[int, ...] | None = None) -> Tensor:
    """A tensor with these strides (default: contiguous) whose memory lies directly before or after a guard page."""
    strides = values.contiguous().stride() if strides is None else strides
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    if not values.numel():
        return values
    size = extent * values.itemsize
    pages = -(-size // PAGE)
    region = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in (0, pages + 1):
        if _LIBC.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    flat = torch.frombuffer(region, dtype=values.dtype, count=extent, offset=offset)
    index = torch.zeros(values.shape, dtype=torch.int64)
    for dim, stride in enumerate(strides):
        index += torch.arange(values.shape[dim]).view(-1, *[1] * (values.ndim - dim - 1)) * stride
    flat[index.reshape(-1)] = values.reshape(-1)  # where rows overlap, one of the numbers
    return flat.as_strided(values.shape, strides)


def losses(rows: int, classes: int, dtype: torch.dtype, *, at_end: bool) -> None:
    """The loss, forward and backward, over every layout; compared with that of a copy."""
    layouts = [(classes, 1), (1, 1), (0, 1), (1, rows), (classes + 3, 1), (2 * classes, 2), (1, 0)]
    ids = guarded(torch.arange(rows) % classes, at_end=at_end)
    weight = guarded(torch.rand(classes).to(dtype), at_end=at_end)
    soft = guarded(torch.rand(rows, classes).softmax(1).to(dtype), at_end=at_end)
    for strides in layouts:
        logits = guarded(torch.randn(rows, classes).to(dtype), at_end=at_end, strides=strides)
        copy = logits.clone(memory_format=torch.contiguous_format)
        options = [("mean", ids, None, 0.0), ("mean", ids, weight, 0.1), ("sum", ids, None, 0.0)]
        options += [("sum", soft, weight, 0.0), ("none", ids, weight, 0.0), ("none", soft, None, 0.1)]
        for reduction, target, weights, smoothing in options:
            results = []
            for each in (logits, copy):
                leaf = each.detach().requires_grad_()
                loss = cross_entropy(leaf, target, weights, reduction=reduction, label_smoothing=smoothing)
                upstream = guarded(torch.rand(rows, generator=torch.Generator().manual_seed(0)), at_end=at_end)
                factor = upstream.to(loss.dtype) if loss.ndim else torch.full_like(loss, 2.0)
                results.append((loss.detach(), torch.autograd.grad(loss, leaf, factor)[0]))
            torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
        for variant in (FocalLoss(2.0), ZLossCrossEntropy(0.1)):
            variant(logits.detach().requires_grad_(), ids).backward()
        features, projection = (
            logits.detach().requires_grad_(),
            guarded(torch.randn(5, classes).to(dtype), at_end=at_end),
        )
        linear_cross_entropy(features, projection, ids % 5, reduction="sum").backward()
    # the kernel itself can also write losses and gradient at a guard page
    kernel = CrossEntropyKernel(guarded(torch.randn(rows, classes).to(dtype), at_end=at_end), ids, None, -100, 0.0)
    outputs = guarded(torch.zeros(rows, dtype=kernel.dtype), at_end=at_end)
    gradient = guarded(torch.zeros(rows, classes, dtype=dtype), at_end=at_end)
    kernel.launch(
        kernels_cross_entropy.VALIDATE | kernels_cross_entropy.LOSSES | kernels_cross_entropy.GRADIENT,
        losses=outputs,
        gradient=gradient,
    )


def images(shape: tuple[int, int, int, int], dtype: torch.dtype, *, at_end: bool) -> None:
    """Max-pooling and its gradient, and the gathering of batches."""
    batch, channels, height, width = shape
    strides = height * width * channels, 1, width * channels, channels
    pixels = guarded(torch.randn(shape).to(dtype), at_end=at_end, strides=strides)
    for relu in (False, True):
        leaf = pixels.detach().requires_grad_()
        MaxPool2x2(relu)(leaf).sum().backward()
        expected = functional.max_pool2d(pixels, 2)
        torch.testing.assert_close(MaxPool2x2(relu)(pixels), functional.relu(expected) if relu else expected)
    half = batch, channels, height // 2, width // 2
    smaller = half[2] * half[3] * channels, 1, half[3] * channels, channels
    pooled = guarded(torch.zeros(half, dtype=dtype), at_end=at_end, strides=smaller)
    positions = guarded(torch.zeros(half, dtype=torch.int8), at_end=at_end, strides=smaller)
    if dtype in max_pool.KINDS and pooled.numel():
        max_pool.launch(pixels, pooled, positions)
        max_pool.launch(pixels, pooled, positions, backward=True)
    data = guarded(torch.randint(256, shape, dtype=torch.uint8), at_end=at_end)
    mean, scale = (guarded(torch.rand(channels), at_end=at_end) for _ in range(2))
    gatherer = BatchGatherer(data, mean, scale)
    indices = guarded(torch.arange(batch - 1, -1, -1), at_end=at_end)
    exact = (data.float() - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
    torch.testing.assert_close(gatherer.normalized(indices), exact.flip(0))
    torch.testing.assert_close(gatherer.normalized(slice(0, batch)), exact)
    bytes_ = guarded(data, at_end=at_end, strides=strides)
    torch.testing.assert_close(Normalizer(mean, scale, shape[1:], fractions=False)(bytes_), exact)


def gradients(*, at_end: bool) -> None:
    """The check for gradients that are not finite."""
    for shape in ((1, 1), (3, 5), (70, 1000)):
        parameter = torch.zeros(shape, requires_grad=True)
        parameter.grad = guarded(torch.randn(shape), at_end=at_end)
        check = FiniteCheck([parameter])
        assert check.all_finite()
        parameter.grad[-1, -1] = torch.nan
        assert not check.all_finite()
        parameter.grad = guarded(torch.randn(shape), at_end=at_end, strides=(0, 1))
        assert check.all_finite()


def main() -> int:
    """Run everything once; a crash or a failed assertion ends the process."""
    if sys.argv[1:] == ["trap"]:  # a read of one byte beyond the tensor, which must crash
        ctypes.string_at(guarded(torch.zeros(5, 3), at_end=True).data_ptr(), 5 * 3 * 4 + 1)
    for at_end, dtype in itertools.product((True, False), numbers.KINDS):
        for rows, classes in ((1, 1), (1, 50), (3, 1), (5, 7), (130, 10), (2, 100), (9, 2000)):
            losses(rows, classes, dtype, at_end=at_end)
        for shape in ((1, 1, 2, 2), (2, 3, 5, 7), (3, 17, 4, 6), (1, 1, 33, 33), (40, 16, 8, 8)):
            images(shape, dtype, at_end=at_end)
        gradients(at_end=at_end)
    print("no access outside any tensor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
