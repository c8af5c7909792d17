"""Images with a color profile (ICC), converted to sRGB as a program that shows them does. Needs no torch."""

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageCms

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of the pixels that a profile describes, by its color space
SAME = {"RGBA": "RGB", "RGBX": "RGB", "P": "RGB", "PA": "RGB", "YCbCr": "RGB", "1": "L", "LA": "L", "La": "L"}


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of 8 bits in sRGB, RGB or RGBA; itself if the profile is sRGB. Raises: ValueError if it does not fit.

    Converted by LittleCMS with the profile's perceptual intent.
    """
    mode, transform = _transform(profile)
    if transform is None:
        return image
    if SAME.get(image.mode, image.mode) != mode:
        raise ValueError(f"its color profile is for {mode} pixels, and they are {image.mode}")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(64)  # the photographs of a camera have one
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of a profile's pixels, and what converts them to sRGB; None if they are sRGB. Raises: ValueError."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space not in MODES:
            raise ValueError(f"its color profile is for {space}, which is not read")
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return MODES[space], None
        target = ImageCms.createProfile("sRGB")
        return MODES[space], ImageCms.buildTransform(source, target, MODES[space], "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"its color profile is damaged ({error}); data.icc: ignore leaves it out") from None
