"""2x2 max-pooling and its gradient on the CPU, for images whose pixels hold their channels side by side.

Floating-point numbers of every width are ordered like integers, once the bits beneath the sign of negative ones are
turned over; so these are what is compared, and nothing has to know bfloat16 from float16. As in PyTorch, a NaN is the
largest of all, and of equal numbers the first is taken: left before right, then upper before lower. (Not as there, -0
is less than 0, and of several NaNs too the first is taken.)

LANES channels are taken at once. Where fewer are left of a pixel the lanes reach into the next one, and what they write
there is written again when its turn comes: everything is written in the order in which it lies in memory. Only at the
end of a part, where another thread's begins, are they taken one by one.
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

from .numba_runtime import at, compiled, intrinsic, parts_of, run, take_part
from .tensor_memory import address, dense

i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64

LANES = 16
NOWHERE = 4  # the place where ReLU has taken the maximum away

KINDS: dict[torch.dtype, tuple[Any, int]] = {  # an integer as wide, and the bits of infinity
    torch.bfloat16: (i16, 0x7F80),
    torch.float16: (i16, 0x7C00),
    torch.float32: (i32, 0x7F800000),
    torch.float64: (i64, 0x7FF0000000000000),
}


class Job(ctypes.Structure):
    """What a pass is to do. Names ending in _ are addresses.

    Attributes:
        next_part: the first part that no thread has taken yet.
        pixels_: [images, height, width, channels]; read, or with `spread` written.
        pooled_: [images, height // 2, width // 2, channels]; written, or with `spread` the gradient, read.
        places_: as many int8; which of the four was the largest, or NOWHERE.
        infinity: its bits.
        relu: whether what is negative becomes 0.
        spread: do the gradient.
        parts: the rows are shared out in so many.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("next_part", "pixels_", "pooled_", "places_", "images", "height", "width", "channels"),
            *("infinity", "relu", "spread", "parts"),
        )
    )


# -- LANES numbers at once, in LLVM's own terms ------------------------------------------------------------------------


class _Code:
    """Writes LLVM's instructions on vectors of `lanes` numbers."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes

    def all(self, number: Any, kind: Any = None) -> Any:
        """A vector of one number again and again: a constant of that kind, or a value."""
        if kind is not None:
            return ir.Constant(ir.VectorType(kind, self.lanes), [number] * self.lanes)
        undefined = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        index = ir.IntType(32)
        first = self.builder.insert_element(undefined, number, index(0))
        return self.builder.shuffle_vector(first, undefined, self.all(0, index))

    def _place(self, array: Any, index: Any) -> Any:
        kind = array.type.pointee
        start = self.builder.gep(array, [index])
        return self.builder.bitcast(start, ir.VectorType(kind, self.lanes).as_pointer()), kind.width // 8

    def load(self, array: Any, index: Any) -> Any:
        """The numbers from that index on."""
        place, align = self._place(array, index)
        return self.builder.load(place, align=align)

    def store(self, vector: Any, array: Any, index: Any) -> None:
        """Write them there."""
        place, align = self._place(array, index)
        self.builder.store(vector, place, align=align)

    def flip(self, bits: Any) -> Any:
        """A number's bits as an integer that is ordered as the number is; and back."""
        width = bits.type.element.width
        kind = ir.IntType(width)
        below_sign = self.builder.and_(
            self.builder.ashr(bits, self.all(width - 1, kind)), self.all(2 ** (width - 1) - 1, kind)
        )
        return self.builder.xor(bits, below_sign)

    def order(self, bits: Any, infinity: Any) -> Any:
        """The same with every NaN above infinity."""
        width = bits.type.element.width
        magnitude = self.builder.and_(bits, self.all(2 ** (width - 1) - 1, ir.IntType(width)))
        is_nan = self.builder.icmp_signed(">", magnitude, infinity)
        return self.builder.select(is_nan, magnitude, self.flip(bits))


