"""The fuzzing targets. Each makes valid files once, and returns a function that corrupts one of them and reads it."""

import io
import json
import os
import platform
import random
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from softmaxce.config import reader, recipes, yamlfile
from softmaxce.errors import ConfigError, SoftmaxceError

from ..helpers import SMALL
from .mutate import TOKENS, corrupt_bytes, corrupt_data

Round = Callable[[random.Random], "str | None"]  # returns what is wrong with the result, if anything

platform.platform()  # its first call starts a process, which the watchdog would report


def refusals(error: SoftmaxceError) -> list[str]:
    """The lines of a refusal."""
    return list(map(str, error.problems)) if isinstance(error, ConfigError) else [str(error)]


def names_file(line: str, folder: Path) -> bool:
    """Whether a refusal says which file it is about, or which option."""
    return str(folder) in line or line.startswith("--set ")


def configs(folder: Path) -> Round:
    """Config files with corrupted bytes or data, and valid ones with a corrupted override."""
    texts = [SMALL, *(file.read_text() for file in recipes.recipes().values())]
    texts.append(
        SMALL + "loss: {name: 'trap.py:touch', weight: [1, 2]}\nearly_stopping: {patience: 3}\nclip_grad_norm: 1\n"
    )
    file = folder / "f.yaml"

    def attempt(rng: random.Random) -> str | None:
        text = rng.choice(texts)
        overrides = []
        match rng.randrange(4):
            case 0 | 1:
                file.write_bytes(corrupt_bytes(text.encode(), rng, TOKENS))
            case 2:
                data = corrupt_data(yaml.safe_load(text), rng)
                dumped = yaml.dump(
                    data, allow_unicode=rng.random() < 0.5, default_flow_style=rng.choice((None, True, False))
                )
                file.write_bytes(dumped.encode(errors="surrogatepass"))
            case 3:
                file.write_text(text)
                key = rng.choice(
                    ["data", "data.augment.0", "data.augment.9.p", "optimizer.lr", "model.x.y", "loss", "a.b.c", ""]
                )
                value = corrupt_bytes(rng.choice([b"1", b"[1, 2]", b"{name: x}", b"sgd"]), rng, TOKENS)
                option = corrupt_bytes(key.encode(), rng).decode(errors="replace") if rng.random() < 0.3 else key
                overrides = [reader.parse_override(f"{option}={value.decode(errors='replace')}")]
        read = reader.load(str(file), overrides)
        again = yamlfile.parse(yamlfile.dump(read.to_dict()), str(file))
        if repr(reader.check(again, recipe=read.recipe).to_dict()) != repr(read.to_dict()):
            return f"written and read again, the config differs: {read.to_dict()}"
        return None

    return attempt


# -- checkpoints and run folders --------------------------------------------------------------------------------------


def _damage_tensors(tensors: dict[str, Any], rng: random.Random) -> None:
    """Remove, add, exchange or replace one tensor."""
    import torch

    key = rng.choice(list(tensors))
    match rng.randrange(5):
        case 0:
            del tensors[key]
        case 1:
            tensors[rng.choice(["x", "training/x", "../x", ""])] = torch.zeros(2)
        case 2:
            tensors[key] = tensors[key].to(rng.choice([torch.float64, torch.int64, torch.uint8, torch.bfloat16]))
        case 3:
            tensors[key] = torch.zeros(rng.choice([(), (0,), (3, 3), (1, 2, 3, 4)]), dtype=tensors[key].dtype)
        case 4:
            other = rng.choice(list(tensors))
            tensors[key], tensors[other] = tensors[other], tensors[key]


