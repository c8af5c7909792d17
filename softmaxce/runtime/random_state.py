"""Seeds, deterministic algorithms, and the state of every random generator for a checkpoint."""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch (every device), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def set_deterministic(on: bool) -> None:
    """Switch torch's deterministic algorithms on or off; on, an operation without one raises an error.

    On CUDA, call it before the first matrix product: cuBLAS reads its workspace size once.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # the call imports torch._dynamo, about a second
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def own_random_numbers(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside depend on the key alone; afterwards all generators are as before.

    So each of several processes can draw numbers of its own, and as many as it likes, while the generators stay the
    same in all of them.

    Args:
        key: what the numbers are for: the run's seed, epoch, batch, rank.
        device: of the tensors drawn inside.
    """
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=6).digest())
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would look for every GPU too
    np.random.seed(seed % 2**32)
    random.seed(seed)
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    if on_gpu is not None:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)


def random_state() -> dict[str, Any]:
    """The state of every global random-number generator, as tensors, numbers and lists."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def check_random_state(state: dict[str, Any]) -> None:
    """Load a state into temporary generators. Raises: ValueError, TypeError, RuntimeError or OverflowError."""
    version, words, gauss = state["python"]
    random.Random().setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.RandomState().set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    if not 0 <= position <= len(keys):  # NumPy accepts any, and reads beyond the keys
        raise ValueError(f"position {position} of {len(keys)} keys")
    torch.Generator().set_state(state["torch"])


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every global generator to a state from `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
