"""`softmaxce data`: inspect a config's data set; pack a folder of images into shards."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.errors import ConfigError, Problem
from softmaxce.files import check_output, check_page, replace_file, writable

from .options import Force
from .startup import fast_imports

SHOWN = 32  # images in the picture and on the page
IN_TERMINAL = 8  # images drawn in a terminal

app = typer.Typer(no_args_is_help=True, help="Inspect a data set, or pack a folder of images into WebDataset shards.")


@app.callback()
def data() -> None:
    """Inspect a data set, or pack a folder of images into WebDataset shards."""


@app.command()
def inspect(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a recipe's name.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. data.root=photos.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also draw the first training images, augmented as in training."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all of it as one page.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=0, max=1000, metavar="N", help="Print N augmented training images; default: 8 on a terminal."),
    ] = None,
    force: Force = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count a config's images by class and split, and show what their files are; nothing is trained.

    Files that cannot be decoded and images that are there several times are listed.
    """
    requested = configs.load(config, [configs.parse_override(text) for text in set_ or []])
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError([Problem("--output", f"must be a name that ends in .png, got {output}")])
    if json and samples:
        raise ConfigError([Problem("--samples", "prints pictures; leave out --json")])
    with fast_imports():
        from softmaxce import inspection
        from softmaxce.report import console
        from softmaxce.report import inspection as report
        from softmaxce.report.html.common import write_file
        from softmaxce.report.html.figures import is_picture_file
    if output is not None:
        check_output(output, "--output", "picture", "samples.png", lambda: is_picture_file(output), force=force)
    if html is not None:
        check_page(html, "--html", force=force)
    source = inspection.read(requested)
    result = inspection.inspect(requested, source)
    printed = console.stdout()
    if samples is None:
        samples = IN_TERMINAL if printed.file.isatty() and not json else 0
    if json:
        streams.json_text(jsonlib.dumps(result.to_dict()))
    else:
        report.print_inspection(result, printed)
    count = max(samples, SHOWN if output is not None or html is not None else 0)
    if not count:
        return
    images, names = inspection.samples(requested, source, count)
    if samples:
        report.print_samples(images[:samples], names[:samples], printed)
    if output is not None:
        picture = report.contact_sheet(images[:SHOWN], names[:SHOWN])
        with writable(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(output, picture)
        streams.line(f"picture: {output}", err=True)
    if html is not None:
        write_file(report.page(result, images[:SHOWN], names[:SHOWN]), html)
        streams.line(f"page: {html}", err=True)


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="The images: FOLDER/CLASS/*, or FOLDER/train/CLASS/* and so on.")],
    shards: Annotated[Path, typer.Argument(help="The folder to write, which must be new or empty.")],
    shard_size: Annotated[int, typer.Option(min=1, metavar="MB", help="Megabytes of a shard, at most.")] = 256,
) -> None:
    """Pack a folder of images into shards: uncompressed tar files, which the data set shards and webdataset read.

    The files' bytes are copied. Prints what a config needs to train on the shards.
    """
    with fast_imports():
        from softmaxce.config import yamlfile
        from softmaxce.data import pack as packing

    packed = packing.pack(folder, shards, shard_size * 1_000_000)
    of = f"{packed.images:,} images of {packed.classes} classes"
    streams.line(f"{of} in {packed.shards} shard{'s' * (packed.shards > 1)}, {packed.size / 1e6:,.1f} MB", err=True)
    section = {"name": "shards", "root": str(packed.folder), **packed.urls}
    streams.lines(yamlfile.dump({"data": section}))
