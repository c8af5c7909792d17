"""Decodes image files in threads ahead of their use, in order. Needs no torch."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from types import TracebackType

from ..errors import DataError
from .arrays import Pixels
from .decode import Decode, decoding_threads
from .paths import Unreadable
from .resizing import Resizing

MAX_GROUP = 32  # files per task of a thread

Decoded = tuple[str, Pixels] | Unreadable  # a file and its pixels [C, H, W]


def decode_to(shape: tuple[int, int, int], resizing: Resizing) -> Decode:
    """How files are decoded to the shape (C, H, W) of a model's images, by its resizing."""
    channels, height, width = shape
    return Decode(channels, (height, width), resizing)


class PrefetchingDecoder:
    """Decodes image files in threads, starting when this is made; iterating yields them in order.

    Args:
        files: their paths, consumed only as far ahead as is decoded. What cannot be decoded is yielded as Unreadable.
        decode: how to decode one.
        images: how many may be decoded, or queued for decoding, ahead of the iteration.
    """

    def __init__(self, files: Iterable[str | Unreadable], decode: Decode, images: int) -> None:
        group_size = max(1, min(MAX_GROUP, images // 8))
        groups = _grouped(files, group_size)
        first = next(groups, [])
        present = [file for file in first if isinstance(file, str) and Path(file).is_file()]
        self._decode = decode
        self._groups = chain([first], groups)
        self._max_queued = max(1, images // group_size)
        self._queue: deque[Future[list[Decoded]]] = deque()
        self._pool = ThreadPoolExecutor(decoding_threads(present[0]) if present else 1)
        self._closed = False
        try:
            self._fill()
        except BaseException:  # a folder that may not be read, ctrl-C
            self.close()
            raise

    def __enter__(self) -> "PrefetchingDecoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Decoded]:
        while self._queue:
            group = self._queue.popleft()
            self._fill()
            yield from group.result()

    def close(self) -> None:
        """Stop the threads, each after the file that it is decoding."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        for group in islice(self._groups, self._max_queued - len(self._queue)):
            self._queue.append(self._pool.submit(self._decoded, group))

    def _decoded(self, files: list[str | Unreadable]) -> list[Decoded]:
        results: list[Decoded] = []
        for file in files:
            if self._closed:
                break
            try:
                results.append(file if isinstance(file, Unreadable) else (file, self._decode.array(file)))
            except DataError as error:
                results.append(Unreadable(str(file), str(error).removeprefix(f"{file}: ")))
        return results


def _grouped(files: Iterable[str | Unreadable], size: int) -> Iterator[list[str | Unreadable]]:
    iterator = iter(files)
    while group := list(islice(iterator, size)):
        yield group
