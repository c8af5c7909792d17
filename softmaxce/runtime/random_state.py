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
    """Have torch use only algorithms that give the same bits each time, and raise where there is none; or not any more.

    On CUDA it has to come before the first matrix product: cuBLAS reads its workspace's size once.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # to say so imports torch's compiler, a second
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
    """Try a state on generators that nobody uses. Raises: ValueError, TypeError, RuntimeError or OverflowError."""
    version, words, gauss = state["python"]
    random.Random().setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.RandomState().set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    if not 0 <= position <= len(keys):  # NumPy takes any, and reads beyond the keys
        raise ValueError(f"position {position} of {len(keys)} keys")
    torch.Generator().set_state(state["torch"])


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo what was drawn since `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
