"""A loss or a gradient that is not finite: noticed before the weights take it up, and traced to its layer."""

import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..runtime.device import autocast

if TYPE_CHECKING:
    from ..kernels.all_finite import FiniteCheck

IN_FLIGHT = 2  # steps that a GPU may be ahead of the check


class NonFiniteError(TrainingError):
    """A loss or a gradient is not finite.

    Attributes:
        epoch: counted from 1.
        batch: the batch in it, counted from 1.
        learning_rate: of the step that was not taken.
        layer: the first thing that was not finite, in words.
        images: [B, C, H, W], the batch as the model saw it.
        targets: its labels [B] or probabilities [B, K].
    """

    def __init__(
        self, what: str, epoch: int, batch: int, learning_rate: float, layer: str, images: Tensor, targets: Tensor
    ) -> None:
        super().__init__(
            f"{what} in epoch {epoch}, batch {batch} (learning rate {learning_rate:.3g}); "
            f"the first value that is not finite: {layer}"
        )
        self.epoch, self.batch, self.learning_rate, self.layer = epoch, batch, learning_rate, layer
        self.images, self.targets = images, targets


@dataclass(frozen=True)
class _PendingCheck:
    """A step that a GPU has been given, and where the answer will lie."""

    bad: Tensor
    ready: torch.cuda.Event | None
    index: int
    learning_rate: float
    images: Tensor
    targets: Tensor


class NonFiniteMonitor:
    """Watches an epoch's losses and gradients.

    On the CPU each is looked at before its step. On a GPU that would wait for it at every step; there the answer is
    fetched `IN_FLIGHT` steps later, and torch's fused optimizers are told on the device to leave that step out.

    Args:
        model, loss, optimizer, scaler, precision, device: the run's.
        epoch: its number, for the message.
        deferred: whether the answers are fetched later, as on a GPU.
        skipping: whether the run goes on with the weights it has; each step is then looked at, and the running
            statistics that a bad batch has spoiled are put back.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        precision: str,
        device: torch.device,
        epoch: int,
        *,
        deferred: bool,
        skipping: bool,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.precision, self.device, self.epoch = precision, device, epoch
        self.scaled = scaler.is_enabled()  # the scaler looks at the gradients itself, and leaves such steps out
        self.deferred = deferred
        self.gated = device.type == "cuda" and not self.scaled and bool(optimizer.defaults.get("fused"))
        self.parameters: list[Tensor] = list(model.parameters())
        self.watch = None if self.deferred or self.scaled else _watch(self.parameters)
        self.bad: Tensor | None = None
        self.taken: deque[_PendingCheck] = deque()
        self.buffers = [b for b in model.buffers() if b.is_floating_point()] if skipping else []
        self.kept = [buffer.clone() for buffer in self.buffers]
        self.follows = deferred or skipping  # whether there is anything to do after a step

    def check_loss(self, loss: Tensor, index: int, images: Tensor, targets: Tensor) -> None:
        """Look at a batch's loss, before its backward pass. Raises: NonFiniteError."""
        if self.deferred:
            self.note(is_bad(loss))
        elif not math.isfinite(value := loss.item()):
            self._fail(f"the training loss is {value}", index, self._rate(), images, targets)

    def note(self, bad: Tensor) -> None:
        """Note whether a batch's loss is bad [], to be looked at later."""
        self.bad = bad if self.bad is None else self.bad | bad

    def check_gradients(self, norm: Tensor | None, index: int, images: Tensor, targets: Tensor) -> None:
        """Look at a step's gradients, before it is taken; `norm` is theirs, if it is known. Raises: NonFiniteError."""
        if self.deferred:
            assert self.bad is not None
            if norm is not None and not self.scaled:
                self.bad = self.bad | ~torch.isfinite(norm)
            if self.gated:  # what GradScaler tells a fused optimizer
                self.optimizer.grad_scale = None  # type: ignore[attr-defined]
                self.optimizer.found_inf = self.bad.float()  # type: ignore[attr-defined]
            self._take(self.bad, index, images, targets)
            self.bad = None
            return
        if self.scaled:
            return
        if norm is None and self.watch is not None:
            finite = self.watch.all_finite()
        else:
            gradients = [gradient for p in self.parameters if (gradient := p.grad) is not None]
            # A norm is not finite where a gradient is not; that of finite gradients may lie beyond float32.
            norm = nn.utils.get_total_norm(gradients) if norm is None else norm
            finite = math.isfinite(norm.item()) or all(torch.isfinite(g).all().item() for g in gradients)
        if not finite:
            self._fail("a gradient is not finite", index, self._rate(), images, targets)

    def after_step(self) -> None:
        """The step is taken; look at those long enough ago. Raises: NonFiniteError."""
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            kept.copy_(buffer)
        while len(self.taken) > IN_FLIGHT:
            self._look()

    def settle(self) -> None:
        """Look at every step that was taken. Raises: NonFiniteError."""
        while self.taken:
            self._look()

    def _take(self, bad: Tensor, index: int, images: Tensor, targets: Tensor) -> None:
        ready = None
        answer = torch.empty((), dtype=torch.bool, pin_memory=bad.is_cuda)
        answer.copy_(bad, non_blocking=True)
        if bad.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        self.taken.append(_PendingCheck(answer, ready, index, self._rate(), images, targets))

    def _look(self) -> None:
        step = self.taken.popleft()
        if step.ready is not None:
            step.ready.synchronize()
        if step.bad.item():
            self._fail("the training loss is not finite", step.index, step.learning_rate, step.images, step.targets)

    def _fail(self, what: str, index: int, learning_rate: float, images: Tensor, targets: Tensor) -> None:
        self.taken.clear()
        layer = first_nonfinite(self.model, self.loss, self.device, self.precision, images, targets)
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(kept)
        raise NonFiniteError(what, self.epoch, index + 1, learning_rate, layer, images, targets)

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def _watch(parameters: list[Tensor]) -> "FiniteCheck | None":
    """What looks at gradients fast, where it can: on the CPU, if model or loss has brought Numba in."""
    usual = all(type(p) is nn.Parameter and p.is_cpu and p.dtype is torch.float32 for p in parameters)
    if not usual or "numba" not in sys.modules:
        return None
    from ..kernels.all_finite import FiniteCheck

    return FiniteCheck(parameters)


