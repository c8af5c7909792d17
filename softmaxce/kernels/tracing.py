"""Whether PyTorch has to see every operation by itself, so that a kernel of our own would be in the way."""

from torch._C import _are_functorch_transforms_active as is_functorch_active
from torch._C import _len_torch_dispatch_stack as num_modes
from torch.autograd import forward_ad
from torch.compiler import is_compiling

__all__ = ["forward_ad", "is_compiling", "is_functorch_active", "is_watched", "num_modes"]  # to ask without a call


def is_watched() -> bool:
    """Whether it is tracing for torch.compile, transforming (torch.func, forward mode), or in a dispatch mode."""
    return is_compiling() or forward_ad._current_level >= 0 or is_functorch_active() or num_modes() > 0
