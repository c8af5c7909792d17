"""Images of any number of channels, of 8 and 16 bits and floating-point, and with color profiles."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from softmaxce.build import load_source
from softmaxce.config.from_python import load_config
from softmaxce.data.decode import Decode
from softmaxce.data.pack import pack
from softmaxce.data.preprocessing import mean_and_std
from softmaxce.data.resizing import Resizing
from softmaxce.data.splits import InMemory, OnDisk
from softmaxce.errors import ConfigError, DataError, SoftmaxceError

Array = NDArray[Any]
RANDOM = np.random.default_rng(7)
SIDES = (6, 5)  # height, width


def whole_numbers(channels: int, dtype: str) -> Array:
    """Random pixels [H, W, C]; the first two are the smallest and the largest number."""
    pixels = RANDOM.integers(0, np.iinfo(dtype).max, (*SIDES, channels), dtype, endpoint=True)
    pixels[0, :2] = [[0], [np.iinfo(dtype).max]]
    return pixels


def floats(channels: int, dtype: str = "float32") -> Array:
    return (1000 * RANDOM.standard_normal((*SIDES, channels))).astype(dtype)


def png_of_16_bits(pixels: Array) -> bytes:
    """A PNG file by its specification: gray and alpha, RGB or RGBA, big-endian, without filters."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


