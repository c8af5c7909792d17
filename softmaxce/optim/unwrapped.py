"""torch's optimizers without torch.compile's machinery, which a program that compiles nothing has no use for.

Several of their methods are wrapped for the sake of torch.compile: the first call of any of them imports torch._dynamo,
more than 800 modules and a second, and every step walks through the wrappers. Here the methods are called as they are
beneath (functools' `__wrapped__`): the same code on the same numbers. It is done for torch's own methods only; a user's
may be wrapped for reasons of their own.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


@contextlib.contextmanager
def construction() -> Iterator[None]:
    """Optimizers made inside do not import torch._dynamo."""
    wrapped = Optimizer.add_param_group
    Optimizer.add_param_group = inspect.unwrap(wrapped)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = wrapped  # type: ignore[method-assign]


def stepper(optimizer: Optimizer) -> Callable[[], Any]:
    """What takes a step of the optimizer. Make it anew if hooks are registered."""
    hooked = any((*_global_optimizer_pre_hooks, *_global_optimizer_post_hooks))
    hooked = hooked or any(getattr(optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post"))
    if hooked or optimizer.defaults.get("differentiable") or not _is_torchs(type(optimizer).step):
        return optimizer.step
    step: Callable[[], Any] = torch.no_grad()(_method(optimizer, "step"))
    return step


def clearer(optimizer: Optimizer) -> Callable[[], Any]:
    """What drops the gradients of the parameters that the optimizer has now."""
    if not _is_torchs(type(optimizer).zero_grad):
        return optimizer.zero_grad
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    return clear


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict()."""
    found: dict[str, Any] = _method(optimizer, "state_dict")()
    return found


def load_state_dict(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The optimizer's load_state_dict(state)."""
    _method(optimizer, "load_state_dict")(state)


def _method(optimizer: Optimizer, name: str) -> Callable[..., Any]:
    """A method as it is beneath torch's wrappers; as it is, if it is not torch's."""
    method = getattr(type(optimizer), name)
    bound: Callable[..., Any] = (inspect.unwrap(method) if _is_torchs(method) else method).__get__(optimizer)
    return bound


def _is_torchs(method: Callable[..., Any]) -> bool:
    return method.__module__.partition(".")[0] == "torch"
