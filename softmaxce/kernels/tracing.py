"""Whether PyTorch has to see every operation itself, so that a fused kernel must not replace them.

This is the only file that uses private names of torch for that question. Where a version of torch lacks one of them the
answer is yes: the reference implementation is then used, with the same results, only slower.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.compiler import is_compiling


def _unknown() -> bool:
    return True


is_functorch_active: Any = getattr(torch._C, "_are_functorch_transforms_active", _unknown)
num_dispatch_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", _unknown)
forward_mode: Any = forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=0)


def is_watched() -> bool:
    """Whether torch.compile is tracing, torch.func or forward mode is transforming, or a dispatch mode is on."""
    return is_compiling() or forward_mode._current_level >= 0 or is_functorch_active() or num_dispatch_modes() > 0
