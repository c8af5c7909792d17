"""Losses and gradients that are not finite: detected before the weights take them up, and traced to a layer."""

import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..losses.interface import unchanged
from ..runtime.device import autocast
from .run import Run

if TYPE_CHECKING:
    from ..kernels.all_finite import FiniteCheck

IMAGES = "the images of the batch"
IN_FLIGHT = 2  # steps on a GPU whose check has not been read yet


class NonFiniteError(TrainingError):
    """A loss or a gradient is not finite.

    Attributes:
        what: is not finite.
        epoch: counted from 1.
        batch: the batch in it, counted from 1.
        learning_rate: of the step that was left out.
        layer: the first value that was not finite, in words.
        images: [B, C, H, W], the batch as the model saw it.
        targets: its labels [B] or probabilities [B, K].
    """

    def __init__(
        self, what: str, epoch: int, batch: int, learning_rate: float, layer: str, images: Tensor, targets: Tensor
    ) -> None:
        rate = "" if layer.startswith(IMAGES) else f" (learning rate {learning_rate:.3g})"
        super().__init__(f"{what} in epoch {epoch}, batch {batch}{rate}; the first value that is not finite: {layer}")
        self.what = what
        self.epoch, self.batch, self.learning_rate, self.layer = epoch, batch, learning_rate, layer
        self.images, self.targets = images, targets


@dataclass(frozen=True)
class _PendingCheck:
    """A step launched on a GPU, and where the answer of its check will be once `ready` has happened."""

    nonfinite: Tensor  # [] bool, on the host
    ready: torch.cuda.Event | None
    batch: tuple[int, Tensor, Tensor]
    learning_rate: float


class NonFiniteMonitor:
    """Checks an epoch's losses and gradients before the weights take them up.

    On the CPU each is checked before its update. On a GPU that would wait for the device at every step; there the
    answer is read `IN_FLIGHT` steps later, and torch's fused optimizers skip that step by a flag on the device.
    With `on_nonfinite: skip` every step is checked at once on a GPU too, and the running statistics that a skipped
    batch has changed are put back.

    Args:
        run: the run.
        epoch: its number, for the message.

    Attributes:
        batch: the batch in progress: its number in the epoch, counted from 0, images and targets.
    """

    batch: tuple[int, Tensor, Tensor] | None

    def __init__(self, run: Run, epoch: int) -> None:
        self.run, self.epoch = run, epoch
        self.scaled = run.scaler.is_enabled()  # the scaler checks the gradients itself, and leaves such steps out
        skipping = run.config.on_nonfinite == "skip"
        on_gpu = run.device.type == "cuda" and run.group.is_single  # several processes look at each step's flags
        self.deferred = run.static_step is not None or (on_gpu and not skipping)
        fused = bool(run.optimizer.defaults.get("fused"))
        self.gated = self.deferred and run.device.type == "cuda" and not self.scaled and fused
        self.parameters: list[Tensor] = list(run.parameters)
        self.finite_check = None if self.deferred or self.scaled else _finite_check(self.parameters)
        self.nonfinite: Tensor | None = None  # [] bool, on the device: a loss of the step in progress is not finite
        self.pending: deque[_PendingCheck] = deque()
        self.changing = (run.model, run.loss) if skipping else ()
        self.good_buffers = [buffer.clone() for buffer in self._buffers()]
        self.batch = None

    def check_loss(self, loss: Tensor) -> None:
        """Check a batch's loss [], before its backward pass. Raises: NonFiniteError."""
        if self.deferred:
            self.note(is_nonfinite(loss))
        elif not math.isfinite(value := loss.item()):
            self.fail(f"the training loss is {value}")

    def note(self, nonfinite: Tensor) -> None:
        """Keep whether a batch's loss is not finite, [] bool on the device, to be read later."""
        self.nonfinite = nonfinite if self.nonfinite is None else self.nonfinite | nonfinite

    def check_gradients(self, norm: Tensor | None) -> None:
        """Check a step's gradients, before the update; `norm` is their norm [], if known. Raises: NonFiniteError."""
        if self.deferred:
            self._defer(norm)
            return
        if self.scaled:
            return
        if norm is None and self.finite_check is not None:
            finite = self.finite_check.all_finite()
        else:
            gradients = [gradient for p in self.parameters if (gradient := p.grad) is not None]
            # A norm is not finite where a gradient is not; that of finite gradients may lie beyond float32.
            norm = nn.utils.get_total_norm(gradients) if norm is None else norm
            finite = math.isfinite(norm.item()) or all(torch.isfinite(g).all().item() for g in gradients)
        if not finite:
            self.fail("a gradient is not finite")

    def after_update(self) -> None:
        """Keep the running statistics of a good step; read the answers of steps long enough ago. Raises: as finish."""
        self.batch = None  # so that its memory is free for the next
        for buffer, good in zip(self._buffers(), self.good_buffers, strict=True):
            good.copy_(buffer)
        while len(self.pending) > IN_FLIGHT:
            self._read_oldest()

    def finish(self) -> None:
        """Read the answers of all steps. Raises: NonFiniteError."""
        while self.pending:
            self._read_oldest()

    def _defer(self, norm: Tensor | None) -> None:
        assert self.nonfinite is not None
        assert self.batch is not None
        nonfinite = self.nonfinite
        if norm is not None and not self.scaled:
            nonfinite = nonfinite | ~torch.isfinite(norm)
        if self.gated:  # as GradScaler does with a fused optimizer
            self.run.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.run.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        ready = None
        answer = torch.empty((), dtype=torch.bool, pin_memory=nonfinite.is_cuda)
        answer.copy_(nonfinite, non_blocking=True)
        if nonfinite.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        self.pending.append(_PendingCheck(answer, ready, self.batch, self._learning_rate()))
        self.nonfinite = None

    def _read_oldest(self) -> None:
        step = self.pending.popleft()
        if step.ready is not None:
            step.ready.synchronize()
        if step.nonfinite.item():
            self.batch = step.batch
            self.fail("the training loss is not finite", step.learning_rate)

    def fail(self, what: str, learning_rate: float | None = None) -> NoReturn:
        """Report the batch in progress. Raises: NonFiniteError, with the first value that is not finite."""
        assert self.batch is not None
        self.pending.clear()
        index, images, targets = self.batch
        run = self.run
        layer = "not looked for, as a process alone cannot repeat its forward pass (sync_batchnorm)"
        if not run.config.sync_batchnorm or run.group.is_single:
            layer = first_nonfinite(run.model, run.loss, run.device, run.precision, images, targets)
        if layer == IMAGES and (names := [each.name for each in run.config.augment]):
            layer += f"; look at data.augment: {', '.join(names)}"
        for buffer, good in zip(self._buffers(), self.good_buffers, strict=True):
            buffer.copy_(good)
        rate = self._learning_rate() if learning_rate is None else learning_rate
        raise NonFiniteError(what, self.epoch, index + 1, rate, layer, images, targets)

    def _buffers(self) -> list[Tensor]:
        """The running statistics that a skipped batch must not change; looked up again, as a loss may replace its."""
        modules = [module for module in self.changing if isinstance(module, nn.Module)]
        return [buffer.detach() for module in modules for buffer in module.buffers() if buffer.is_floating_point()]

    def _learning_rate(self) -> float:
        return float(self.run.optimizer.param_groups[0]["lr"])


