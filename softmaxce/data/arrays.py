"""Images as arrays of any number of channels, of 8 or 16 bits or floating-point: .npy, TIFF and PNG files.

Pillow holds at most four channels, and more than 8 bits of one channel alone. Needs no torch.
"""

import logging
import math
import os
from collections.abc import Callable
from importlib import util
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..argument_types import Depth
from .resizing import Resizing

NPY = ".npy"
NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of 32 and of 64 bits
PNG_MAGIC, PNG_HEADER = b"\x89PNG\r\n\x1a\n", 26  # bytes 24 and 25 are the bits of a sample and the type of color
PNG_GRAY = 0
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
START = PNG_HEADER  # bytes from which the format is known
FULL_SCALE: dict[Depth, int] = {"uint8": 255, "uint16": 65535, "float32": 1}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow
NEEDS_TIFFFILE = "is a TIFF file that only tifffile reads; install it with: pip install 'softmaxce[tiff]'"

# What NumPy and Python's parser raise; of at most 10,000 characters, so that a MemoryError is none.
DAMAGED_HEADER = (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError, TokenError)

Pixels = NDArray[Any]  # of one of the depths

# What turns an image [H, W, C] upright, by the number of its EXIF or TIFF orientation.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


def upright(pixels: Pixels, orientation: object) -> Pixels:
    """An image [H, W, C] turned by its orientation, 1 to 8; another value turns nothing."""
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else turn(pixels)


# -- files ------------------------------------------------------------------------------------------------------------


