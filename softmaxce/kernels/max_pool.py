"""2x2 max-pooling and its gradient on the CPU, for images whose pixels hold their channels side by side.

Floating-point numbers of every width compare like integers, once the bits below the sign of negative ones are
inverted. So integers are compared, and bfloat16 and float16 need no distinction. As in PyTorch, a NaN is the largest of
all, and of equal numbers the first is taken: left before right, then upper before lower. (Unlike there, -0 is less than
0, and of several NaNs too the first is taken.)

VECTOR channels are computed at once. Where a pixel has fewer left, the vector reaches into the next pixel, and what it
writes there is overwritten when that pixel is computed: everything is written in the order of memory. Only at the end
of a chunk, where another thread's begins, are channels computed one by one.

For each output the kernel stores its argmax, in one byte: 0 to 3, row by row in the 2x2 window, or NOWHERE.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from torch import Tensor

from .numba_runtime import compile_kernel, intrinsic, next_chunk, num_chunks, pointer_to, run
from .tensor_memory import address, dense

i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64

VECTOR = 16  # channels
NOWHERE = 4  # the argmax where ReLU made the output 0

KINDS: dict[torch.dtype, tuple[Any, int]] = {  # an integer type of the same width, and the bits of infinity
    torch.bfloat16: (i16, 0x7F80),
    torch.float16: (i16, 0x7C00),
    torch.float32: (i32, 0x7F800000),
    torch.float64: (i64, 0x7FF0000000000000),
}


class MaxPoolJob(ctypes.Structure):
    """The kernel's arguments. Names ending in _ are addresses.

    Attributes:
        next_chunk: the first chunk that no thread has taken yet.
        pixels_: [images, height, width, channels]; read, or with `backward` written: their gradient.
        pooled_: [images, height // 2, width // 2, channels]; written, or with `backward` read: the upstream gradient.
        argmax_: int8, in the shape of pooled_; written, or with `backward` read.
        infinity: its bits.
        relu: whether negative outputs become 0.
        backward: compute the gradient.
        num_chunks: into so many chunks the rows of windows are split.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("next_chunk", "pixels_", "pooled_", "argmax_", "images", "height", "width", "channels"),
            *("infinity", "relu", "backward", "num_chunks"),
        )
    )


# -- vectors, as LLVM's instructions ----------------------------------------------------------------------------------


class _VectorBuilder:
    """Emits LLVM's instructions on vectors of `size` numbers."""

    def __init__(self, builder: Any, size: int) -> None:
        self.builder, self.size = builder, size

    def broadcast(self, number: Any, kind: Any = None) -> Any:
        """A vector of one number repeated: a constant of that type, or a value."""
        if kind is not None:
            return ir.Constant(ir.VectorType(kind, self.size), [number] * self.size)
        undefined = ir.Constant(ir.VectorType(number.type, self.size), ir.Undefined)
        index = ir.IntType(32)
        first = self.builder.insert_element(undefined, number, index(0))
        return self.builder.shuffle_vector(first, undefined, self.broadcast(0, index))

    def _pointer(self, array: Any, index: Any) -> Any:
        kind = array.type.pointee
        start = self.builder.gep(array, [index])
        return self.builder.bitcast(start, ir.VectorType(kind, self.size).as_pointer()), kind.width // 8

    def load(self, array: Any, index: Any) -> Any:
        """The numbers from that index on."""
        pointer, align = self._pointer(array, index)
        return self.builder.load(pointer, align=align)

    def store(self, vector: Any, array: Any, index: Any) -> None:
        """Write them there."""
        pointer, align = self._pointer(array, index)
        self.builder.store(vector, pointer, align=align)

    def flip(self, bits: Any) -> Any:
        """A number's bits as an integer that compares as the number does; its own inverse."""
        width = bits.type.element.width
        kind = ir.IntType(width)
        below_sign = self.builder.and_(
            self.builder.ashr(bits, self.broadcast(width - 1, kind)), self.broadcast(2 ** (width - 1) - 1, kind)
        )
        return self.builder.xor(bits, below_sign)

    def order(self, bits: Any, infinity: Any) -> Any:
        """The same with every NaN above infinity."""
        width = bits.type.element.width
        magnitude = self.builder.and_(bits, self.broadcast(2 ** (width - 1) - 1, ir.IntType(width)))
        is_nan = self.builder.icmp_signed(">", magnitude, infinity)
        return self.builder.select(is_nan, magnitude, self.flip(bits))


