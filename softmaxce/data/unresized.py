"""Files that are taken as they are, without data.size: all must be of one size."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..errors import DataError
from .arrays import Pixels, height_and_width
from .decode import Decode


class SizeError(DataError):
    """An image has another size than the others. It is not damaged, and never left out."""


@dataclass(frozen=True)
class Unresized(Decode):
    """Decodes files that are all of one size. Raises: DataError, also if an image is not as large as `reference`."""

    shape: tuple[int, int, int] = field(kw_only=True)
    reference: str = field(kw_only=True)

    def as_decoded(self, file: str) -> Pixels:
        """Decode one file to [C, H, W], in either order in memory."""
        array = super().as_decoded(file)
        self._check(file, array.shape[1], array.shape[2])
        return array

    def whole(self, file: str) -> Image.Image | Pixels:
        """Decode one file to an image of mode L or RGB, or to [H, W, C]."""
        image = super().whole(file)
        self._check(file, *height_and_width(image))
        return image

    def _check(self, file: str, height: int, width: int) -> None:
        if (height, width) != self.shape[1:]:
            raise SizeError(
                f"{file} is {height}x{width} pixels and {self.reference} is {self.shape[1]}x{self.shape[2]}; "
                "set data.size (32, for example) to resize all of them"
            )


def first_size(files: Sequence[str], decode: Decode) -> tuple[str, tuple[int, int]]:
    """The first file that can be decoded, and its (H, W)."""
    reason = ""
    for file in files:
        try:
            array = decode.array(file)
        except DataError as error:
            reason = reason or error.lines[0]
            continue
        return file, (array.shape[1], array.shape[2])
    raise none_decodable(files, reason)


def none_decodable(files: Sequence[str], reason: str) -> DataError:
    return DataError(f"none of {len(files)} files can be decoded; the first: {reason}")
