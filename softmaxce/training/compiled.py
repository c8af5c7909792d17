"""torch.compile of a model, with an answer where it does not work."""

import torch
from torch import nn

from ..errors import ConfigError, Problem, in_one_line, ran_out_of_memory


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Compile the model with torch.compile when it is first called; the module and its state dict stay the same.

    Raises: ConfigError if torch.compile does not work on this machine.
    """
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
        model.compile()
    except Exception as error:  # torch.compile may raise anything
        if ran_out_of_memory(error):
            raise
        message = f"torch.compile does not work here: {in_one_line(error)}"
        raise ConfigError([Problem("compile", message)]) from error