def checkpoints(folder: Path) -> Round:
    """A trained run's folder: bytes of any file are corrupted, or header and tensors of a valid safetensors file.

    The run is listed, then evaluated or resumed.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from softmaxce.build import build_run
    from softmaxce.inference.evaluate import evaluate
    from softmaxce.runs import checkpoint
    from softmaxce.runs import folder as runfolder
    from softmaxce.runs.header import find_checkpoint
    from softmaxce.runs.listing import read_run
    from softmaxce.training.loop import fit

    (folder / "small.yaml").write_text(SMALL)
    run = build_run(reader.load(str(folder / "small.yaml")))
    intact = runfolder.create("small", folder / "intact")
    for epoch in fit(run):
        checkpoint.save(run, intact, best=epoch.best)
        runfolder.append_metrics(intact, epoch.to_dict())
    runfolder.write_config(intact, run.config.to_dict())
    runfolder.write_record(intact, {"status": "completed", "classes": list(run.classes)})
    files = {file.name: file.read_bytes() for file in intact.iterdir()}
    models = [name for name in files if name.endswith(".safetensors")]
    damaged = folder / "damaged"

    def damage_content(name: str, rng: random.Random) -> None:
        """Corrupt the header or a tensor of a checkpoint; the file itself stays valid safetensors."""
        file = damaged / name
        tensors = load_file(file)
        with safe_open(file, framework="pt") as stream:
            header = json.loads(stream.metadata()["softmaxce"].partition(" ")[2])
        if rng.random() < 0.6:
            header = corrupt_data(header, rng)
        else:
            _damage_tensors(tensors, rng)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(tensors, file, _metadata(tensors, header))

    def attempt(rng: random.Random) -> None:
        shutil.rmtree(damaged, ignore_errors=True)
        damaged.mkdir()
        for name, content in files.items():
            (damaged / name).write_bytes(content)
        name = rng.choice([*files, *models, *models])
        if name in models and rng.random() < 0.6:
            damage_content(name, rng)
        else:
            (damaged / name).write_bytes(corrupt_bytes(files[name], rng, TOKENS))
        read_run(damaged)
        config = reader.load(str(damaged / "config.yaml"))
        if rng.random() < 0.5:
            newest, _ = checkpoint.newest(damaged)
            assert newest is not None
            resumed = build_run(config if name == "config.yaml" else run.config)
            checkpoint.restore(resumed, newest)
            for parameter in resumed.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            resumed.optimizer.step()  # what was restored can be used
            checkpoint.save(resumed, damaged, best=False)
            return
        evaluate(damaged / name if name in models else find_checkpoint(damaged), "test", None, "cpu")

    return attempt


def _metadata(tensors: Any, header: object) -> dict[str, str]:
    """The metadata that softmaxce writes, with the right checksum, so that the reader checks the content too."""
    from softmaxce.runs import checkpoint

    text = json.dumps(header)
    return {"softmaxce": f"{checkpoint._checksum(tensors, text)} {text}"}


# -- images and data files --------------------------------------------------------------------------------------------


def images(folder: Path) -> Round:
    """Pictures of every format and mode, with any format's suffix, and the files of MNIST."""
    import numpy as np
    import torch

    from softmaxce.data import datasets
    from softmaxce.data.decode import Decode

    pictures = _pictures()
    raw = _idx_files(np.random.default_rng(0))

    def picture(rng: random.Random) -> None:
        suffix, content = rng.choice(pictures)
        damaged = corrupt_bytes(content, rng)
        if suffix == "png" and rng.random() < 0.7:
            damaged = _with_valid_checksums(damaged)
        file = folder / f"picture.{suffix if rng.random() < 0.8 else rng.choice(pictures)[0]}"
        file.write_bytes(damaged)
        try:
            decoded = Decode(rng.choice((1, 3)), rng.choice((None, (8, 8), (1, 40))))(str(file))
        finally:
            file.unlink()
        assert decoded.dtype == torch.uint8
        assert decoded.ndim == 3

    def data_set(rng: random.Random) -> None:
        root = folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        (root / "MNIST" / "raw").mkdir(parents=True)
        for name, content in raw.items():
            (root / "MNIST" / "raw" / name).write_bytes(corrupt_bytes(content, rng) if rng.random() < 0.4 else content)
        if rng.random() < 0.2:
            (root / "MNIST" / "processed").mkdir()
            for name in ("training.pt", "test.pt"):
                stream = io.BytesIO()
                torch.save((torch.zeros(4, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), stream)
                (root / "MNIST" / "processed" / name).write_bytes(corrupt_bytes(stream.getvalue(), rng))
        source = datasets.mnist(root=str(root), download=False)
        for split in (source.train, source.test):
            assert split is not None
            split.take(torch.arange(len(split)))

    def attempt(rng: random.Random) -> None:
        (picture if rng.random() < 0.8 else data_set)(rng)

    return attempt


def _pictures() -> list[tuple[str, bytes]]:
    """(suffix, file) of pictures in every supported format and some unsupported ones, in all their modes."""
    import numpy as np
    from PIL import Image, features

    ramp = Image.fromarray(np.arange(24 * 18, dtype=np.uint16).reshape(18, 24).astype(np.uint8))
    color = Image.merge("RGB", (ramp, ramp.rotate(180), ramp))
    alpha = color.convert("RGBA")
    alpha.putalpha(ramp)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9286] = b"comment"
    sixteen = Image.fromarray(np.arange(24 * 18, dtype=np.uint16).reshape(18, 24) * 100)
    floats = Image.fromarray(np.linspace(0, 1e5, 24 * 18, dtype=np.float32).reshape(18, 24))
    files: list[tuple[str, bytes]] = []

    def add(suffix: str, image: Image.Image, kind: str | None = None, **options: object) -> None:
        stream = io.BytesIO()
        image.save(stream, kind or suffix.upper(), **options)  # type: ignore[arg-type]
        files.append((suffix, stream.getvalue()))

    for image in (ramp, color, alpha, ramp.convert("1"), color.quantize(16), alpha.convert("LA"), sixteen):
        add("png", image)
    add("png", color, exif=exif, dpi=(72, 72))
    add("png", color, save_all=True, append_images=[ramp.convert("RGB")])
    for image in (ramp, color, color.convert("CMYK")):
        add("jpg", image, "JPEG", exif=exif)
    add("jpg", color, "JPEG", progressive=True, optimize=True)
    add("mpo", color, save_all=True, append_images=[color.rotate(90)])
    add("gif", color.quantize(16), save_all=True, append_images=[ramp.convert("RGB").quantize(4)], loop=0)
    add("gif", alpha.quantize(8), transparency=0)
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        add("tif", color, "TIFF", **({"compression": compression} if compression else {}))
    for image in (sixteen, floats, alpha, color.convert("CMYK"), color.convert("LAB"), ramp.convert("I")):
        add("tif", image, "TIFF")
    add("tif", ramp.convert("1"), "TIFF", compression="group4")
    add("tif", color.copy(), "TIFF", save_all=True, append_images=[color.rotate(90)])
    for image in (ramp, color, ramp.convert("1"), color.quantize(16)):
        add("bmp", image)
        add("pcx", image)
    for suffix, kind in (
        ("tga", "TGA"),
        ("sgi", "SGI"),
        ("ppm", "PPM"),
        ("ico", "ICO"),
        ("eps", "EPS"),
        ("im", "IM"),
        ("dds", "DDS"),
    ):
        add(suffix, color, kind)
    add("tga", alpha, "TGA", compression="tga_rle")
    add("pgm", sixteen, "PPM")
    if features.check("webp"):
        add("webp", alpha, exif=exif)
        add("webp", color, lossless=True)
        add("webp", color, save_all=True, append_images=[color.rotate(180)])
    if features.check("jpg_2000"):
        add("jp2", color, "JPEG2000")
    if features.check("avif"):
        add("avif", alpha)
    return files


