"""One image file as pixels, whatever its format and mode. Needs no torch."""

import contextlib
import hashlib
import importlib.util
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ..errors import DataError, MemoryRanOutError, ran_out_of_memory
from ..runtime.processors import processors
from . import resizing
from .member import open_image_file, size_of
from .resizing import DEFAULT as DEFAULT_RESIZING
from .resizing import FILTERS, Resizing, within

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SMALL_FILE = 4 << 10  # bytes

# Common formats of photographs. Pillow has some forty more: EPS runs an interpreter, icons unpack to any size.
FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP"),
    *("AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI", "HEIF"),
)
HEIF = (".heic", ".heif")  # photographs of phones; read where the package pillow-heif is installed
# Further extensions of images, of cameras and drawing programs, that Pillow does not know or does not read.
UNREAD = (
    *HEIF,
    *(".jxl", ".svg", ".svgz", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
)
MAX_BYTES = 1 << 30  # of a file: the largest image below, with 64 bits a pixel, is half of that
MAX_PIXELS = 1 << 26  # a larger one is no training image, and could exhaust memory (a decompression bomb)
# Raised by Pillow's decoders and its EXIF reader on damaged files, as observed.
DAMAGED = (
    *(OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # bytes of unpacked text or color profile; editors write some megabytes
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below, by MAX_PIXELS
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # about metadata that is not used


class FileAccessError(DataError):
    """The system did not open or read a file; whether it holds an image is not known."""


@dataclass(frozen=True)
class Decode:
    """Decodes a file to [C, H, W] uint8. Raises: DataError, with the file and the reason."""

    channels: int
    size: tuple[int, int] | None  # (H, W); None: as it is
    resizing: Resizing = DEFAULT_RESIZING
    whole_pixels: int | None = None  # of a whole image, at most; None for all that it has

    def __call__(self, file: str) -> "Tensor":
        """Decode one file."""
        import torch

        return torch.tensor(self.array(file))

    def array(self, file: str) -> NDArray[np.uint8]:
        """Decode one file to [C, H, W]."""
        return self._decoded(lambda: open_image(file), file, lambda: _is_empty(file), MAX_PIXELS, self._pixels)

    def whole(self, file: str) -> Image.Image:
        """Decode one file to an image of mode L or RGB that is not cropped, with `whole_pixels` pixels at most."""
        return self._decoded(lambda: open_image(file), file, lambda: _is_empty(file), MAX_PIXELS, self._whole)

    def array_of(self, content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Decode what a file holds to [C, H, W].

        Args:
            content: of the file.
            name: for the message.
            max_pixels: more are refused before they are decoded.
        """
        return self._decoded(
            lambda: Image.open(BytesIO(content), formats=formats()), name, lambda: not content, max_pixels, self._pixels
        )

    def _decoded(
        self,
        open_it: Callable[[], AbstractContextManager[Image.Image]],
        name: str,
        is_empty: Callable[[], bool],
        max_pixels: int,
        convert: Callable[[Image.Image], T],
    ) -> T:
        try:
            with open_it() as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(f"its {image.width}x{image.height} pixels are more than {max_pixels:,}")
                return convert(image)
        except DAMAGED as error:
            if ran_out_of_memory(error):
                raise MemoryRanOutError(f"{name}: memory ran out while decoding it; data.size needs less") from None
            refused = isinstance(error, OSError) and error.errno is not None  # Pillow's own errors have no number
            raise (FileAccessError if refused else DataError)(f"{name}: {_reason(error, name, is_empty)}") from None

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        if self.size is not None:
            self.resizing.reduce(image, self.size)
        return self.pixels(image)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An opened image as [C, H, W] uint8; the image itself is turned upright by its EXIF tag."""
        pixels = np.asarray(self._fitted(_as_rgb_or_gray(image, self.channels)))
        return np.ascontiguousarray(pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1))

    def _whole(self, image: Image.Image) -> Image.Image:
        size = image.size if self.whole_pixels is None else within(image.size, self.whole_pixels)
        if size != image.size:
            self.resizing.reduce(image, size)
        upright = _as_rgb_or_gray(image, self.channels)
        upright.load()  # before the file is closed
        size = upright.size if self.whole_pixels is None else within(upright.size, self.whole_pixels)
        return upright if size == upright.size else upright.resize(size, FILTERS[self.resizing.interpolation])

    def _fitted(self, image: Image.Image) -> Image.Image:
        """The image brought to `size`."""
        return image if self.size is None else self.resizing(image, self.size)


@contextlib.contextmanager
def open_image(file: str) -> Iterator[Image.Image]:
    """Open an image file; its header alone is read. Raises: DAMAGED, also for what is no regular file or too large."""
    stream = open_image_file(file, MAX_BYTES)  # a limit, as some of Pillow's decoders read all of it first
    with stream, Image.open(stream, formats=formats()) as image:
        yield image


def decoding_threads(file: str) -> int:
    """How many threads decode files like this one fastest.

    PIL releases the GIL while it decodes, but for small files most of the time goes to the rest, which holds it.
    """
    return processors() if size_of(file) > SMALL_FILE else 1


def _as_rgb_or_gray(image: Image.Image, channels: int) -> Image.Image:
    """Any mode as RGB or L: rotated by its EXIF tag, more bits scaled to 8, transparency composed over white.

    Of an animation or a file of several pages, the first. Whole numbers of more than 8 bits go from 0 to 65535, also
    in 32 bits, for which there is no convention; floating-point numbers go from 0 to 1.

    Raises: ValueError if the numbers are outside that range.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":
        image = _scaled(np.asarray(image), 65535, 0)
    elif image.mode == "F":
        pixels = np.asarray(image)
        image = _scaled(np.where(np.isnan(pixels), 0, pixels), 1, 0.1)  # resampling overshoots
    elif image.mode == "LAB":
        image = image.convert("RGB")
    elif image.has_transparency_data:
        overlay = image.convert("RGBA")
        # Programs that write 32-bit BMP without transparency leave the fourth byte 0.
        if image.format not in ("BMP", "DIB") or overlay.getchannel("A").getextrema() != (0, 0):
            image = Image.alpha_composite(Image.new("RGBA", overlay.size, "white"), overlay)
    mode = "L" if channels == 1 else "RGB"
    # convert() copies the image even where the mode is the same
    return image if image.mode == mode else image.convert(mode)


def _scaled(pixels: NDArray[Any], largest: int, tolerance: float) -> Image.Image:
    """Numbers from 0 to `largest` as 8-bit gray levels. Raises: ValueError if some are outside, beyond a tolerance."""
    least, most = pixels.min(initial=0), pixels.max(initial=0)
    if least < -tolerance or most > largest + tolerance:
        raise ValueError(
            f"its values range from {least:g} to {most:g}, not from 0 to {largest}; scale them, or convert it to 8 bits"
        )
    return Image.fromarray((pixels / largest * 255).round().clip(0, 255).astype(np.uint8))


def _reason(error: BaseException, file: str, is_empty: Callable[[], bool]) -> str:
    """Why a file could not be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        suffix = Path(file).suffix.lower()
        if suffix in HEIF and "HEIF" not in formats():
            return f"{suffix} files need pillow-heif (pip install pillow-heif)"
        if is_unread_image(file):
            return f"{suffix} files are not read; convert it to PNG"
        return "the file is empty" if is_empty() else "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return (
        text if text and isinstance(error, OSError | ValueError) else f"it is damaged ({type(error).__name__}: {text})"
    )


def _is_empty(file: str) -> bool:
    try:
        return size_of(file) == 0
    except OSError:  # removed since it was read
        return False


def is_image(file: Path) -> bool:
    """Whether a file exists, is not hidden, and has the extension of a format that can be decoded."""
    return file.suffix.lower() in _extensions() and not file.name.startswith(".") and file.is_file()


def has_image_suffix(suffix: str) -> bool:
    """Whether this is the extension, `.jpg`, of a format that can be decoded."""
    return suffix in _extensions()


def is_unread_image(file: str | Path) -> bool:
    """Whether a file that is not hidden has the extension of an image, but of a format that is not decoded."""
    suffix = Path(file).suffix.lower()
    known = suffix in UNREAD or suffix in Image.registered_extensions()
    return known and suffix not in _extensions() and not Path(file).name.startswith(".")


@cache
def _extensions() -> frozenset[str]:
    read = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in read)


@cache
def program() -> str:
    """A hash of the code that decodes and resizes, on which cached pixels depend."""
    files = (Path(__file__), Path(str(resizing.__file__)))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded: those of FORMATS that this Pillow reads, with HEIF if pillow-heif is installed."""
    Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)
