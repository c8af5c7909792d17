"""`softmaxce data`: pack a folder of images into shards."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams

from .startup import fast_imports

app = typer.Typer(no_args_is_help=True, help="Pack a folder of images into WebDataset shards.")


@app.callback()
def data() -> None:
    """Pack a folder of images into WebDataset shards."""


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