def read_npy(stream: BinaryIO, max_pixels: int) -> Pixels:
    """The array of a .npy file, [H, W] or [H, W, C], as [H, W, C]. Nothing in it is unpickled. Raises: ValueError."""
    shape, is_fortran, dtype = npy_header(stream)
    check_size(shape, max_pixels)
    size, begin = math.prod(shape) * dtype.itemsize, stream.tell()
    if stream.seek(0, os.SEEK_END) - begin < size:  # before memory of this size is allocated
        raise ValueError("it is cut off")
    stream.seek(begin)
    pixels = np.frombuffer(stream.read(size), dtype).reshape(shape, order="F" if is_fortran else "C")
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, the order and the type of a .npy file. Raises: ValueError unless it is one of numbers, an image."""
    if np.lib.format.read_magic(stream) != (1, 0):  # the others are for arrays of records
        raise ValueError("it is no array of numbers")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except DAMAGED_HEADER:
        raise ValueError("its header is damaged") from None
    if dtype.kind not in "biuf":
        raise ValueError(f"its values are {dtype}, not numbers")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"its shape is {list(shape)}; an image is [height, width] or [height, width, channels]")
    return shape, is_fortran, dtype


def tiff_header(stream: BinaryIO) -> tuple[tuple[int, int], str]:
    """The (width, height) of a TIFF file, and the number and type of its channels. Raises: as read_tiff."""
    with _tifffile().TiffFile(stream, name="image") as tiff:
        page = tiff.pages.first
        return (page.imagewidth, page.imagelength), f"{page.samplesperpixel} x {page.dtype}"


def _tifffile() -> Any:
    """The module. Raises: ValueError if it is not installed."""
    if util.find_spec("tifffile") is None:
        raise ValueError(NEEDS_TIFFFILE)
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what cannot be read is raised
    return tifffile


def read_tiff(stream: BinaryIO, channels: int, max_pixels: int) -> Pixels:
    """A TIFF file's first image, upright, as [H, W, C]; or its pages as channels, if they are as many as `channels`.

    Raises: ValueError, also if tifffile is not installed; and whatever tifffile raises on damaged files.
    """
    with _tifffile().TiffFile(stream, name="image") as tiff:
        page = tiff.pages.first
        source: Any = page
        if page.samplesperpixel != channels and len(tiff.pages) > 1:
            series = tiff.series[0]
            source = series if len(series.axes) == 3 else page
        axes, shape = str(source.axes), tuple(source.shape)
        if len(axes) not in (2, 3) or not {"Y", "X"} <= {*axes}:
            raise ValueError(f"its axes are {axes}; an image is YX, or has one more axis, of channels")
        channel_axis = next((at for at, axis in enumerate(axes) if axis not in "YX"), None)
        sides = tuple(side for at, side in enumerate(shape) if at != channel_axis)
        check_size(sides, max_pixels)
        check_channels((*sides, 1 if channel_axis is None else shape[channel_axis]), channels)
        pixels: Pixels = source.asarray(maxworkers=1)  # files are decoded in threads already
        pixels = pixels[:, :, None] if channel_axis is None else np.moveaxis(pixels, channel_axis, 2)
        orientation = page.tags.get(ORIENTATION)
        return upright(pixels, None if orientation is None else int(orientation.value))


def is_deep_color_png(start: bytes) -> bool:
    """Whether a file that begins so is a PNG of 16 bits and more than one channel, of which Pillow keeps 8 bits."""
    return start.startswith(PNG_MAGIC) and len(start) == PNG_HEADER and start[24] == 16 and start[25] != PNG_GRAY


def read_png(stream: BinaryIO) -> Pixels:
    """A PNG file of 16 bits, RGB or RGBA, upright, as [H, W, C] uint16. Raises: ValueError if it is gray with alpha.

    Pillow keeps one byte of each sample. Which one follows from the order that it takes the two to be in.
    """
    halves: list[Pixels] = []
    orientation: object = None
    for order in ("B", "L"):  # big-endian, as the file is, gives the upper byte; little-endian the lower
        stream.seek(0)
        with Image.open(stream, formats=["PNG"]) as image:
            if any(tile.args != f"{image.mode};16B" for tile in image.tile):
                raise ValueError("it is a PNG file of 16 bits, gray with alpha, which is not read; save it as RGBA")
            image.tile = [tile._replace(args=f"{image.mode};16{order}") for tile in image.tile]
            halves.append(np.asarray(image).astype(np.uint16))
            orientation = image.getexif().get(ORIENTATION)
    return upright(halves[0] << 8 | halves[1], orientation)


def check_size(shape: tuple[int, ...], max_pixels: int) -> None:
    """Raises: ValueError if an image of (H, W, ...) has more pixels than these."""
    if shape[0] * shape[1] > max_pixels:
        raise ValueError(f"its {shape[1]}x{shape[0]} pixels are more than {max_pixels:,}")


def tifffile_version() -> str | None:
    """On which the pixels of TIFF files depend; None if it is not installed."""
    if util.find_spec("tifffile") is None:
        return None
    from importlib import metadata  # it takes longer to import than all of this module

    return metadata.version("tifffile")


# -- depth, channels, size --------------------------------------------------------------------------------------------


def to_depth(pixels: Pixels, depth: Depth) -> Pixels:
    """Pixels in another type, without loss: whole numbers keep their fraction of the full scale, others their value.

    Raises: ValueError if something would be lost, or a value is NaN or infinite.
    """
    kind, bits = pixels.dtype.kind, 8 * pixels.dtype.itemsize
    is_unsigned, is_float = kind == "u" and bits in (8, 16), kind == "f" and bits in (16, 32, 64)
    if not is_unsigned and not is_float:
        raise ValueError(f"its values are {pixels.dtype}; save them as uint8, uint16 or float32")
    fitting: Depth = "float32" if is_float else "uint16" if bits == 16 else "uint8"
    if list(FULL_SCALE).index(fitting) > list(FULL_SCALE).index(depth):
        raise ValueError(f"its values are {pixels.dtype}, and data.depth is {depth}; set data.depth: {fitting}")
    if is_float:
        with np.errstate(over="ignore"):  # infinite, and refused
            pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise ValueError("it has values that are NaN, infinite or beyond float32")
        return pixels
    if depth == "float32":
        return pixels.astype(np.float32) / np.float32(FULL_SCALE[fitting])
    factor = FULL_SCALE[depth] // FULL_SCALE[fitting]  # 1, or 257: all bits set stay all bits set
    scaled: Pixels = pixels.astype(depth) * np.dtype(depth).type(factor)
    return scaled


def check_channels(shape: tuple[int, ...], channels: int) -> None:
    """Raises: ValueError unless an image of (H, W, C), whose channels have no known meaning, has as many as these."""
    if shape[2] != channels:
        hint = f": its shape is {list(shape)}, and must be [height, width, channels]" if shape[0] == channels else ""
        raise ValueError(f"it has {shape[2]} channel{'s' * (shape[2] > 1)}, not {channels}{hint}")


def convert_colors(pixels: Pixels, channels: int, full: int) -> Pixels:
    """Gray, gray and alpha, RGB or RGBA [H, W, 1 to 4] as gray, RGB or RGBA, as Pillow converts 8 bits.

    Args:
        pixels: of one of the depths.
        channels: 1, 3 or 4; another number must be that of the image. Without alpha, the image is composed over white.
        full: the value of white.
    Raises: ValueError, as check_channels.
    """
    if channels not in (1, 3, 4):
        check_channels(pixels.shape, channels)
    if pixels.shape[2] == channels:
        return pixels
    has_alpha = pixels.shape[2] in (2, 4)
    colors, alpha = pixels[:, :, : pixels.shape[2] - has_alpha], pixels[:, :, -1:]
    if channels == 4:
        opaque = alpha if has_alpha else np.full_like(alpha, full)
        return np.concatenate([np.broadcast_to(colors, (*colors.shape[:2], 3)), opaque], 2)
    values = colors.astype(np.float64)
    if has_alpha:
        opacity = alpha.astype(np.float64) / full
        values = values * opacity + full * (1 - opacity)
    if channels == 1 and values.shape[2] == 3:
        values = (values @ np.array(LUMA))[:, :, None]
    values = np.broadcast_to(values, (*values.shape[:2], channels))
    return (np.rint(values) if pixels.dtype.kind == "u" else values).astype(pixels.dtype)


def height_and_width(image: Image.Image | Pixels) -> tuple[int, int]:
    """Of an image, or of an array [H, W, C]."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])


def resized(pixels: Pixels, size: tuple[int, int] | None, resizing: Resizing) -> Pixels:
    """An image [H, W, C] as [C, H, W] in another size, each channel by itself, in the same type."""
    planes = np.moveaxis(pixels, 2, 0)
    if size is None or planes.shape[1:] == size:
        return np.ascontiguousarray(planes)
    held = np.uint8 if pixels.dtype == np.uint8 else np.float32  # what Pillow resizes; float32 has all uint16 exactly
    images = [Image.fromarray(np.ascontiguousarray(plane, held)) for plane in planes]
    result = np.stack([np.asarray(resizing(image, size)) for image in images])
    return result if result.dtype == pixels.dtype else np.rint(result).clip(0, 65535).astype(pixels.dtype)