def _pool_intrinsic(size: int) -> Any:
    """pool(pixels, index, distance to the right, distance down, pooled, argmax, index there, infinity, relu)."""

    @intrinsic  # type: ignore[untyped-decorator]
    def pool(
        typing: Any,
        pixels: Any,
        first: Any,
        right: Any,
        down: Any,
        pooled: Any,
        argmax: Any,
        to: Any,
        infinity: Any,
        relu: Any,
    ) -> Any:
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pixels, first, right, down, pooled, argmax, to, infinity, relu = arguments
            vector = _VectorBuilder(builder, size)
            kind, byte = pixels.type.pointee, argmax.type.pointee
            infinity = vector.broadcast(infinity)
            lower = builder.add(first, down)
            corners = (first, builder.add(first, right), lower, builder.add(lower, right))
            most = where = None
            for corner, index in enumerate(corners):
                number = vector.order(vector.load(pixels, index), infinity)
                if most is None:
                    most, where = number, vector.broadcast(0, byte)
                else:
                    larger = builder.icmp_signed(">", number, most)
                    most = builder.select(larger, number, most)
                    where = builder.select(larger, vector.broadcast(corner, byte), where)
            floor = builder.select(relu, vector.broadcast(0, kind), vector.broadcast(-(2 ** (kind.width - 1)), kind))
            positive = builder.icmp_signed(">", most, floor)
            vector.store(vector.flip(builder.select(positive, most, floor)), pooled, to)
            vector.store(builder.select(positive, where, vector.broadcast(NOWHERE, byte)), argmax, to)
            return context.get_dummy_value()

        return types.void(pixels, first, right, down, pooled, argmax, to, infinity, relu), write

    return pool


def _unpool_intrinsic(size: int) -> Any:
    """unpool(pixels, index, upstream, argmax, index there, corner): upstream if the argmax is that corner, else 0."""

    @intrinsic  # type: ignore[untyped-decorator]
    def unpool(typing: Any, pixels: Any, to: Any, gradient: Any, argmax: Any, first: Any, corner: Any) -> Any:
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pixels, to, gradient, argmax, first, corner = arguments
            vector = _VectorBuilder(builder, size)
            here = builder.icmp_signed("==", vector.load(argmax, first), vector.broadcast(corner))
            zero = vector.broadcast(0, pixels.type.pointee)
            vector.store(builder.select(here, vector.load(gradient, first), zero), pixels, to)
            return context.get_dummy_value()

        return types.void(pixels, to, gradient, argmax, first, corner), write

    return unpool


pool_vector, pool_one = _pool_intrinsic(VECTOR), _pool_intrinsic(1)
unpool_vector, unpool_one = _unpool_intrinsic(VECTOR), _unpool_intrinsic(1)


# -- the kernel -------------------------------------------------------------------------------------------------------


@njit(error_model="numpy", forceinline=True)
def fill(array: Any, first: Any, last: Any, number: Any) -> None:
    """array[first:last] = number."""
    for index in range(first, last):
        array[index] = number


@njit(error_model="numpy", forceinline=True)
def pool_window(
    pixels: Any,
    window: Any,
    channels: Any,
    line: Any,
    pooled: Any,
    argmax: Any,
    to: Any,
    end: Any,
    infinity: Any,
    relu: Any,
) -> None:
    """The maxima of a window's channels; nothing is written from index `end` on."""
    last = to + channels
    while to < last:
        if to + i64(VECTOR) <= end:
            pool_vector(pixels, window, channels, line, pooled, argmax, to, infinity, relu)
            window, to = window + i64(VECTOR), to + i64(VECTOR)
        else:
            pool_one(pixels, window, channels, line, pooled, argmax, to, infinity, relu)
            window, to = window + 1, to + 1


@njit(error_model="numpy", forceinline=True)
def unpool_pixel(
    pixels: Any,
    to: Any,
    end: Any,
    channels: Any,
    gradient: Any,
    argmax: Any,
    window: Any,
    all_windows: Any,
    corner: Any,
) -> None:
    """The gradient of a pixel's channels; nothing is written from `end` on, nor read from `all_windows` on."""
    last = to + channels
    while to < last:
        if to + i64(VECTOR) <= end and window + i64(VECTOR) <= all_windows:
            unpool_vector(pixels, to, gradient, argmax, window, corner)
            window, to = window + i64(VECTOR), to + i64(VECTOR)
        else:
            unpool_one(pixels, to, gradient, argmax, window, corner)
            window, to = window + 1, to + 1


