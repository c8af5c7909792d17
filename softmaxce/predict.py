"""What a trained classifier says of image files: decoded in threads while the model works, in the order given."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from . import checkpoint
from .build import Evaluation, build_evaluation, config_of
from .data.folder import Decode, decoding_threads
from .data.paths import Unreadable
from .data.splits import InMemory
from .errors import DataError
from .evaluate import find_checkpoint
from .train import predict as outputs

AT_ONCE = 32  # files that a thread decodes in one go
AHEAD = 2  # batches that are decoded while another is in the model

Decoded = tuple[str, NDArray[np.uint8]] | Unreadable


@dataclass(frozen=True)
class Prediction:
    """A file's likeliest classes, the likeliest first, with their probabilities in [0, 1]."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def open_run(
    run: Path, device: str | None = None, batch_size: int | None = None, *, trust_code: bool = False
) -> Evaluation:
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
    run: Evaluation, files: Iterable[str | Unreadable], *, temperature: float = 1.0, top: int = 1
) -> Iterator[Prediction | Unreadable]:
    """Classify image files, each brought to the shape and the normalisation that the model was trained with.

    Args:
        run: what open_run gave.
        files: their paths; taken only as far ahead as is decoded. What is no image is handed back as Unreadable.
        temperature: what the logits are divided by; calibration.temperature_of(run) gives a run's own.
        top: how many classes to name, at most as many as there are.
    Raises: DataError if the model takes neither grey nor colour images.
    """
    channels, height, width = run.preprocessing.shape
    if channels not in (1, 3):
        raise DataError(f"this model takes images of {channels} channels; image files give 1 or 3")
    decode = Decode(channels, (height, width))
    waiting: deque[list[Future[list[Decoded]]]] = deque()
    batches = _grouped(files, run.config.data.eval_batch_size)
    first = next(batches, [])
    present = [file for file in first if isinstance(file, str) and Path(file).is_file()]
    pool = ThreadPoolExecutor(decoding_threads(present[0]) if present else 1)
    try:
        for batch in chain([first], batches):
            waiting.append([pool.submit(_decoded, decode, group) for group in _grouped(batch, AT_ONCE)])
            if len(waiting) > AHEAD:
                yield from _classified(run, waiting.popleft(), temperature, top)
        while waiting:
            yield from _classified(run, waiting.popleft(), temperature, top)
    finally:
        pool.shutdown(cancel_futures=True)


def _grouped(files: Iterable[str | Unreadable], size: int) -> Iterator[list[str | Unreadable]]:
    iterator = iter(files)
    while group := list(islice(iterator, size)):
        yield group


def _decoded(decode: Decode, files: list[str | Unreadable]) -> list[Decoded]:
    results: list[Decoded] = []
    for file in files:
        try:
            results.append(file if isinstance(file, Unreadable) else (file, decode.array(file)))
        except DataError as error:
            results.append(Unreadable(str(file), str(error).removeprefix(f"{file}: ")))
    return results


def _classified(
    run: Evaluation, groups: list[Future[list[Decoded]]], temperature: float, top: int
) -> Iterator[Prediction | Unreadable]:
    decoded = [item for group in groups for item in group.result()]
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