def npy(pixels: Array) -> bytes:
    stream = BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def tiff(pixels: Array, **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", "metadata": None, **options})
    return stream.getvalue()


def pillows(pixels: Array, form: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, form)
    return stream.getvalue()


GRAY8, RGB8, RGBA8, FIVE8 = (whole_numbers(channels, "uint8") for channels in (1, 3, 4, 5))
GRAY16, LA16, RGB16, RGBA16, SEVEN16 = (whole_numbers(channels, "uint16") for channels in (1, 2, 3, 4, 7))
FLOAT1, FLOAT2, FLOAT64 = floats(1), floats(2), floats(3, "float64")
OPAQUE = np.full((*SIDES, 1), 255, np.uint8)

# The file's name and content, data.channels and data.depth, and the pixels that training must see, [H, W, C].
FILES: dict[str, tuple[str, bytes, int, str, Array]] = {
    "RGBA PNG": (".png", pillows(RGBA8, "PNG"), 4, "uint8", RGBA8),
    "RGB PNG is opaque": (".png", pillows(RGB8, "PNG"), 4, "uint8", np.concatenate([RGB8, OPAQUE], 2)),
    "gray PNG is opaque": (".png", pillows(GRAY8, "PNG"), 4, "uint8", np.concatenate([GRAY8] * 3 + [OPAQUE], 2)),
    "RGBA TIFF": (".tif", pillows(RGBA8, "TIFF"), 4, "uint8", RGBA8),
    "TIFF of four channels that are no alpha": (".tif", tiff(RGBA8, extrasamples=[0] * 3), 4, "uint8", RGBA8),
    "TIFF of five channels": (".tif", tiff(FIVE8, planarconfig="contig"), 5, "uint8", FIVE8),
    "TIFF of five planes": (".tiff", tiff(np.moveaxis(FIVE8, 2, 0), planarconfig="separate"), 5, "uint8", FIVE8),
    "TIFF of five pages": (".tif", tiff(np.moveaxis(FIVE8, 2, 0)), 5, "uint8", FIVE8),
    "turned TIFF": (
        ".tif", tiff(np.rot90(FIVE8), planarconfig="contig", extratags=[(274, "H", 1, 6, True)]), 5, "uint8", FIVE8,
    ),
    "big-endian BigTIFF of 16 bits": (
        ".tif", tiff(SEVEN16, planarconfig="contig", bigtiff=True, byteorder=">", compression="zlib"),
        7, "uint16", SEVEN16,
    ),
    "RGB TIFF of 16 bits": (".tif", tiff(RGB16, photometric="rgb"), 3, "uint16", RGB16),
    "gray PNG of 16 bits": (".png", pillows(GRAY16, "PNG"), 1, "uint16", GRAY16),
    "RGB PNG of 16 bits": (".png", png_of_16_bits(RGB16), 3, "uint16", RGB16),
    "RGBA PNG of 16 bits": (".png", png_of_16_bits(RGBA16), 4, "uint16", RGBA16),
    "gray PNG of 16 bits as RGB": (".png", png_of_16_bits(GRAY16), 3, "uint16", np.concatenate([GRAY16] * 3, 2)),
    "RGB PNG of 8 bits as 16": (".png", pillows(RGB8, "PNG"), 3, "uint16", RGB8.astype(np.uint16) * 257),
    "RGB PNG of 8 bits as fractions": (".png", pillows(RGB8, "PNG"), 3, "float32", RGB8.astype("f4") / np.float32(255)),
    "RGB PNG of 16 bits as fractions": (
        ".png", png_of_16_bits(RGB16), 3, "float32", RGB16.astype("f4") / np.float32(65535),
    ),
    "floating-point TIFF": (".tif", pillows(FLOAT1, "TIFF"), 1, "float32", FLOAT1),
    "floating-point TIFF of two channels": (".tif", tiff(FLOAT2, planarconfig="contig"), 2, "float32", FLOAT2),
    "npy without an axis of channels": (".npy", npy(GRAY16[:, :, 0]), 1, "uint16", GRAY16),
    "npy of 7 channels": (".npy", npy(SEVEN16), 7, "uint16", SEVEN16),
    "big-endian npy in Fortran's order": (".npy", npy(np.asfortranarray(SEVEN16.astype(">u2"))), 7, "uint16", SEVEN16),
    "npy of float64": (".npy", npy(FLOAT64), 3, "float32", FLOAT64.astype(np.float32)),
    "npy of float16": (".npy", npy(FLOAT2.astype("f2")), 2, "float32", FLOAT2.astype("f2").astype("f4")),
}  # fmt: skip


def folder_of(top: Path, name: str, content: bytes) -> Path:
    """Two classes of one file each."""
    for label in ("a", "b"):
        (top / label).mkdir(parents=True)
        (top / label / f"1{name}").write_bytes(content)
    return top


def section(top: Path, channels: int, depth: str, **others: Any) -> dict[str, Any]:
    keys = {"name": "image_folder", "root": str(top), "channels": channels, "depth": depth, "test_fraction": 0}
    return {**keys, **others}


def config_with(data: dict[str, Any]) -> Any:
    return load_config({"epochs": 1, "data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}})


@pytest.mark.parametrize("case", FILES)
def test_training_sees_the_pixels_of_a_file_at_any_depth_in_memory_cached_and_from_disk(
    case: str, tmp_path: Path
) -> None:
    name, content, channels, depth, expected = FILES[case]
    top = folder_of(tmp_path, name, content)
    for in_memory in (True, True, False):  # the second time from the cache
        split = load_source(config_with(section(top, channels, depth, in_memory=in_memory))).train
        assert isinstance(split, InMemory if in_memory else OnDisk)
        image = split.images[1] if isinstance(split, InMemory) else split.decode(split.files[1])
        assert image.numpy().dtype == expected.dtype
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


NAN = FLOAT2.copy()
NAN[3, 4, 1] = np.nan
INFINITE = np.where(FLOAT2 > 0, np.float32(np.inf), FLOAT2)
HUGE = npy(np.zeros((99999, 5), "u1")).replace(b"(99999, 5), } ", b"(99999,999), }")  # and cut off
PICKLED = BytesIO()
np.save(PICKLED, np.array([{"a": 1}]), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "channels", "depth", "message"),
    [
        (".tif", tiff(FIVE8, planarconfig="contig"), 7, "uint8", "1.tif: it has 5 channels, not 7"),
        (".png", pillows(RGB8, "PNG"), 5, "uint8", "1.png: it has 3 channels, not 5"),
        (".npy", npy(RGB8), 4, "uint8", "1.npy: it has 3 channels, not 4"),
        (".npy", npy(np.moveaxis(SEVEN16, 2, 0)), 7, "uint16", "must be [height, width, channels]"),
        (".npy", npy(SEVEN16), 7, "uint8", "its values are uint16, and data.depth is uint8; set data.depth: uint16"),
        (".npy", npy(FLOAT2), 2, "uint16", "set data.depth: float32"),
        (".npy", npy(FLOAT2.astype(np.int32)), 2, "float32", "are int32; save them as uint8, uint16 or float32"),
        (".npy", npy(NAN), 2, "float32", "1.npy: it has values that are NaN, infinite or beyond float32"),
        (".tif", tiff(INFINITE, planarconfig="contig"), 2, "float32", "1.tif: it has values that are NaN"),
        (".npy", npy(np.full((6, 5, 2), 1e300)), 2, "float32", "1.npy: it has values that are NaN"),
        (".npy", npy(FLOAT2)[:-1], 2, "float32", "1.npy: it is cut off"),
        (".npy", npy(np.zeros((2, 2, 2, 2), "f4")), 2, "float32", "an image is [height, width] or"),
        (".npy", PICKLED.getvalue(), 2, "float32", "its values are object, not numbers"),
        (".npy", npy(FLOAT2).replace(b"(6, 5, 2)", b"(6, 5, 1 << 60)"), 2, "float32", "1.npy: "),
        (".npy", npy(FLOAT2).replace(b"}", b" "), 2, "float32", "1.npy: its header is damaged"),
        (".npy", npy(FLOAT2)[:10] + b"-" * 118, 2, "float32", "1.npy: its header is damaged"),
        (".npy", HUGE, 2, "float32", "pixels are more than 67,108,864"),
        (".png", png_of_16_bits(LA16), 2, "uint16", "gray with alpha, which is not read; save it as RGBA"),
        (".tif", pillows(FLOAT1, "TIFF"), 1, "uint16", "set data.depth: float32"),
    ],
)  # fmt: skip
def test_a_file_with_other_pixels_than_wanted_is_one_line_with_its_path_or_left_out(
    name: str, content: bytes, channels: int, depth: str, message: str, tmp_path: Path
) -> None:
    top = folder_of(tmp_path, name, content)
    with pytest.raises(DataError) as raised:
        load_source(config_with(section(top, channels, depth, size=4)))
    lines = raised.value.lines
    assert any(str(top / "a" / "1") in line for line in lines)
    assert all(message in line for line in lines[1:])
    np.save(top / "a" / "good.npy", np.zeros((4, 4, channels), "uint8"))
    np.save(top / "b" / "good.npy", np.zeros((4, 4, channels), "uint8"))
    source = load_source(config_with(section(top, channels, depth, size=4, skip_bad=True)))
    assert len(source.train) == 2
    assert {Path(file).stem for file in source.unreadable} == {"1"}


def test_a_tiff_file_of_more_channels_names_the_keys_that_read_it(tmp_path: Path) -> None:
    (tmp_path / "1.tif").write_bytes(tiff(FIVE8, planarconfig="contig"))
    with pytest.raises(DataError, match=r"1\.tif: .* other channels or depths needs data.channels and data.depth"):
        Decode(3, None).array(str(tmp_path / "1.tif"))


def test_npy_files_beside_photographs_are_not_read_where_photographs_were_enough(tmp_path: Path) -> None:
    top = folder_of(tmp_path / "both", ".png", pillows(RGB8, "PNG"))
    np.save(top / "a" / "features.npy", np.zeros(512))
    assert len(load_source(config_with(section(top, 3, "uint8"))).train) == 2
    only = folder_of(tmp_path / "only", ".npy", npy(RGB8))
    with pytest.raises(DataError, match=r"holds no images.*\.npy files are read where data.channels or data.depth"):
        load_source(config_with(section(only, 3, "uint8")))


def test_a_table_and_a_shard_give_the_same_pixels_as_the_folder(tmp_path: Path) -> None:
    import tarfile

    top = folder_of(tmp_path, ".npy", npy(SEVEN16))
    (top / "table.csv").write_text("path,label\na/1.npy,a\nb/1,b\n")
    with tarfile.open(top / "shard.tar", "w") as tar:
        for label, name in (("0", "a"), ("1", "b")):
            for suffix, content in (("npy", npy(SEVEN16)), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    urls = ("shard.tar", f"packed/{pack(top, top / 'packed', 10**6).urls['urls']}")
    shards = [{"name": "shards", "urls": each} for each in urls]
    for others in ({"name": "image_list", "file": "table.csv"}, *shards):
        split = load_source(config_with(section(top, 7, "uint16") | others)).train
        assert isinstance(split, InMemory)
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), np.stack([SEVEN16, SEVEN16]))


@pytest.mark.parametrize(("pixels", "depth"), [(SEVEN16, "uint16"), (FLOAT2, "float32"), (FIVE8, "uint8")])
def test_every_channel_is_resized_as_pytorchs_antialiased_interpolation_does(pixels: Array, depth: Any) -> None:
    decode = Decode(pixels.shape[2], (3, 4), Resizing("stretch", depth=depth))
    planes = torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float64))[None]
    expected = functional.interpolate(planes, (3, 4), mode="bilinear", antialias=True)[0]
    tolerance = {"uint16": 0.51, "float32": 1e-3, "uint8": 1.01}[depth]
    actual = decode.of_samples(pixels)
    assert actual.dtype == pixels.dtype
    assert np.abs(actual.astype(np.float64) - expected.numpy()).max() <= tolerance


