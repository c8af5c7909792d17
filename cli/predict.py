"""`softmaxce predict`: the classes of image files, by a trained classifier."""

import contextlib
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmaxce import streams
from softmaxce.errors import USAGE, ConfigError, Problem

from .options import Device, Temperature, TrustCode, run_and_paths
from .startup import fast_imports

if TYPE_CHECKING:
    from softmaxce.data.paths import Unreadable
    from softmaxce.data.prefetch import PrefetchingDecoder
    from softmaxce.inference.exported_model import ExportedModel
    from softmaxce.inference.predict import Prediction
    from softmaxce.inference.trained_model import TrainedModel

PIPED = 512  # files that are read from a pipe before the first result is printed
BYTES = 64 << 20  # of pixels that are decoded before the model is loaded


def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] PATH",
            help="A run folder, a checkpoint or an exported model, by default the newest run under runs/; then image "
            "files, folders, quoted globs; - reads paths from stdin, one a line.",
        ),
    ],
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Paths on stdin end with NUL, not with a newline (find -print0).")
    ] = False,
    top: Annotated[int, typer.Option("--top", "-k", min=1, metavar="K", help="Name the K most probable classes.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Also write the features before the last layer, with paths and predictions, for numpy.load.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per batch; default: the run's data.eval_batch_size.")
    ] = None,
    device: Device = None,
    temperature: Temperature = None,
    trust_code: TrustCode = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Exit 0 even if some images could not be read.")] = False,
) -> None:
    """Predict the classes of image files, with probabilities, by the run's own preprocessing.

    Files that cannot be read are named on stderr and counted, and the exit status is 2.
    """
    if json and csv:
        raise ConfigError([Problem("--json and --csv", "cannot be combined")])
    from softmaxce.data.paths import Unreadable, image_files
    from softmaxce.data.prefetch import PrefetchingDecoder, decode_to
    from softmaxce.inference.opening import classes_and_images, model_type

    run, paths = _run_and_paths(words, null=null)
    if embeddings is not None:
        _check_embeddings(embeddings, run)
    _, shape, resizing = classes_and_images(run)
    ahead = PIPED if "-" in paths else max(PIPED, BYTES // math.prod(shape))
    bad = images = 0
    decode = decode_to(shape, resizing)
    files = image_files(paths, sys.stdin, null=null, npy=not decode.is_plain)
    with PrefetchingDecoder(files, decode, ahead) as decoded:  # decodes while torch is imported
        with fast_imports():
            opened = model_type(run)
            from softmaxce.report.predictions import writer

        model = opened.open(
            run, device=device or "auto", batch_size=batch_size, temperature=temperature, trust_code=trust_code
        )
        out = writer("json" if json else "csv" if csv else "table", model.classes, top)
        with _predictions(model, decoded, top, embeddings) as results:
            for result in results:
                if isinstance(result, Unreadable):
                    bad += 1
                    streams.line(f"cannot be read: {result}", err=True)
                else:
                    images += 1
                    out.write(result)
    if bad:
        sys.stdout.flush()
        streams.line(f"{bad:,} of {images + bad:,} could not be read", err=True)
    if not bad and not images:
        raise ConfigError([Problem("-", "there are no paths on stdin")])
    if (bad and not skip_bad) or not images:
        raise typer.Exit(USAGE)


def _run_and_paths(words: list[str], *, null: bool) -> tuple[Path, list[str]]:
    """RUN and PATH of the command line; stdin is prepared to be read if it is among them. Raises: ConfigError."""
    run, paths = run_and_paths(words, "predict")
    if not paths:
        example = f"softmaxce predict {shlex.quote(str(run))} a.png"
        raise ConfigError([Problem("PATH", f"is required: image files, folders or globs, e.g. {example}")])
    if null and "-" not in paths:
        raise ConfigError([Problem("--null", "is about a list of paths on stdin; add - to read it")])
    if "-" in paths:
        if sys.stdin is None:
            raise ConfigError([Problem("-", "reads paths from stdin, which is closed")])
        if hasattr(sys.stdin, "reconfigure"):
            # File names need not be UTF-8, and may hold carriage returns.
            sys.stdin.reconfigure(errors="surrogateescape", newline="\n" if null else None)
    return run, paths


def _check_embeddings(file: Path, run: Path) -> None:
    """Raises: ConfigError, RunError."""
    from softmaxce.inference.opening import is_exported
    from softmaxce.report.embeddings import check_embeddings

    if is_exported(run):
        message = f"{run} gives probabilities alone, not the features before them; name the run it was exported from"
        raise ConfigError([Problem("--embeddings", message)])
    check_embeddings(file)


@contextlib.contextmanager
def _predictions(
    model: "TrainedModel | ExportedModel", decoded: "PrefetchingDecoder", top: int, embeddings: Path | None
) -> "Iterator[Iterator[Prediction | Unreadable]]":
    """The predictions; they are written to a file of embeddings too, which is there at the end of the block."""
    if embeddings is None:
        yield model.predict_decoded(decoded, top)
        return
    from softmaxce.inference.embeddings import embedding_predictor
    from softmaxce.inference.trained_model import TrainedModel
    from softmaxce.report.embeddings import EmbeddingsFile

    assert isinstance(model, TrainedModel)
    with EmbeddingsFile(embeddings, model.classes) as file:
        predictor = embedding_predictor(model, file.add_features)
        yield file.noted(predictor.of_decoded(decoded, top))
