"""Seeds, deterministic algorithms, and the state of every random generator for a checkpoint."""

import os
import random
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