def test_16_bits_with_alpha_are_composed_over_white_and_gray_is_luma(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png_of_16_bits(RGBA16))
    color, alpha = RGBA16[:, :, :3].astype(float), RGBA16[:, :, 3:] / 65535
    over_white = color * alpha + 65535 * (1 - alpha)
    expected = {3: over_white, 1: over_white @ np.array([[0.299], [0.587], [0.114]])}
    for channels, pixels in expected.items():
        actual = Decode(channels, None, Resizing(depth="uint16")).array(str(tmp_path / "1.png"))
        assert np.abs(actual.transpose(1, 2, 0) - pixels).max() <= 0.5 + 1e-6


def test_mean_and_deviation_are_of_fractions_of_whole_numbers_and_of_floats_as_they_are() -> None:
    for pixels, scale in ((SEVEN16, 65535), (FLOAT2 * 1e-9, 1), (FIVE8, 255)):
        images = torch.from_numpy(np.moveaxis(pixels, 2, 0).copy())[None]
        mean, std = mean_and_std(InMemory(images, torch.zeros(1, dtype=torch.int64)))
        assert mean == pytest.approx((pixels.astype(np.float64) / scale).mean((0, 1)), rel=1e-9)
        assert std == pytest.approx((pixels.astype(np.float64) / scale).std((0, 1)), rel=1e-6)
    constant = torch.full((1, 1, 4, 4), 1e6 / 3)
    assert mean_and_std(InMemory(constant, torch.zeros(1, dtype=torch.int64)))[1] == (1.0,)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 5, "augment": ["rand_augment"]}, "rand_augment takes gray or color images of 8 bits"),
        ({"depth": "uint16", "augment": ["trivial_augment"]}, "data.channels is 3, data.depth uint16; leave it out"),
        ({"depth": "float32", "augment": ["auto_augment"]}, "auto_augment takes"),
        ({"channels": 4, "augment": ["random_horizontal_flip", "aug_mix"]}, "aug_mix takes"),
        ({"depth": "float32", "augment": ["color_jitter"]}, "color_jitter takes gray or color images of 8 or 16 bits"),
        ({"channels": 4, "augment": ["color_jitter"]}, "color_jitter takes"),
        ({"depth": "float32", "augment": [{"name": "random_erasing", "fill": "noise"}]}, "use fill: mean"),
        ({"depth": "uint16", "icc": "srgb"}, "icc: srgb converts photographs of 8 bits"),
        ({"channels": 0}, "channels must be"),
        ({"depth": "int8"}, "depth must be"),
    ],
)
def test_what_cannot_be_done_with_such_pixels_is_refused_when_the_config_is_read(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        config_with({"name": "image_folder", "root": "nowhere", **keys})
    assert message in str(raised.value)
    assert len(raised.value.lines) == 1


# -- color profiles ---------------------------------------------------------------------------------------------------

PRIMARIES = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
TO_SRGB = np.array([[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]])
GAMMA = 2.19921875


def adobe_rgb() -> bytes:
    """A profile by the ICC's specification (version 2): the primaries and the gamma of Adobe RGB (1998), for D50."""

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"wide gamut\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    tags = {b"desc": description, b"wtpt": xyz((0.9642, 1, 0.8249)), b"cprt": b"text\0\0\0\0none\0"}
    tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), PRIMARIES.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    rest = struct.pack(">I", len(tags)) + table + body
    illuminant = b"".join(struct.pack(">i", round(value * 65536)) for value in (0.9642, 1, 0.8249))
    head = struct.pack(">I4xI", 128 + len(rest), 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return head + bytes(28) + illuminant + bytes(48) + rest


def saved(file: Path, pixels: Array, profile: bytes | None) -> str:
    Image.fromarray(pixels).save(file, icc_profile=profile)
    return str(file)


def test_a_color_profile_is_converted_to_srgb_as_its_primaries_and_gamma_say(tmp_path: Path) -> None:
    pixels = RANDOM.integers(60, 200, (8, 8, 4), np.uint8)
    linear = (pixels[:, :, :3] / 255) ** GAMMA @ PRIMARIES.T @ TO_SRGB.T
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    converted = Resizing(icc="srgb")
    file = saved(tmp_path / "1.png", pixels, adobe_rgb())
    actual = Decode(4, None, converted).array(file).transpose(1, 2, 0)
    assert np.abs(actual[:, :, :3] - 255 * srgb).max() <= 2
    assert np.abs(pixels[:, :, :3] - 255 * srgb).max() > 10  # it is another color
    assert np.array_equal(actual[:, :, 3], pixels[:, :, 3])
    assert np.array_equal(Decode(4, None).array(file).transpose(1, 2, 0), pixels)


def test_without_a_profile_and_with_that_of_srgb_the_pixels_stay_as_they_are(tmp_path: Path) -> None:
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (None, srgb):
        for pixels in (RGB8, RGBA8, GRAY8[:, :, 0]):
            file = saved(tmp_path / "1.png", pixels, None if pixels.ndim == 2 else profile)
            for channels in (1, 3):
                plain, converted = (Decode(channels, None, Resizing(icc=icc)).array(file) for icc in ("ignore", "srgb"))
                assert np.array_equal(plain, converted)


@pytest.mark.parametrize(
    ("pixels", "profile", "message"),
    [
        (RGB8, b"no profile", "its color profile is damaged"),
        (GRAY8[:, :, 0], adobe_rgb(), "its color profile is for RGB pixels, and they are L"),
    ],
)
def test_a_profile_that_cannot_be_used_is_one_line_with_the_files_path(
    pixels: Array, profile: bytes, message: str, tmp_path: Path
) -> None:
    file = saved(tmp_path / "1.png", pixels, profile)
    with pytest.raises(SoftmaxceError, match=message) as raised:
        Decode(3, None, Resizing(icc="srgb")).array(file)
    assert str(raised.value).startswith(file)