def _pool_of(lanes: int) -> Any:
    """(pixels, index of the first, distance to the right, down, pooled, places, index there, infinity, relu)."""

    @intrinsic  # type: ignore[untyped-decorator]
    def pool(
        typing: Any,
        pixels: Any,
        first: Any,
        right: Any,
        down: Any,
        pooled: Any,
        places: Any,
        to: Any,
        infinity: Any,
        relu: Any,
    ) -> Any:
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pixels, first, right, down, pooled, places, to, infinity, relu = arguments
            code = _Code(builder, lanes)
            kind, byte = pixels.type.pointee, places.type.pointee
            infinity = code.all(infinity)
            lower = builder.add(first, down)
            four = (first, builder.add(first, right), lower, builder.add(lower, right))
            most = where = None
            for place, index in enumerate(four):
                number = code.order(code.load(pixels, index), infinity)
                if most is None:
                    most, where = number, code.all(0, byte)
                else:
                    larger = builder.icmp_signed(">", number, most)
                    most = builder.select(larger, number, most)
                    where = builder.select(larger, code.all(place, byte), where)
            floor = builder.select(relu, code.all(0, kind), code.all(-(2 ** (kind.width - 1)), kind))
            kept = builder.icmp_signed(">", most, floor)
            code.store(code.flip(builder.select(kept, most, floor)), pooled, to)
            code.store(builder.select(kept, where, code.all(NOWHERE, byte)), places, to)
            return context.get_dummy_value()

        return types.void(pixels, first, right, down, pooled, places, to, infinity, relu), write

    return pool


def _spread_of(lanes: int) -> Any:
    """(pixels, index there, gradient, places, index there, place): the gradient where the maximum was in that place."""

    @intrinsic  # type: ignore[untyped-decorator]
    def spread(typing: Any, pixels: Any, to: Any, gradient: Any, places: Any, first: Any, place: Any) -> Any:
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pixels, to, gradient, places, first, place = arguments
            code = _Code(builder, lanes)
            here = builder.icmp_signed("==", code.load(places, first), code.all(place))
            zero = code.all(0, pixels.type.pointee)
            code.store(builder.select(here, code.load(gradient, first), zero), pixels, to)
            return context.get_dummy_value()

        return types.void(pixels, to, gradient, places, first, place), write

    return spread


pool_lanes, pool_one = _pool_of(LANES), _pool_of(1)
spread_lanes, spread_one = _spread_of(LANES), _spread_of(1)


# -- the pass ---------------------------------------------------------------------------------------------------------


@njit(error_model="numpy", forceinline=True)
def fill(array: Any, first: Any, last: Any, number: Any) -> None:
    """Write a number again and again."""
    for index in range(first, last):
        array[index] = number


@njit(error_model="numpy", forceinline=True)
def pool_square(
    pixels: Any,
    square: Any,
    channels: Any,
    line: Any,
    pooled: Any,
    places: Any,
    to: Any,
    end: Any,
    infinity: Any,
    relu: Any,
) -> None:
    """The maxima of a square's channels; nothing is written from `end` on."""
    last = to + channels
    while to < last:
        if to + i64(LANES) <= end:
            pool_lanes(pixels, square, channels, line, pooled, places, to, infinity, relu)
            square, to = square + i64(LANES), to + i64(LANES)
        else:
            pool_one(pixels, square, channels, line, pooled, places, to, infinity, relu)
            square, to = square + 1, to + 1


@njit(error_model="numpy", forceinline=True)
def spread_pixel(
    pixels: Any, to: Any, end: Any, channels: Any, gradient: Any, places: Any, square: Any, all_squares: Any, place: Any
) -> None:
    """The gradient of a pixel's channels; nothing is written from `end` on, or read from `all_squares` on."""
    last = to + channels
    while to < last:
        if to + i64(LANES) <= end and square + i64(LANES) <= all_squares:
            spread_lanes(pixels, to, gradient, places, square, place)
            square, to = square + i64(LANES), to + i64(LANES)
        else:
            spread_one(pixels, to, gradient, places, square, place)
            square, to = square + 1, to + 1


