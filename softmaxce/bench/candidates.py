"""The losses that are compared: PyTorch's, eager and compiled, ours, and the textbook's."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import in_one_line, ran_out_of_memory
from ..losses.cross_entropy import cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [N, C], class ids [N]) -> the mean loss

TORCH, OURS, COMPILED, NAIVE = "torch", "ours", "compiled", "naive"
MEANINGS = {
    TORCH: "torch.nn.functional.cross_entropy",
    OURS: "softmaxce.cross_entropy",
    COMPILED: "torch.compile(torch.nn.functional.cross_entropy, dynamic=False)",
    NAIVE: "softmax, then log, then the target's entry",
}


def naive(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax, its log, the target's entry: correct on paper, infinite where a probability is rounded to 0."""
    log_probabilities = logits.softmax(1).log()  # [N, C]
    return -log_probabilities.gather(1, targets.unsqueeze(1)).mean()


def compiled() -> Loss:
    """PyTorch's loss, compiled afresh for the shape of its first call."""
    torch.compiler.reset()
    return torch.compile(functional.cross_entropy, dynamic=False)


def candidates(with_compiled: bool = True) -> dict[str, Loss]:
    """The losses by name; PyTorch's is first, the baseline."""
    losses: dict[str, Loss] = {TORCH: functional.cross_entropy, OURS: cross_entropy}
    if with_compiled:
        losses[COMPILED] = compiled()
    return {**losses, NAIVE: naive}


def why_not_compiled(device: torch.device) -> str | None:
    """The reason why torch.compile does not work on this machine, in one line; None if it does."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns if CUDA is missing
    logits = torch.zeros(2, 3, device=device, requires_grad=True)
    try:
        compiled()(logits, torch.zeros(2, dtype=torch.long, device=device)).backward()
    except Exception as error:  # no compiler, no Triton, a Python too new: each raises its own
        if ran_out_of_memory(error):
            raise
        return in_one_line(error)
    return None