def _finite_check(parameters: list[Tensor]) -> "FiniteCheck | None":
    """The compiled check of gradients on the CPU; None where it cannot be used."""
    if not all(type(p) is nn.Parameter and p.is_cpu and p.dtype is torch.float32 for p in parameters):
        return None
    try:
        from ..kernels.all_finite import FiniteCheck
    except ImportError:  # no Numba for this Python or this processor; PyTorch's operations give the same answer
        return None
    return FiniteCheck(parameters)


def is_nonfinite(loss: Tensor) -> Tensor:
    """Whether a loss [] is not finite, [] bool on its device."""
    return ~torch.isfinite(loss.detach())


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Runs a compiled model layer by layer, so that its hooks are called."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def first_nonfinite(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    precision: str,
    images: Tensor,
    targets: Tensor,
) -> str:
    """The first value of a batch's forward and backward pass that is not finite, in words: `the output of layer '4'`.

    The forward pass is repeated; the model, its running statistics and the random numbers stay as they are.
    """
    if not torch.isfinite(images).all():
        return IMAGES
    parameters = [(f"weight '{name}'", parameter) for name, parameter in model.named_parameters()]
    if isinstance(loss, nn.Module):
        parameters += [(f"parameter '{name}' of the loss", parameter) for name, parameter in loss.named_parameters()]
    for name, parameter in parameters:
        if not torch.isfinite(parameter).all():
            return f"the {name}, since an earlier step"
    layers, logits, value = _repeat_forward(model, loss, device, precision, images, targets)
    if layers:
        return layers[0]
    if not torch.isfinite(logits).all():
        return "the logits"
    if not torch.isfinite(value):
        return "the loss itself: the logits are finite"
    # backwards, the last layer comes first
    for name, parameter in reversed(parameters):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name.removeprefix('weight ')}; the loss is finite"
    return "none; when the batch is computed again, all values are finite"


def _repeat_forward(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    precision: str,
    images: Tensor,
    targets: Tensor,
) -> tuple[list[str], Tensor, Tensor]:
    """The layers whose output is not finite, in words, in the order of their calls; the logits; the loss []."""
    layers: list[str] = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                layers.append(f"the output of layer '{name}' ({type(module).__name__})")

        return check_output

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(hook_for(name)) for name, module in leaves]
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        devices = [device] if device.type == "cuda" else []
        with _uncompiled(), torch.no_grad(), torch.random.fork_rng(devices), autocast(device, precision):
            logits = model(images)
            with unchanged(loss):
                value = loss(logits, targets).mean()
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for buffer, value_before in zip(model.buffers(), before, strict=True):
                buffer.copy_(value_before)
    return layers, logits, value
