"""Prediction from image files relative to decoding them alone: files per second, in one process, after start-up."""

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
    """Results of `measure`.

    Attributes:
        rates: name -> files per second.
        to_decoding: ratio of prediction to decoding alone, computed within each round.
        files: number of files in each turn.
        model: the model's name.
    """

    rates: dict[str, Spread]
    to_decoding: Spread
    files: int
    model: str


def measure(run: TrainedModel, files: Sequence[str], rounds: int) -> Rates:
    """Time decoding and prediction, interleaved.

    Args:
        run: the opened model.
        files: paths; a file that is no image counts like one.
        rounds: turns of each, at least 2.
    """
    decode, ahead = (
        decode_to(run.preprocessing.shape, run.preprocessing.resizing),
        AHEAD * run.config.data.eval_batch_size,
    )

    def decoding() -> float:
        start = time.perf_counter()
        with PrefetchingDecoder(files, decode, ahead) as images:
            for _ in images:
                pass
        return time.perf_counter() - start

    def predicting() -> float:
        start = time.perf_counter()
        for _ in run.predict_files(files, top=1):
            pass
        return time.perf_counter() - start

    calls: dict[str, Callable[[], float]] = {DECODING: decoding, PREDICTING: predicting}
    for call in calls.values():  # fills the page cache and warms up the model
        call()
    seconds = turns(calls, rounds)
    rates = {name: [len(files) / duration for duration in durations] for name, durations in seconds.items()}
    return Rates(
        {name: Spread.of(values) for name, values in rates.items()},
        ratios(rates[PREDICTING], rates[DECODING]),
        len(files),
        run.config.model.name,
    )
