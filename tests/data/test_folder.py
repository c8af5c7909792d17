"""The user's own images: any mode, any size, upright; what cannot be used is named."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from torchvision.datasets import ImageFolder

from softmaxce.build import hold_out, load_source
from softmaxce.config.from_python import load_config
from softmaxce.data.batches import Batches
from softmaxce.data.decode import Decode
from softmaxce.data.folder import image_folder, read_folder
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.resizing import DEFAULT
from softmaxce.data.splits import InMemory, OnDisk
from softmaxce.errors import DataError
from softmaxce.runtime.processors import processors

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # [6, 8] grey


CPU = torch.device("cpu")


def put(file: Path, image: Image.Image | None = None) -> Path:
    """Save an image, a grey ramp without one, and make its folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(RAMP)).save(file)
    return file


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Two classes, ten images each, one folder; each image has a grey value of its own."""
    for label, name in enumerate(("circle", "square")):
        for index in range(10):
            put(tmp_path / "shapes" / name / f"{index}.png", Image.new("RGB", (8, 8), (10 * index, 100 * label, 7)))
    return tmp_path / "shapes"


def in_memory(split: object) -> InMemory:
    assert isinstance(split, InMemory)
    return split


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_train_and_test_folders_are_those_that_torchvisions_imagefolder_reads(shapes: Path, tmp_path: Path) -> None:
    top = tmp_path / "split"
    top.mkdir()
    (top / "train").symlink_to(shapes)
    (top / "test").symlink_to(shapes)
    source = image_folder(root=str(top))
    reference = ImageFolder(str(top / "train"))
    assert source.classes == tuple(reference.classes)
    train = in_memory(source.train)
    assert len(train) == len(reference)
    for image, label, (theirs, target) in zip(train.images, train.labels, reference, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(theirs))
        assert label == target


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_validation_split(name: str, shapes: Path, tmp_path: Path) -> None:
    top = tmp_path / "split"
    top.mkdir()
    (top / "train").symlink_to(shapes)
    (top / name).symlink_to(shapes)
    source = image_folder(root=str(top))
    assert source.validation is not None
    assert len(source.validation) == 20
    assert source.test is None


def test_a_validation_folder_has_precedence_over_a_validation_split_of_the_config(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).symlink_to(shapes)
    config = load_config("image_folder", {"data.root": str(tmp_path / "split"), "data.size": 8})
    source = hold_out(load_source(config), config)
    assert source.validation is not None
    assert (len(source.train), len(source.validation)) == (20, 20)
    assert capsys.readouterr().err == "the data set's own validation split is used, not data.validation: 0.15\n"


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [("Train", "Test", "Val"), ("training", "testing", "dev"), ("TRAINING_SET", "test-set", "Validation set")],
)
def test_splits_are_known_by_the_fields_names_in_any_case(
    train: str, test: str, validation: str, shapes: Path, tmp_path: Path
) -> None:
    for name in (train, test, validation):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).symlink_to(shapes)
    source = image_folder(root=str(tmp_path / "split"))
    assert source.classes == ("circle", "square")
    assert source.test is not None
    assert source.validation is not None


@pytest.mark.parametrize("layout", ["one folder", "splits", "flat"])
def test_a_single_class_is_refused_before_an_image_is_decoded_and_the_folders_below_it_are_named(
    layout: str, tmp_path: Path
) -> None:
    top = tmp_path / "root"
    single = top / ("train/Cats & Dogs" if layout == "splits" else "Cats & Dogs")
    for name in [""] if layout == "flat" else ["cat", "dog"]:
        (single / name).mkdir(parents=True)
        (single / name / "0.png").write_bytes(b"no image")  # decoding it is another error
    remedy = {
        "one folder": rf"if its sub-folders are the classes \(cat, dog\), set data.root to {single}",
        "splits": rf"if its sub-folders are the classes \(cat, dog\), move them up into {single.parent}",
        "flat": "each class needs a folder of its own",
    }[layout]
    with pytest.raises(
        DataError, match=rf"^{single.parent}: there is only one class, 'Cats & Dogs', .*needs at least two; {remedy}$"
    ):
        image_folder(root=str(top))


def test_folders_that_repeat_each_others_folders_are_refused_as_classes(shapes: Path, tmp_path: Path) -> None:
    for name in ("fold1", "fold2"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).symlink_to(shapes)
    with pytest.raises(DataError, match=r"\(fold1, fold2\) holds the same folders \(circle, square\), so they look"):
        image_folder(root=str(tmp_path / "split"))


def test_two_folders_of_one_split_are_refused(shapes: Path, tmp_path: Path) -> None:
    for name in ("train", "training"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).symlink_to(shapes)
    with pytest.raises(DataError, match="'train' and 'training' are both a train split; remove one"):
        image_folder(root=str(tmp_path / "split"))


def test_a_folder_beside_the_splits_is_left_out_with_a_warning(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "test", "holdout"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).symlink_to(shapes)
    image_folder(root=str(tmp_path / "split"))
    assert capsys.readouterr().err.endswith("beside the splits test, train, holdout is not read\n")


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
def test_folders_of_file_managers_hold_no_images(name: str, shapes: Path) -> None:
    for folder in (shapes, shapes / "circle", shapes / "circle" / "more"):
        put(folder / name / "0.png")
    put(shapes / "circle" / "more" / "0.png", Image.new("RGB", (8, 8)))
    source = image_folder(root=str(shapes), test_fraction=0)
    assert source.classes == ("circle", "square")
    assert len(source.train) == 21


def test_images_of_formats_that_are_not_read_are_counted_in_a_warning(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.PDF", "b.pdf", "c.cr2", "notes.txt", ".hidden.pdf"):
        (shapes / "circle" / name).write_bytes(b"x")
    assert len(image_folder(root=str(shapes), test_fraction=0).train) == 20
    assert capsys.readouterr().err == (
        f"warning: {shapes}: 3 image files of formats that are not read are left out (1 .cr2, 2 .pdf); "
        "convert them to PNG\n"
    )


def test_photographs_in_heif_are_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 48), (200, 100, 50))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pillow_heif.from_pillow(image).save(str(tmp_path / name / "photo.heic"))
    train = in_memory(image_folder(root=str(tmp_path), test_fraction=0).train)
    assert train.images.shape == (2, 3, 48, 64)
    assert (train.images.float().mean((0, 2, 3)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 4


def test_without_pillow_heif_its_photographs_are_counted_with_the_package_that_reads_them(shapes: Path) -> None:
    (shapes / "circle" / "photo.heic").write_bytes(b"x")
    code = (
        "import sys\nsys.modules['pillow_heif'] = None\n"
        "import importlib.util\nfind_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'pillow_heif' else find_spec(name, *a)\n"
        "from softmaxce.data.folder import image_folder\n"
        f"print(len(image_folder(root={str(shapes)!r}, test_fraction=0).train))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "20\n"
    assert "(1 .heic); pip install pillow-heif reads .heic and .heif; or convert them to PNG" in done.stderr


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.getuid() != 0, reason="becomes another user, which needs root")
@pytest.mark.parametrize("unreadable", ["circle", "circle/more"])
def test_a_folder_that_may_not_be_read_is_refused_and_not_left_out(unreadable: str, shapes: Path) -> None:
    put(shapes / "circle" / "more" / "0.png", Image.new("RGB", (8, 8)))
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder, "shapes")
        shutil.copytree(shapes, top)
        Path(folder).chmod(0o755)
        (top / unreadable).chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(DataError, match=f"{unreadable}: cannot be read: Permission denied"):
                image_folder(root=str(top), test_fraction=0, cache=False)
        finally:
            os.seteuid(0)


def test_one_folder_is_split_the_same_way_every_time_with_each_class_sharing(shapes: Path) -> None:
    first, again = (image_folder(test_fraction=0.3, root=str(shapes)) for _ in range(2))
    assert torch.bincount(in_memory(first.test).labels).tolist() == [3, 3]
    assert torch.bincount(in_memory(first.train).labels).tolist() == [7, 7]
    assert in_memory(first.test).images.equal(in_memory(again.test).images)
    both = torch.cat([in_memory(first.train).images, in_memory(first.test).images])
    assert len({image.numpy().tobytes() for image in both}) == 20


def test_images_on_disk_are_those_in_memory(shapes: Path) -> None:
    memory, disk = (image_folder(size=5, in_memory=keep, root=str(shapes)) for keep in (True, False))
    assert isinstance(disk.train, OnDisk)
    assert disk.train.shape == in_memory(memory.train).shape == (3, 5, 5)
    decoded = torch.stack([disk.train.decode(file) for file in disk.train.files])
    assert decoded.equal(in_memory(memory.train).images)
    assert disk.train.labels.equal(memory.train.labels)


def test_hidden_files_and_other_files_are_passed_over(shapes: Path) -> None:
    (shapes / "circle" / ".DS_Store").write_bytes(b"x")
    (shapes / "circle" / "notes.txt").write_text("x")
    put(shapes / ".thumbnails" / "1.png")
    assert len(image_folder(test_fraction=0.0, root=str(shapes)).train) == 20


def test_images_in_folders_below_the_class_belong_to_it(shapes: Path) -> None:
    put(shapes / "circle" / "more" / "deep" / "1.PNG", Image.new("RGB", (8, 8)))
    assert torch.bincount(image_folder(test_fraction=0.0, root=str(shapes)).train.labels).tolist() == [11, 10]


# -- modes, sizes, rotation -------------------------------------------------------------------------------------------


def decoded(file: Path, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
    return Decode(channels, size)(str(file))


def palette() -> Image.Image:
    return Image.fromarray(RAMP).convert("RGB").quantize(48)


def transparent(mode: str) -> Image.Image:
    """Black and fully transparent: what lies under it shows, which is white."""
    image = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    return image.convert(mode) if mode != "RGBA" else image


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("grey.png", Image.fromarray(RAMP), RAMP),
        ("palette.png", palette(), RAMP),
        ("bits.png", Image.fromarray(RAMP > 100), np.where(RAMP > 100, 255, 0)),
        ("sixteen.png", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
        ("thirty_two.tif", Image.fromarray(RAMP.astype(np.int32) * 257), RAMP),
        ("dark.tif", Image.fromarray(RAMP.astype(np.int32)), np.zeros_like(RAMP)),  # of 65535, however dark it is
        ("float.tif", Image.fromarray(RAMP.astype(np.float32) / 255), RAMP),
        ("lab.tif", Image.merge("LAB", (Image.fromarray(RAMP), *[Image.new("L", (8, 6), 128)] * 2)), None),
        ("alpha.png", transparent("RGBA"), np.full_like(RAMP, 255)),
        ("grey_alpha.png", transparent("LA"), np.full_like(RAMP, 255)),
        ("cmyk.tif", Image.fromarray(RAMP).convert("RGB").convert("CMYK"), RAMP),
        ("rgb.bmp", Image.fromarray(RAMP).convert("RGB"), RAMP),
        ("lossless.webp", Image.fromarray(RAMP).convert("RGB"), None),
        ("grey.jpg", Image.fromarray(RAMP), None),
    ],
)
def test_every_mode_becomes_the_same_grey_or_colour(
    name: str, image: Image.Image, expected: np.ndarray | None, tmp_path: Path
) -> None:
    file = put(tmp_path / name, image)
    tolerance = 2 if expected is not None else 12  # lossy formats
    expected_pixels = RAMP if expected is None else expected
    for channels in (1, 3):
        pixels = decoded(file, channels)
        assert pixels.shape == (channels, 6, 8)
        assert pixels.dtype == torch.uint8
        for plane in pixels:
            np.testing.assert_allclose(plane.numpy().astype(int), expected_pixels.astype(int), atol=tolerance)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.float32), "its values range from 0 to 235, not from 0 to 1; scale them"),
        (RAMP.astype(np.float32) - 1, "its values range from -1 to 234, not from 0 to 1"),
        (RAMP.astype(np.int32) * 65537, "its values range from 0 to 1.54012e.07, not from 0 to 65535"),
        (RAMP.astype(np.int32) - 1, "its values range from -1 to 234, not from 0 to 65535"),
    ],
)
def test_numbers_outside_their_modes_range_are_refused(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        decoded(put(tmp_path / "a.tif", Image.fromarray(pixels)))


def test_a_bitmap_whose_alpha_is_0_everywhere_is_opaque(tmp_path: Path) -> None:
    # BITMAPV4HEADER with masks for blue, green, red and alpha (Microsoft, "BITMAPV4HEADER structure").
    header = struct.pack("<IiiHHIIiiII4I", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header += bytes(108 - len(header))
    for alpha, red in ((0, 90), (255, 90)):
        content = header + bytes([10, 50, 90, alpha] * 2)
        file = tmp_path / f"{alpha}.bmp"
        file.write_bytes(struct.pack("<2sIHHI", b"BM", 14 + len(content), 0, 0, 14 + len(header)) + content)
        assert decoded(file)[:, 0, 0].tolist() == [red, 50, 10]


def test_a_png_with_megabytes_of_text_and_profile_is_read(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "x" * (3 << 20), zip=True)
    Image.fromarray(RAMP).save(tmp_path / "a.png", pnginfo=text, icc_profile=bytes(2 << 20))
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", 1)[0].numpy(), RAMP)


def test_a_transparent_palette_colour_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 6), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    file = tmp_path / "clear.gif"
    image.save(file, transparency=0)
    assert decoded(file).equal(torch.full((3, 6, 8), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(np.transpose(a), 2)),
        (8, np.rot90),
    ],
)
def test_a_photograph_is_turned_upright_by_its_exif_tag(
    orientation: int, upright: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation  # EXIF 2.3, "Orientation"
    file = tmp_path / "photo.png"
    Image.fromarray(RAMP).save(file, exif=exif)
    np.testing.assert_array_equal(decoded(file, 1)[0].numpy(), upright(RAMP))


def test_a_size_keeps_the_proportions_and_cuts_the_centre_out(tmp_path: Path) -> None:
    stripes = np.zeros((20, 60), np.uint8)
    stripes[:, 20:40] = 255  # the middle third of a wide picture
    file = put(tmp_path / "wide.png", Image.fromarray(stripes))
    assert (decoded(file, 1, (10, 10))[:, :, 1:-1] == 255).all()  # the border columns blend


def test_images_of_several_sizes_need_a_size_and_the_message_says_so(shapes: Path) -> None:
    odd = put(shapes / "square" / "odd.png", Image.new("RGB", (9, 4)))
    with pytest.raises(DataError, match=f"{odd} is 4x9 pixels and .* is 8x8; set data.size"):
        image_folder(root=str(shapes))
    assert in_memory(image_folder(size=16, root=str(shapes)).train).shape == (3, 16, 16)
    assert in_memory(image_folder(size=[6, 12], root=str(shapes)).train).shape == (3, 6, 12)


@pytest.mark.parametrize("case", ["a test folder", "a damaged first file"])
def test_a_mismatch_of_sizes_names_two_different_things(case: str, shapes: Path, tmp_path: Path) -> None:
    if case == "a test folder":
        top = tmp_path / "split"
        shutil.copytree(shapes, top / "train")
        for name in ("circle", "square"):
            put(top / "test" / name / "0.png", Image.new("RGB", (9, 4)))
        first, second = top / "test" / "circle" / "0.png", "each of the training images"
    else:
        top = shapes
        (shapes / "circle" / "0.png").write_bytes(b"no image")
        put(shapes / "square" / "9.png", Image.new("RGB", (9, 4)))
        first, second = shapes / "square" / "9.png", str(shapes / "circle" / "1.png")
    with pytest.raises(DataError, match=rf"^{first} is 4x9 pixels and {second} is 8x8; set data.size"):
        image_folder(root=str(top), skip_bad=True)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_images_decoded_in_training_are_not_resized_without_a_size(skip_bad: bool, shapes: Path) -> None:
    def decode_all() -> None:
        split = image_folder(root=str(shapes), in_memory=False, skip_bad=skip_bad, test_fraction=0).train
        assert isinstance(split, OnDisk)
        for file in split.files:
            split.decode(file)

    odd = put(shapes / "square" / "odd.png", Image.new("RGB", (9, 4)))
    with pytest.raises(DataError, match=f"{odd} is 4x9 pixels and .* is 8x8; set data.size"):
        decode_all()


@pytest.mark.skipif(processors() < 2, reason="needs two processors")
def test_a_few_large_images_are_decoded_in_several_threads_to_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(16):
        image = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
        put(tmp_path / "photos" / "ab"[index % 2] / f"{index:02}.png", image)
    names = set()
    threading.setprofile(lambda frame, event, _: names.add(threading.current_thread().name))
    try:
        train = in_memory(image_folder(size=64, test_fraction=0.0, cache=False, root=str(tmp_path / "photos")).train)
    finally:
        threading.setprofile(None)
    assert len({name for name in names if name.startswith("ThreadPoolExecutor")}) >= 2
    assert train.files is not None
    for image, file in zip(train.images, train.files, strict=True):
        assert image.equal(decoded(Path(file), 3, (64, 64)))


# -- what cannot be used ----------------------------------------------------------------------------------------------


def test_every_file_that_cannot_be_decoded_is_named_with_its_reason(shapes: Path) -> None:
    whole = (shapes / "circle" / "0.png").read_bytes()
    (shapes / "circle" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (shapes / "circle" / "empty.jpg").write_bytes(b"")
    (shapes / "square" / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError) as caught:
        image_folder(root=str(shapes))
    message = str(caught.value)
    assert "3 of 23 files cannot be decoded" in message
    assert "data.skip_bad: true" in message
    for name in ("circle/cut.png", "circle/empty.jpg", "square/page.jpg"):
        assert str(shapes / name) in message


def test_skip_bad_leaves_them_out_and_says_so(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shapes / "circle" / "a.png").write_bytes(b"nothing")
    source = image_folder(test_fraction=0.0, skip_bad=True, root=str(shapes))
    assert torch.bincount(source.train.labels).tolist() == [10, 10]
    warning = capsys.readouterr()
    assert "1 of 21 files cannot be decoded and are left out" in warning.err
    assert "circle/a.png" in warning.err
    assert warning.out == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_bad_holds_for_images_on_disk(shapes: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    (shapes / "circle" / "a.png").write_bytes(b"nothing")
    source = image_folder(test_fraction=0.0, skip_bad=True, in_memory=False, workers=workers, root=str(shapes))
    assert len(source.train) == 20
    assert "1 of 21 files cannot be decoded and are left out" in capsys.readouterr().err
    batches = Batches(source.train, Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3), batch_size=8, device=CPU)
    assert sum(len(labels) for _, labels in batches.epoch(1)) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_a_worker_cannot_decode_is_named_in_one_line(shapes: Path, workers: int) -> None:
    (shapes / "circle" / "a.png").write_bytes(b"nothing")
    source = image_folder(test_fraction=0.0, in_memory=False, workers=workers, root=str(shapes))
    batches = Batches(source.train, Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3), batch_size=8, device=CPU)
    with pytest.raises(DataError) as caught:
        list(batches.epoch(1))
    assert str(caught.value) == f"{shapes}/circle/a.png: it is not an image"


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo"])
def test_an_empty_file_is_said_to_be_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: the file is empty$"):
        decoded(tmp_path / name)


@pytest.mark.parametrize("name", ["page.eps", "page.jpg"])
def test_a_postscript_page_is_not_run_whatever_it_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"  # an interpreter that leaves a file behind, where Pillow would look for one
    for command in ("gs", "gswin32c", "gswin64c"):
        script = tmp_path / "bin" / command
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ntouch {trace}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=rf"{name}: (.eps files are not read; convert it to PNG|it is not an image)"):
        decoded(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp", "pages.tif"])
def test_the_first_picture_of_an_animation_is_taken(name: str, tmp_path: Path) -> None:
    first, other = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    options = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=[other], **options)
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert decoded(tmp_path / name)[:, 0, 0].tolist() == [255, 0, 0]


def test_nan_becomes_black_and_infinite_numbers_are_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "nan.tif", Image.fromarray(np.array([[np.nan, 1], [0.5, 0]], np.float32)))
    assert decoded(file, 1)[0].tolist() == [[0, 255], [128, 0]]
    file = put(tmp_path / "infinite.tif", Image.fromarray(np.array([[0, np.inf]], np.float32)))
    with pytest.raises(DataError, match="its values range from 0 to inf, not from 0 to 1"):
        decoded(file)


def test_an_image_called_by_another_formats_name_is_read_as_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    Image.fromarray(RAMP).save(file, format="PNG")
    np.testing.assert_array_equal(decoded(file, 1)[0].numpy(), RAMP)


@pytest.mark.parametrize("name", [b"cat\x1b[2J", b"cat\xff", b"c\nat"])
def test_a_class_folder_whose_name_is_no_text_is_named(name: bytes, shapes: Path) -> None:
    os.mkdir(os.path.join(os.fsencode(shapes), name))  # noqa: PTH102, PTH118 - a name that is no text
    with pytest.raises(DataError, match="rename the folder") as caught:
        image_folder(root=str(shapes))
    assert str(caught.value).isprintable()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "bomb.png", Image.new("1", (12000, 9000)))
    with pytest.raises(DataError, match=r"bomb.png: .*pixels"):
        decoded(file)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda top: None, "there is no folder"),
        (lambda top: top.mkdir(), "holds no class folders"),
        (lambda top: ((top / "cat").mkdir(parents=True), (top / "dog").mkdir()), "cat: holds no images"),
        (lambda top: [put(top / name / "1.png") for name in ("train/a", "train/b", "test/dog")], "the classes dog"),
        (lambda top: [put(top / name / "1.png").write_bytes(b"") for name in "ab"], "can be decoded"),
    ],
)
def test_a_folder_that_cannot_be_used_says_what_is_wrong(
    prepare: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "top")
    with pytest.raises(DataError, match=message):
        image_folder(root=str(tmp_path / "top"))


# -- another folder for a trained model -------------------------------------------------------------------------------


def test_another_folder_is_read_as_the_model_was_trained(shapes: Path) -> None:
    split = in_memory(read_folder(str(shapes), ("circle", "other", "square"), (1, 4, 4), DEFAULT))
    assert split.shape == (1, 4, 4)
    assert split.labels.unique().tolist() == [0, 2]


def test_another_folder_with_unknown_classes_is_refused(shapes: Path) -> None:
    with pytest.raises(DataError, match="the classes square are not among those trained on"):
        read_folder(str(shapes), ("circle", "triangle"), (3, 8, 8), DEFAULT)