def pass_over(a_pixel: Any) -> Callable[[Any], None]:
    """The pass over pixels whose bits are of one width."""

    def walk(job_: Any) -> None:
        job = carray(job_, 1)[0]
        channels, relu = job.channels, job.relu != 0
        rows, columns = job.height // 2, job.width // 2  # of squares
        line = job.width * channels
        all_pooled = job.images * rows * columns * channels
        pixels, pooled, places = at(job.pixels_, a_pixel), at(job.pooled_, a_pixel), at(job.places_, i8(0))
        infinity = type(a_pixel)(job.infinity)
        array = carray(pixels, (job.images * job.height * line,))
        while True:
            part = take_part(job_)
            if part >= job.parts:
                return
            first, last = job.images * rows * part // job.parts, job.images * rows * (part + 1) // job.parts
            if not job.spread:
                end = last * columns * channels
                for row in range(first, last):
                    image = row // rows
                    start = (image * job.height + 2 * (row - image * rows)) * line
                    for column in range(columns):
                        square, to = start + 2 * column * channels, (row * columns + column) * channels
                        pool_square(pixels, square, channels, line, pooled, places, to, end, infinity, relu)
                continue
            image = last // rows
            end = (image * job.height + 2 * (last - image * rows)) * line
            for row in range(first, last):
                image = row // rows
                start = (image * job.height + 2 * (row - image * rows)) * line
                for down in range(2):
                    for column in range(2 * columns):
                        place = i8(2 * down + column % 2)
                        to, square = start + column * channels, (row * columns + column // 2) * channels
                        spread_pixel(pixels, to, end, channels, pooled, places, square, all_pooled, place)
                    fill(array, start + 2 * columns * channels, start + line, a_pixel)  # a last odd column
                    start += line
                if row - image * rows == rows - 1:
                    fill(array, start, (image + 1) * job.height * line, a_pixel)  # a last odd row

    return walk


@cache
def _compiled(dtype: torch.dtype) -> Callable[[int], None]:
    return compiled(pass_over(KINDS[dtype][0](0)), Job, set())


def _go(pixels: Tensor, pooled: Tensor, places: Tensor, *, relu: bool = False, spread: bool = False) -> None:
    """Do a pass over channels_last tensors. Raises: ValueError if a size or dtype does not fit."""
    images, channels, height, width = pixels.shape
    squares = images * channels * (height // 2) * (width // 2)
    addresses = (
        address(pixels, pixels.dtype, pixels.numel(), torch.channels_last),
        address(pooled, pixels.dtype, squares, torch.channels_last),
        address(places, torch.int8, squares, torch.channels_last),
    )
    parts = parts_of(pixels.numel(), images * (height // 2))
    sizes = images, height, width, channels
    job = Job(0, *addresses, *sizes, KINDS[pixels.dtype][1], relu, spread, parts)
    run(_compiled(pixels.dtype), job, pixels.numel())


def pool(images: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] in channels_last, of a dtype in KINDS -> the maxima [B, C, H // 2, W // 2], and their places.

    A place is 0 to 3, row by row in its square, or NOWHERE: int8, of the maxima's shape.
    """
    batch, channels, height, width = images.shape
    shape = batch, channels, height // 2, width // 2
    pooled = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    places = torch.empty(shape, dtype=torch.int8, device=images.device, memory_format=torch.channels_last)
    _go(images, pooled, places, relu=relu)
    return pooled, places


def spread(gradient: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """The gradient with respect to images of this shape, from that with respect to their maxima and the places."""
    pixels = torch.empty(shape, dtype=gradient.dtype, device=places.device, memory_format=torch.channels_last)
    _go(pixels, dense(gradient, torch.channels_last), places, spread=True)
    return pixels
