"""Methods of torch's optimizers without the wrappers that torch.compile needs.

torch wraps several methods of its optimizers for torch.compile. The first call of any of them imports torch._dynamo:
more than 800 modules, about a second, which a run without torch.compile never uses. The functions here call the wrapped
methods directly (`__wrapped__`): the same code on the same numbers. This is done for torch's own methods only; methods
of the user's optimizers are called as they are. The time of a step is the same either way.

Private names of torch, all in this file: the registries of global step hooks. Where a version of torch lacks them, or
has no wrappers, the methods are called as they are.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_module

_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
_PATCHING = threading.Lock()


@contextlib.contextmanager
def construction() -> Iterator[None]:
    """Optimizers constructed inside do not import torch._dynamo.

    Their constructor calls add_param_group, which is replaced in torch's base class meanwhile; one thread at a time.
    """
    with _PATCHING:
        wrapped = Optimizer.add_param_group
        Optimizer.add_param_group = inspect.unwrap(wrapped)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Optimizer.add_param_group = wrapped  # type: ignore[method-assign]


def stepper(optimizer: Optimizer) -> Callable[[], Any]:
    """The function that takes a step of the optimizer. Call it again after hooks were registered."""
    if _has_hooks(optimizer) or optimizer.defaults.get("differentiable") or not _is_torchs(type(optimizer).step):
        return optimizer.step
    step: Callable[[], Any] = torch.no_grad()(_method(optimizer, "step"))
    return step


def _has_hooks(instance: Optimizer) -> bool:
    """Whether the wrapper that `stepper` skips would call hooks; True if this torch has no such registries."""
    registries = [getattr(optimizer_module, name, None) for name in _GLOBAL_HOOKS]
    registries += [getattr(instance, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")]
    return any(registry is None or len(registry) > 0 for registry in registries)


def clearer(optimizer: Optimizer) -> Callable[[], Any]:
    """The function that drops the gradients of the optimizer's present parameters."""
    if not _is_torchs(type(optimizer).zero_grad):
        return optimizer.zero_grad
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    return clear


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """optimizer.state_dict()."""
    state: dict[str, Any] = _method(optimizer, "state_dict")()
    return state


def load_state_dict(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """optimizer.load_state_dict(state)."""
    _method(optimizer, "load_state_dict")(state)


def _method(optimizer: Optimizer, name: str) -> Callable[..., Any]:
    """A method without torch's wrappers; as it is, if it is not torch's."""
    method = getattr(type(optimizer), name)
    bound: Callable[..., Any] = (inspect.unwrap(method) if _is_torchs(method) else method).__get__(optimizer)
    return bound


def _is_torchs(method: Callable[..., Any]) -> bool:
    return method.__module__.partition(".")[0] == "torch"