def _with_valid_checksums(png: bytes) -> bytes:
    """A PNG with its chunks' checksums recomputed, so that the decoder reads their content."""
    result, at = bytearray(png), 8
    while at + 12 <= len(result):
        (length,) = struct.unpack_from(">I", result, at)
        end = at + 8 + length
        if end + 4 > len(result):
            break
        struct.pack_into(">I", result, end, zlib.crc32(result[at + 4 : end]))
        at = end + 4
    return bytes(result)


def _idx_files(generator: "object") -> dict[str, bytes]:
    files = {}
    for part, count in (("train", 20), ("t10k", 8)):
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, count, 28, 28) + bytes(range(256)) * 64
        files[f"{part}-images-idx3-ubyte"] = files[f"{part}-images-idx3-ubyte"][: 16 + count * 784]
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, count) + bytes(i % 10 for i in range(count))
    return files


def trap(folder: Path) -> Round:
    """Failures that the watchdog must detect, one per seed."""

    def attempt(rng: random.Random) -> None:
        (folder / "round").write_bytes((folder / "round").read_bytes() + b"x" if (folder / "round").exists() else b"x")
        match len((folder / "round").read_bytes()) - 1:
            case 1:
                raise ZeroDivisionError
            case 2:
                os.system("true")
            case 3:
                raise SoftmaxceError("something is wrong")
            case 4:
                os.kill(os.getpid(), signal.SIGKILL)
            case 5:
                time.sleep(60)

    return attempt


TARGETS: dict[str, Callable[[Path], Round]] = {
    "configs": configs,
    "checkpoints": checkpoints,
    "images": images,
    "trap": trap,
}
