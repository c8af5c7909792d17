"""Number formats inside compiled loops: widening, rounding, ordering, and the exponential."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

f32, f64, i16, i32, i64, u16, u32 = np.float32, np.float64, np.int16, np.int32, np.int64, np.uint16, np.uint32
KINDS = {
    torch.float32: f32,
    torch.float64: f64,
    torch.bfloat16: u16,
    torch.float16: i16,
}
ACCUMULATE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def widen(x: Any) -> Any:
    """A logit as the number it is computed with: 16-bit ones as float32."""


@overload(widen)
def _widen(x: Any) -> Any:
    def bfloat16(x: Any) -> Any:
        bits = i32(i32(x) << i32(16))
        return bits.view(f32)

    def float16(x: Any) -> Any:
        bits = i32(x)
        magnitude = i32(i32(bits & i32(0x7FFF)) << i32(13))
        number = f32(magnitude.view(f32) * f32(2.0**112))  # float32's exponents are so much smaller
        special = i32(0x7F800000) if magnitude >= i32(0x0F800000) else i32(0)  # infinite or NaN
        result = i32(i32(number.view(i32) | special) | i32(i32(bits & i32(0x8000)) << i32(16)))
        return result.view(f32)

    def itself(x: Any) -> Any:
        return x

    return {types.uint16: bfloat16, types.int16: float16}.get(x, itself)


def narrow(x: Any, like: Any) -> Any:
    """A number of the arithmetic as one of the array `like`, rounded to nearest, ties to even."""


@overload(narrow)
def _narrow(x: Any, like: Any) -> Any:
    def bfloat16(x: Any, like: Any) -> Any:
        number = f32(x)
        bits = number.view(u32)
        half = u32(u32(0x7FFF) + u32(u32(bits >> u32(16)) & u32(1)))
        rounded = u32(u32(bits + half) >> u32(16))
        return u16(rounded) if number == number else u16(0x7FC0)

    def float16(x: Any, like: Any) -> Any:
        number = f32(x)
        bits = number.view(i32)
        sign = i32(i32(bits >> i32(16)) & i32(0x8000))
        magnitude = i32(bits & i32(0x7FFFFFFF))
        absolute = magnitude.view(f32)
        # Below float16's normal numbers the processor's own addition rounds: the sum's last bits are the result.
        shifted = f32(absolute + f32(0.5))
        small = i32(shifted.view(i32) - i32(0x3F000000))
        odd = i32(i32(magnitude >> i32(13)) & i32(1))
        normal = i32(i32(i32(magnitude - i32(112 << 23)) + i32(i32(0xFFF) + odd)) >> i32(13))
        result = small if magnitude < i32(113 << 23) else normal
        result = i32(0x7C00) if magnitude >= i32(0x477FF000) else result  # 65520 and more round to infinity
        result = i32(0x7E00) if magnitude > i32(0x7F800000) else result
        return i16(i32(result | sign))

    def itself(x: Any, like: Any) -> Any:
        return like.dtype.type(x)

    return {types.uint16: bfloat16, types.int16: float16}.get(like.dtype, itself)


def order(x: Any) -> Any:
    """A float as an integer that compares as it does, vectorized over a row. NaN lies outside +-infinity."""


@overload(order)
def _order(x: Any) -> Any:
    def float32(x: Any) -> Any:
        number = f32(x)
        bits = number.view(i32)
        return i32(bits ^ i32(i32(bits >> i32(31)) & i32(0x7FFFFFFF)))

    def float64(x: Any) -> Any:
        number = f64(x)
        bits = number.view(i64)
        return i64(bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF))

    return float32 if x == types.float32 else float64


def unorder(x: Any) -> Any:
    """The float that `order` made an integer of."""


@overload(unorder)
def _unorder(x: Any) -> Any:
    def float32(x: Any) -> Any:
        bits = i32(x ^ i32(i32(x >> i32(31)) & i32(0x7FFFFFFF)))
        return bits.view(f32)

    def float64(x: Any) -> Any:
        bits = i64(x ^ ((x >> 63) & 0x7FFFFFFFFFFFFFFF))
        return bits.view(f64)

    return float32 if x == types.int32 else float64


# exp(x) = 2^n exp(r), where n = round(x / ln 2) and |r| <= ln(2) / 2. Adding MAGIC rounds: it leaves n in the number's
# last bits, from where a shift takes it to the exponent; n - k is what goes there, so that no row overflows. MAGIC adds
# HEADROOM to n: results are 2^HEADROOM larger, and stay normal numbers down to DEPTH below the row's largest logit,
# where exp times any sensible factor rounds to 0. ln 2 is taken off in two parts, the first with so few bits
# that its product with n is exact (Cody and Waite 1980) while |x| < LIMIT.
LOG2_E, LN_2 = math.log2(math.e), math.log(2.0)
HEADROOM_32, DEPTH_32, LIMIT_32, LN2_32 = 48, 119.0, 8192.0, (f32(355 / 512), f32(-2.1219444005469057e-4))
HEADROOM_64, DEPTH_64, LIMIT_64, LN2_64 = 192, 835.0, 1048576.0, (0.693145751953125, 1.4286068203094173e-6)
MAGIC_32, MAGIC_64 = f32(1.5 * 2**23 + HEADROOM_32), 1.5 * 2.0**52 + HEADROOM_64
# exp(r) = 1 + r + r^2 (P_0 + P_1 r + ...): in float32 the polynomial of least relative error (3e-9), in float64
# Taylor's (1e-17 at the ends of the interval).
P_32 = tuple(
    map(f32, (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.00836874544620514, 0.0013814540579915047))
)
P_64 = tuple(1 / math.factorial(k) for k in range(2, 14))


def exp(x: Any, k: Any) -> Any:
    """exp(x) 2^(HEADROOM - k), to about one unit in the last place."""


@overload(exp)
def _exp(x: Any, k: Any) -> Any:
    def float32(x: Any, k: Any) -> Any:
        shifted = f32(x * f32(LOG2_E) + MAGIC_32)
        n = shifted - MAGIC_32
        r = (x - n * LN2_32[0]) - n * LN2_32[1]
        p = P_32[0] + r * (P_32[1] + r * (P_32[2] + r * (P_32[3] + r * P_32[4])))
        p = f32(f32(1.0) + r * (f32(1.0) + r * p))
        bits = i32(p.view(i32) + i32(i32(shifted.view(i32) - k) << i32(23)))
        return bits.view(f32)

    def float64(x: Any, k: Any) -> Any:
        shifted = f64(x * LOG2_E + MAGIC_64)
        n = shifted - MAGIC_64
        r = (x - n * LN2_64[0]) - n * LN2_64[1]
        p = P_64[8] + r * (P_64[9] + r * (P_64[10] + r * P_64[11]))
        p = P_64[4] + r * (P_64[5] + r * (P_64[6] + r * (P_64[7] + r * p)))
        p = P_64[0] + r * (P_64[1] + r * (P_64[2] + r * (P_64[3] + r * p)))
        p = f64(1.0 + r * (1.0 + r * p))
        bits = i64(p.view(i64) + ((shifted.view(i64) - k) << 52))
        return bits.view(f64)

    return float32 if x == types.float32 else float64


def scaling(top: Any) -> Any:
    """For a row whose largest logit is `top`: (an offset, the lowest x, k), for exp(max(x - offset, lowest), k).

    The offset is 0 unless the logits are so large that x - top is exact wherever exp of it is not 0.
    """


@overload(scaling)
def _scaling(top: Any) -> Any:
    def float32(top: Any) -> Any:
        if -LIMIT_32 < top < LIMIT_32:
            return f32(0), f32(top - f32(DEPTH_32)), i32(math.floor(top * LOG2_E + 0.5))
        return f32(top), f32(-DEPTH_32), i32(0)

    def float64(top: Any) -> Any:
        if -LIMIT_64 < top < LIMIT_64:
            return 0.0, top - DEPTH_64, i64(math.floor(top * LOG2_E + 0.5))
        return top, -DEPTH_64, i64(0)

    return float32 if top == types.float32 else float64


def headroom(x: Any) -> Any:
    """HEADROOM for this kind of number."""


@overload(headroom)
def _headroom(x: Any) -> Any:
    def float32(x: Any) -> Any:
        return HEADROOM_32

    def float64(x: Any) -> Any:
        return HEADROOM_64

    return float32 if x == types.float32 else float64


@njit(error_model="numpy", forceinline=True)
def log1p(x: Any) -> Any:
    """log(1 + x), with all digits however small x is (Kahan's way: twice as fast as the C library's)."""
    one_more = 1.0 + x
    return x if one_more == 1.0 or one_more == np.inf else math.log(one_more) * (x / (one_more - 1.0))
