"""One image file as pixels, whatever its format and mode. Needs no torch."""

import contextlib
import hashlib
import importlib.util
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from ..argument_types import ColorProfiles
from ..errors import DataError, MemoryRanOutError, ran_out_of_memory
from ..runtime.processors import processors
from . import arrays
from .arrays import NPY, Pixels
from .member import open_image_file, size_of
from .resizing import DEFAULT as DEFAULT_RESIZING
from .resizing import FILTERS, Resizing, within

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SMALL_FILE = 4 << 10  # bytes
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels

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
    """Decodes a file to [C, H, W], of the type `resizing.depth`. Raises: DataError, with the file and the reason.

    Attributes:
        channels: C. 1 is gray, 3 RGB, 4 RGBA: photographs are converted. Other files must have as many.
        size: to which images are resized; None takes them as they are.
        resizing: how, and how they are decoded.
        whole_pixels: of a whole image, at most; None for all that it has.
    """

    channels: int
    size: tuple[int, int] | None  # (H, W)
    resizing: Resizing = DEFAULT_RESIZING
    whole_pixels: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether images are gray or RGB of 8 bits, as Pillow decodes any file."""
        return self.channels in (1, 3) and self.resizing.depth == "uint8"

    def __call__(self, file: str) -> "Tensor":
        """Decode one file."""
        import torch

        return torch.tensor(self.array(file))

    def array(self, file: str) -> Pixels:
        """Decode one file to [C, H, W]."""
        return np.ascontiguousarray(self.as_decoded(file))

    def as_decoded(self, file: str) -> Pixels:
        """Decode one file to [C, H, W], which may still be [H, W, C] in memory: batches are made of either."""
        return self._guarded(lambda: self._array(_opened(file), MAX_PIXELS), file, lambda: _is_empty(file))

    def whole(self, file: str) -> Image.Image | Pixels:
        """Decode one file to an image that is not cropped, with `whole_pixels` pixels at most.

        Returns: an image of mode L or RGB; [H, W, C] for other channels or another depth.
        """
        decoded = self._whole if self.is_plain else self._whole_array
        return self._guarded(lambda: decoded(_opened(file)), file, lambda: _is_empty(file))

    def array_of(self, content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
        """Decode what a file holds to [C, H, W].

        Args:
            content: of the file.
            name: for the message.
            max_pixels: more are refused before they are decoded.
        """
        decoded = self._guarded(lambda: self._array(BytesIO(content), max_pixels), name, lambda: not content)
        return np.ascontiguousarray(decoded)

    def of_samples(self, samples: Pixels) -> Pixels:
        """An array [H, W, C] that is no photograph's, C as the model takes it, brought to `size`: [C, H, W].

        Raises: ValueError if it has another number of channels, or values that the depth cannot hold.
        """
        return arrays.resized(self._as_stored(samples), self.size, self.resizing)

    def _as_stored(self, samples: Pixels) -> Pixels:
        arrays.check_channels(samples.shape, self.channels)
        return arrays.to_depth(samples, self.resizing.depth)

    @staticmethod
    def _guarded(decoded: Callable[[], T], name: str, is_empty: Callable[[], bool]) -> T:
        """What `decoded` returns. Raises: DataError, for whatever decoders raise."""
        try:
            return decoded()
        except DAMAGED as error:
            if ran_out_of_memory(error):
                raise MemoryRanOutError(f"{name}: memory ran out while decoding it; data.size needs less") from None
            refused = isinstance(error, OSError) and error.errno is not None  # Pillow's own errors have no number
            raise (FileAccessError if refused else DataError)(f"{name}: {_reason(error, name, is_empty)}") from None

    def _array(self, opened: BinaryIO, max_pixels: int) -> Pixels:
        with opened as stream:
            start = stream.read(arrays.START)
            stream.seek(0)
            if start.startswith(arrays.NPY_MAGIC):
                return self.of_samples(arrays.read_npy(stream, max_pixels))
            if not self.is_plain and start.startswith(arrays.TIFF_MAGIC) and self._needs_tifffile(stream):
                return self.of_samples(arrays.read_tiff(stream, self.channels, max_pixels))
            with _limited(stream, max_pixels) as image:
                if self.resizing.depth != "uint8" and arrays.is_deep_color_png(start):
                    return self._of_photograph(arrays.read_png(stream))
                if self.size is not None:
                    self.resizing.reduce(image, self.size)
                return self._pixels(image)

    def _needs_tifffile(self, stream: BinaryIO) -> bool:
        """Whether Pillow does not read a TIFF file, or would lose channels, bits or pages of it."""
        try:
            with Image.open(stream, formats=("TIFF",)) as image:
                tags: Any = image.tag_v2  # type: ignore[attr-defined]
                samples, bits = tags.get(277, 1), max(tags.get(258, (1,)))
                loses_bits = self.resizing.depth != "uint8" and samples > 1 and bits > 8
                bands = len(image.getbands())
                as_needed = self.channels in (1, 3, 4) or bands == self.channels
                pages = self.channels > 1 and getattr(image, "n_frames", 1) == self.channels
                return loses_bits or samples != bands or not as_needed or pages
        except UnidentifiedImageError:  # tifffile reads it, or says what is wrong with it
            return True
        finally:
            stream.seek(0)

    def pixels(self, image: Image.Image) -> Pixels:
        """An opened image as [C, H, W]; the image itself is turned upright by its EXIF tag."""
        return np.ascontiguousarray(self._pixels(image))

    def _pixels(self, image: Image.Image) -> Pixels:
        if self.channels in MODES and self.resizing.depth == "uint8":
            pixels = np.asarray(self._fitted(_in_mode(image, self.channels, self.resizing.icc)))
            return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            samples = np.asarray(image)
            if image.mode != "F":
                _check_range(samples, 65535, 0)
                samples = samples.astype(np.uint16)
        else:
            samples = np.asarray(_in_mode(image, self.channels) if self.channels in MODES else image)
        return self._of_photograph(samples if samples.ndim == 3 else samples[:, :, None])

    def _of_photograph(self, samples: Pixels) -> Pixels:
        """Gray, gray and alpha, RGB or RGBA [H, W, 1 to 4] -> [C, H, W]."""
        depth = self.resizing.depth
        pixels = arrays.convert_colors(arrays.to_depth(samples, depth), self.channels, arrays.FULL_SCALE[depth])
        return arrays.resized(pixels, self.size, self.resizing)

    def _whole(self, opened: BinaryIO) -> Image.Image:
        with opened as stream:
            is_array = stream.read(arrays.START).startswith(arrays.NPY_MAGIC)
            stream.seek(0)
            if is_array:
                pixels = self._as_stored(arrays.read_npy(stream, MAX_PIXELS))
                return self._shrunk(Image.fromarray(pixels[:, :, 0] if self.channels == 1 else pixels))
            with _limited(stream, MAX_PIXELS) as image:
                size = image.size if self.whole_pixels is None else within(image.size, self.whole_pixels)
                if size != image.size:
                    self.resizing.reduce(image, size)
                upright = _in_mode(image, self.channels, self.resizing.icc)
                upright.load()  # before the file is closed
        return self._shrunk(upright)

    def _whole_array(self, opened: BinaryIO) -> Pixels:
        pixels = np.moveaxis(replace(self, size=None)._array(opened, MAX_PIXELS), 0, 2)
        height, width = pixels.shape[:2]
        if self.whole_pixels is None or height * width <= self.whole_pixels:
            return pixels
        width, height = within((width, height), self.whole_pixels)
        stretched = replace(self.resizing, fit="stretch")
        return np.moveaxis(arrays.resized(pixels, (height, width), stretched), 0, 2)

    def _shrunk(self, upright: Image.Image) -> Image.Image:
        size = upright.size if self.whole_pixels is None else within(upright.size, self.whole_pixels)
        return upright if size == upright.size else upright.resize(size, FILTERS[self.resizing.interpolation])

    def _fitted(self, image: Image.Image) -> Image.Image:
        """The image brought to `size`."""
        return image if self.size is None else self.resizing(image, self.size)


def header(file: str) -> tuple[tuple[int, int], str, str]:
    """The (width, height) of an image file, its mode, or the number and type of its channels, and its format.

    Its header alone is read. Raises: DAMAGED, also for what is no regular file or too large.
    """
    with _opened(file) as stream:
        start = stream.read(arrays.START)
        stream.seek(0)
        if start.startswith(arrays.NPY_MAGIC):
            shape, _, dtype = arrays.npy_header(stream)
            return (shape[1], shape[0]), f"{(*shape, 1)[2]} x {dtype}", "NPY"
        try:
            with Image.open(stream, formats=formats()) as image:
                return image.size, image.mode, image.format or "unknown"
        except UnidentifiedImageError:
            if not start.startswith(arrays.TIFF_MAGIC):
                raise
        stream.seek(0)
        return *arrays.tiff_header(stream), "TIFF"


def _opened(file: str) -> BinaryIO:
    return open_image_file(file, MAX_BYTES)  # a limit, as some of Pillow's decoders read all of it first


@contextlib.contextmanager
def _limited(stream: BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """The image in a file, whose pixels are not decoded yet. Raises: ValueError if there are more than these."""
    with Image.open(stream, formats=formats()) as image:
        arrays.check_size((image.height, image.width), max_pixels)
        yield image


def decoding_threads(file: str) -> int:
    """How many threads decode files like this one fastest.

    PIL releases the GIL while it decodes, but for small files most of the time goes to the rest, which holds it.
    """
    return processors() if size_of(file) > SMALL_FILE else 1


def _in_mode(image: Image.Image, channels: int, icc: ColorProfiles = "ignore") -> Image.Image:
    """Any mode as L, RGB or RGBA: rotated by its EXIF tag, more bits scaled to 8; without alpha, composed over white.

    Of an animation or a file of several pages, the first. Whole numbers of more than 8 bits go from 0 to 65535, also
    in 32 bits, for which there is no convention; floating-point numbers go from 0 to 1.

    Raises: ValueError if the numbers are outside that range, or a color profile does not fit.
    """
    ImageOps.exif_transpose(image, in_place=True)
    profile = image.info.get("icc_profile") if icc == "srgb" else None
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":
        image = _scaled(np.asarray(image), 65535, 0)
    elif image.mode == "F":
        pixels = np.asarray(image)
        image = _scaled(np.where(np.isnan(pixels), 0, pixels), 1, 0.1)  # resampling overshoots
    elif image.mode == "LAB":
        image = image.convert("RGB")
    form, mode = image.format, MODES[channels]
    if profile:
        from .color_profiles import to_srgb  # LittleCMS, which no other image needs

        image = to_srgb(image, profile)
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        # Programs that write 32-bit BMP without transparency leave the fourth byte 0.
        if form in ("BMP", "DIB") and overlay.getchannel("A").getextrema() == (0, 0):
            image = image.convert("RGB")
        elif mode == "RGBA":
            image = overlay
        else:
            image = Image.alpha_composite(Image.new("RGBA", overlay.size, "white"), overlay)
    # convert() copies the image even where the mode is the same
    return image if image.mode == mode else image.convert(mode)


def _scaled(pixels: NDArray[Any], largest: int, tolerance: float) -> Image.Image:
    """Numbers from 0 to `largest` as 8-bit gray levels. Raises: ValueError if some are outside, beyond a tolerance."""
    _check_range(pixels, largest, tolerance)
    return Image.fromarray((pixels / largest * 255).round().clip(0, 255).astype(np.uint8))


def _check_range(pixels: NDArray[Any], largest: int, tolerance: float) -> None:
    """Raises: ValueError if some values are not from 0 to `largest`, beyond a tolerance."""
    least, most = pixels.min(initial=0), pixels.max(initial=0)
    if least < -tolerance or most > largest + tolerance:
        raise ValueError(
            f"its values range from {least:g} to {most:g}, not from 0 to {largest}; scale them, or convert it to 8 bits"
        )


def _reason(error: BaseException, file: str, is_empty: Callable[[], bool]) -> str:
    """Why a file could not be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        suffix = Path(file).suffix.lower()
        if suffix in HEIF and "HEIF" not in formats():
            return f"{suffix} files need pillow-heif (pip install pillow-heif)"
        if is_unread_image(file):
            return f"{suffix} files are not read; convert it to PNG"
        if is_empty():
            return "the file is empty"
        is_tiff = suffix in (".tif", ".tiff")
        return "it is not an image" + "; TIFF of other channels or depths needs data.channels and data.depth" * is_tiff
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


def is_image(file: Path, *, npy: bool = False) -> bool:
    """Whether a file exists, is not hidden, and has the extension of a format that can be decoded; `npy` as below."""
    return has_image_suffix(file.suffix.lower(), npy=npy) and not file.name.startswith(".") and file.is_file()


def has_image_suffix(suffix: str, *, npy: bool = False) -> bool:
    """Whether this is the extension, `.jpg`, of a format that can be decoded; .npy is one where `npy` is set."""
    return suffix in _extensions() or (npy and suffix == NPY)


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
    files = [Path(__file__).with_name(f"{name}.py") for name in ("decode", "arrays", "color_profiles", "resizing")]
    code = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(code + repr((arrays.tifffile_version(), features.version("littlecms2"))).encode()).hexdigest()


@cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded: those of FORMATS that this Pillow reads, with HEIF if pillow-heif is installed."""
    Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)