def kernel_for(a_pixel: Any) -> Callable[[Any], None]:
    """The kernel for pixels of one width, as integers."""

    def kernel(job_: Any) -> None:
        job = carray(job_, 1)[0]
        channels, relu = job.channels, job.relu != 0
        rows, columns = job.height // 2, job.width // 2  # of windows
        line = job.width * channels
        all_pooled = job.images * rows * columns * channels
        pixels, pooled, argmax = (
            pointer_to(job.pixels_, a_pixel),
            pointer_to(job.pooled_, a_pixel),
            pointer_to(job.argmax_, i8(0)),
        )
        infinity = type(a_pixel)(job.infinity)
        array = carray(pixels, (job.images * job.height * line,))
        while True:
            chunk = next_chunk(job_)
            if chunk >= job.num_chunks:
                return
            first, last = job.images * rows * chunk // job.num_chunks, job.images * rows * (chunk + 1) // job.num_chunks
            if not job.backward:
                end = last * columns * channels
                for row in range(first, last):
                    image = row // rows
                    start = (image * job.height + 2 * (row - image * rows)) * line
                    for column in range(columns):
                        window, to = start + 2 * column * channels, (row * columns + column) * channels
                        pool_window(pixels, window, channels, line, pooled, argmax, to, end, infinity, relu)
                continue
            image = last // rows
            end = (image * job.height + 2 * (last - image * rows)) * line
            for row in range(first, last):
                image = row // rows
                start = (image * job.height + 2 * (row - image * rows)) * line
                for down in range(2):
                    for column in range(2 * columns):
                        corner = i8(2 * down + column % 2)
                        to, window = start + column * channels, (row * columns + column // 2) * channels
                        unpool_pixel(pixels, to, end, channels, pooled, argmax, window, all_pooled, corner)
                    fill(array, start + 2 * columns * channels, start + line, a_pixel)  # a last odd column
                    start += line
                if row - image * rows == rows - 1:
                    fill(array, start, (image + 1) * job.height * line, a_pixel)  # a last odd row

    return kernel


@cache
def _compiled(dtype: torch.dtype) -> Callable[[int], None]:
    return compile_kernel(kernel_for(KINDS[dtype][0](0)), MaxPoolJob, set())


def launch(pixels: Tensor, pooled: Tensor, argmax: Tensor, *, relu: bool = False, backward: bool = False) -> None:
    """Run the kernel on channels_last tensors; see MaxPoolJob. Raises: ValueError if a size or dtype does not fit."""
    images, channels, height, width = pixels.shape
    outputs = images * channels * (height // 2) * (width // 2)
    addresses = (
        address(pixels, pixels.dtype, pixels.numel(), torch.channels_last),
        address(pooled, pixels.dtype, outputs, torch.channels_last),
        address(argmax, torch.int8, outputs, torch.channels_last),
    )
    chunks = num_chunks(pixels.numel(), images * (height // 2))
    sizes = images, height, width, channels
    job = MaxPoolJob(0, *addresses, *sizes, KINDS[pixels.dtype][1], relu, backward, chunks)
    run(_compiled(pixels.dtype), job, pixels.numel())


def pool(images: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] in channels_last, of a dtype in KINDS -> the maxima [B, C, H // 2, W // 2], and their argmax.

    The argmax is int8, of the maxima's shape: 0 to 3, row by row in the window, or NOWHERE.
    """
    batch, channels, height, width = images.shape
    shape = batch, channels, height // 2, width // 2
    pooled = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    argmax = torch.empty(shape, dtype=torch.int8, device=images.device, memory_format=torch.channels_last)
    launch(images, pooled, argmax, relu=relu)
    return pooled, argmax


def unpool(gradient: Tensor, argmax: Tensor, shape: torch.Size) -> Tensor:
    """The gradient with respect to images of this shape, from that with respect to their maxima and the argmax."""
    pixels = torch.empty(shape, dtype=gradient.dtype, device=argmax.device, memory_format=torch.channels_last)
    launch(pixels, dense(gradient, torch.channels_last), argmax, backward=True)
    return pixels
