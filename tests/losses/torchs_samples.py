"""PyTorch's own test material, which it ships: the samples of its operations and of its modules."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

# Importing these makes it an error, in the whole process, to set a backend's flag, which `deterministic:` does.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

__all__ = ["module_db", "op_db"]
