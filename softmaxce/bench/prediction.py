"""Predictions from image files against decoding these alone: files a second, in one process, after start-up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..data.prefetch import PrefetchingDecoder, decode_to
from ..inference.predict import AHEAD
from ..inference.trained_model import TrainedModel
from .clock import Spread, ratios, turns

DECODING, PREDICTING = "decoding alone", "softmaxce predict"


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        rates: name -> files a second.
        to_decoding: softmaxce predict's ratio to decoding alone, taken in each round.
        files: how many files each turn takes.
        model: its name.
    """

    rates: dict[str, Spread]
    to_decoding: Spread
    files: int
    model: str


def measure(run: TrainedModel, files: Sequence[str], rounds: int) -> Rates:
    """Decode the files and classify them, in turns.

    Args:
        run: from TrainedModel.open.
        files: their paths; what is no image counts like an image.
        rounds: how often each has its turn, at least 2.
    Raises: DataError if the model takes neither grey nor colour images.
    """
    decode, ahead = decode_to(run.preprocessing.shape), AHEAD * run.config.data.eval_batch_size

    def decoding() -> float:
        began = time.perf_counter()
        with PrefetchingDecoder(files, decode, ahead) as images:
            for _ in images:
                pass
        return time.perf_counter() - began

    def predicting() -> float:
        began = time.perf_counter()
        for _ in run.predict_files(files, top=1):
            pass
        return time.perf_counter() - began

    calls: dict[str, Callable[[], float]] = {DECODING: decoding, PREDICTING: predicting}
    for call in calls.values():  # the files are in the page cache, and the model has run
        call()
    seconds = turns(calls, rounds)
    rates = {name: [len(files) / taken for taken in found] for name, found in seconds.items()}
    return Rates(
        {name: Spread.of(found) for name, found in rates.items()},
        ratios(rates[PREDICTING], rates[DECODING]),
        len(files),
        run.config.model.name,
    )