def is_bad(loss: Tensor) -> Tensor:
    """Whether a loss [] is not finite [], on its device."""
    return ~torch.isfinite(loss.detach())


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Have a compiled model run layer by layer, where there can be one."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def first_nonfinite(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    precision: str,
    images: Tensor,
    targets: Tensor,
) -> str:
    """The first value on a batch's way that is not finite, in words: `what comes out of layer '4' (Linear)`.

    The forward pass is made again; the model, its running statistics and the random numbers stay as they are.
    """
    if not torch.isfinite(images).all():
        return "the images of the batch"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight '{name}', from an earlier step"
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if not list(module.children()):

            def look(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and not torch.isfinite(output).all():
                    found.append(f"what comes out of layer '{name}' ({type(module).__name__})")

            hooks.append(module.register_forward_hook(look))
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        devices = [device] if device.type == "cuda" else []
        with _uncompiled(), torch.no_grad(), torch.random.fork_rng(devices), autocast(device, precision):
            logits = model(images)
            value = loss(logits, targets).mean()
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for buffer, kept in zip(model.buffers(), before, strict=True):
                buffer.copy_(kept)
    if found:
        return found[0]
    if not torch.isfinite(logits).all():
        return "the logits"
    if not torch.isfinite(value):
        return "the loss itself: the logits are finite"
    # backwards, the last layer comes first
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of '{name}'; the loss is finite"
    return "nothing, when the batch was tried again"
