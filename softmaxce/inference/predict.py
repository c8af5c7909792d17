"""What a trained classifier says of image files: decoded in threads while the model works, in the order given."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..data.paths import Unreadable
from ..data.prefetch import Decoded, PrefetchingDecoder, decode_to
from ..data.splits import InMemory
from ..runs import checkpoint
from ..runs.header import find_checkpoint
from ..training.evaluation import predict as outputs
from .trained_model import TrainedModel, build_evaluation, config_of

AHEAD = 2  # batches that are decoded while another is in the model


@dataclass(frozen=True)
class Prediction:
    """A file's likeliest classes, the likeliest first, with their probabilities in [0, 1]."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def open_run(
    run: Path, device: str | None = None, batch_size: int | None = None, *, trust_code: bool = False
) -> TrainedModel:
    """A run's model, ready for `predict`.

    Args:
        run: a run folder or a checkpoint.
        device: where to compute; None for auto.
        batch_size: images at once; None for the run's data.eval_batch_size.
        trust_code: run the user's code that the checkpoint names.
    Raises: RunError if there is no checkpoint, ConfigError if its parts cannot be built.
    """
    changes: dict[str, object] = {"device": device or "auto"}
    if batch_size is not None:
        changes["data.eval_batch_size"] = batch_size
    loaded = checkpoint.load(find_checkpoint(run))
    return build_evaluation(loaded, config_of(loaded, changes, trust_code=trust_code))


def predict(
    run: TrainedModel, files: Iterable[str | Unreadable], *, temperature: float = 1.0, top: int = 1
) -> Iterator[Prediction | Unreadable]:
    """Classify image files, each brought to the shape and the normalisation that the model was trained with.

    Args:
        run: what open_run gave.
        files: their paths; taken only as far ahead as is decoded. What is no image is handed back as Unreadable.
        temperature: what the logits are divided by; calibration.temperature_of(run) gives a run's own.
        top: how many classes to name, at most as many as there are.
    Raises: DataError if the model takes neither grey nor colour images.
    """
    decode = decode_to(run.preprocessing.shape)
    with PrefetchingDecoder(files, decode, AHEAD * run.config.data.eval_batch_size) as images:
        yield from classify(run, images, temperature=temperature, top=top)


def classify(
    run: TrainedModel, images: PrefetchingDecoder, *, temperature: float = 1.0, top: int = 1
) -> Iterator[Prediction | Unreadable]:
    """As `predict`, of files whose decoding, to the model's shape, has begun already."""
    decoded = iter(images)
    while batch := list(islice(decoded, run.config.data.eval_batch_size)):
        yield from _classified(run, batch, temperature, top)


def _classified(
    run: TrainedModel, decoded: list[Decoded], temperature: float, top: int
) -> Iterator[Prediction | Unreadable]:
    arrays = [item[1] for item in decoded if not isinstance(item, Unreadable)]
    rows: Iterator[tuple[list[float], list[int]]] = iter(())
    if arrays:
        images = torch.from_numpy(np.stack(arrays))
        split = InMemory(images, torch.zeros(len(images), dtype=torch.int64))  # nobody knows the labels
        logits, _ = outputs(run.model, run.batches(split), run.precision)
        probabilities, ids = torch.softmax(logits.cpu().double() / temperature, 1).topk(min(top, len(run.classes)), 1)
        rows = zip(probabilities.tolist(), ids.tolist(), strict=True)
    for item in decoded:
        if isinstance(item, Unreadable):
            yield item
        else:
            row, classes = next(rows)
            yield Prediction(item[0], tuple(run.classes[i] for i in classes), tuple(row))
