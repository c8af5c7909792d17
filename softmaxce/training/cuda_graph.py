"""A training step's forward and backward pass as a CUDA graph: captured once, checked, replayed on full batches.

A small network's step is some hundred kernels of a few microseconds each, and Python takes longer to launch them than a
GPU to run them. A graph is launched as a whole. It holds what takes most launches: the model, the loss, the check of
the loss, the backward pass and the running sums. The optimizer's step stays outside, with clipping, the loss scaler's
bookkeeping and the moving average: a fused optimizer is one launch for all weights, while in a graph it would need
`capturable`, a learning rate that is a tensor, and state tensors that loading a checkpoint does not replace. So any
optimizer can be used, including Muon and a user's own.

A graph repeats what the device did and nothing of what Python did. So a step is refused if it waits for the device,
draws random numbers on the CPU or changes an attribute of its modules. A captured graph is then compared with the
uncaptured step, on images and weights that differ from those it was captured with.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.keys import Config
from ..errors import ConfigError, Problem, in_one_line, ran_out_of_memory
from ..runtime.random_state import random_state, restore_random_state

Body = Callable[[Tensor, Tensor], Tensor]  # images, targets -> [] bool, a loss that is not finite; adds gradients, sums

PERTURBATION = 1.25  # of the weights, for the check
TOLERANCE = 0.02  # of a norm; a GPU sums in any order, which shows in 16 bits


class NoGraphError(Exception):
    """A graph is not possible; the message says why."""


class StaticStep:
    """A forward and backward pass over static buffers, for batches of one shape.

    Args:
        body: the pass itself.
        images: [B, C, H, W], a batch of that shape.
        targets: [B] or [B, K], likewise.
        parameters: those that get gradients.
        copied: add copies of the gradients to those that the parameters have; else they must have none, and the next
            call overwrites them.

    Until `capture` is called it runs the body; then it replays it.
    """

    def __init__(
        self, body: Body, images: Tensor, targets: Tensor, parameters: Sequence[nn.Parameter], *, copied: bool
    ) -> None:
        self.body: Body | None = body
        self.images, self.targets = torch.empty_like(images), torch.empty_like(targets)
        self.parameters = list(parameters)
        self.copied = copied

    def fits(self, images: Tensor, targets: Tensor) -> bool:
        """Whether a batch has the shape of the buffers."""
        return images.shape == self.images.shape and targets.shape == self.targets.shape

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Add a batch's gradients and sums. Returns: [] bool, its loss is not finite; valid until the next call."""
        self.images.copy_(images)
        self.targets.copy_(targets)
        if self.body is not None:
            return self.body(self.images, self.targets)
        self.graph.replay()
        if self.copied:
            self._add_copies()
            return self.nonfinite.clone()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.nonfinite

    def _add_copies(self) -> None:
        pairs = list(zip(self.parameters, self.gradients, strict=True))
        if sums := [(total, gradient) for parameter, gradient in pairs if (total := parameter.grad) is not None]:
            torch._foreach_add_([total for total, _ in sums], [gradient for _, gradient in sums])
        for parameter, gradient in pairs:
            if parameter.grad is None:
                parameter.grad = gradient.clone()

    def capture(self, stream: torch.cuda.Stream) -> None:
        """Capture the body on a stream on which it has run before. The parameters must have no gradients."""
        assert self.body is not None
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self.images.device.index]
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.nonfinite = self.body(self.images, self.targets)
        except BaseException:
            # A capture that failed may leave the generator waiting for its end, and the next dropout then raises.
            generator.graphsafe_set_state(generator.clone_state())
            raise
        self.parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        self.gradients = [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]
        self.graph = graph
        self.body = None  # which refers to the run, as the run refers to this


def static_step(
    body: Body, images: Tensor, targets: Tensor, holders: Sequence[Any], sums: Sequence[Tensor], *, copied: bool
) -> StaticStep:
    """A StaticStep, captured on a GPU, that was checked against `body`. Whatever `body` changes is restored.

    Args:
        body: the pass.
        images: [B, C, H, W], any batch of the shape to train with.
        targets: [B] or [B, K], likewise.
        holders: the model and the loss.
        sums: other tensors that the pass changes in place.
        copied: as StaticStep's.
    Raises: NoGraphError if a graph is not possible.
    """
    before = _Snapshot(holders, sums)
    step = StaticStep(body, images, targets, list(before.parameters.values()), copied=copied)
    why = None
    try:
        if images.is_cuda:
            _capture(step, before, images, targets)
        else:
            _warm_up(step, before, images, targets)
        why = _difference(step, body, before, images.flip(0), targets)
    except NoGraphError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - the user's model and loss, where they were not meant to run
        first = error.__context__ or error  # ending a capture that failed raises another
        why = f"a step cannot be captured: {in_one_line(first)}"
        if ran_out_of_memory(error):
            why = "memory ran out while a step was captured"
    finally:
        before.restore()
    if why is not None:
        raise NoGraphError(why)
    return step


def _capture(step: StaticStep, before: "_Snapshot", images: Tensor, targets: Tensor) -> None:
    current, side = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            _warm_up(step, before, images, targets)
            with _synchronization_is_an_error():
                step(images, targets)
            before.clear_gradients()
            step.capture(side)
    finally:
        current.wait_stream(side)


def _warm_up(step: StaticStep, before: "_Snapshot", images: Tensor, targets: Tensor) -> None:
    """Take the step once, as a first call may compile, tune or set up.

    Raises: NoGraphError if Python did something that a replay would not repeat.
    """
    generators = _host_generators(images.device)
    step(images, targets)
    before.clear_gradients()
    if changed := before.changed_attribute():
        raise NoGraphError(f"a step changes {changed}")
    if generators != _host_generators(images.device):
        raise NoGraphError("a step draws random numbers on the CPU")


def _difference(step: StaticStep, body: Body, before: "_Snapshot", images: Tensor, targets: Tensor) -> str | None:
    """How the step differs from its body, on a batch and with weights that are new to it; None if it does not."""
    results = []
    for call in (body, step):
        before.restore()
        with torch.no_grad():
            torch._foreach_mul_(list(before.parameters.values()), PERTURBATION)
        for _ in range(1 + step.copied):
            nonfinite = call(images, targets)
        values = {f"the gradient of '{name}'": parameter.grad for name, parameter in before.parameters.items()}
        values |= {"the check of the loss": nonfinite, **before.sums_and_buffers}
        generator = torch.cuda.get_rng_state(images.device) if images.is_cuda else torch.get_rng_state()
        results.append(({name: None if x is None else x.detach().clone() for name, x in values.items()}, generator))
    (expected, expected_generator), (replayed, generator) = results
    for name, value in expected.items():
        if not _close(value, replayed[name]):
            return f"replayed, a step is not the same: {name} differs"
    return None if torch.equal(expected_generator, generator) else "replayed, a step draws other random numbers"


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if not one.is_floating_point():
        return bool(((one.long() - other.long()).abs() <= 1 + TOLERANCE * one.long().abs()).all())
    # A loss scale that is too large for fp16 makes infinities, in both.
    one, other = (torch.nan_to_num(x.float(), 0.0, 0.0, 0.0) for x in (one, other))
    return bool((one - other).norm() <= TOLERANCE * one.norm())


@contextlib.contextmanager
def _synchronization_is_an_error() -> Iterator[None]:
    """Operations that wait for the device raise an error, before they could invalidate a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


class _Snapshot:
    """What a step may change: weights, running statistics, sums, attributes and random numbers.

    Args:
        holders: the model and the loss.
        sums: other tensors that it changes in place.
    """

    def __init__(self, holders: Sequence[Any], sums: Sequence[Tensor]) -> None:
        roots = [holder for holder in holders if isinstance(holder, nn.Module)]
        self.parameters: dict[str, nn.Parameter] = {}  # each once, though the loss may have the model's too
        for root in roots:
            new = [(name, p) for name, p in root.named_parameters() if not _is_in(p, self.parameters.values())]
            self.parameters |= {f"{type(root).__name__}.{n}" if n in self.parameters else n: p for n, p in new}
        self.sums_and_buffers = {f"sum {number}": value for number, value in enumerate(sums)}
        for root in roots:
            self.sums_and_buffers |= {f"{type(root).__name__}.{name}": buffer for name, buffer in root.named_buffers()}
        tensors = (*self.parameters.values(), *self.sums_and_buffers.values())
        self.values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.attributes = [
            (attributes, dict(attributes), type(part).__name__)
            for holder in holders
            for part in (holder.modules() if isinstance(holder, nn.Module) else [holder])
            for attributes in _attribute_dicts(part)
        ]
        self.random = random_state()

    def changed_attribute(self) -> str | None:
        """An attribute that refers to another object than before, in words."""
        for attributes, before, owner in self.attributes:
            for name in {**before, **attributes}:
                if not _same(before.get(name), attributes.get(name)):
                    return f"the attribute '{name}' of {owner}"
        return None

    def clear_gradients(self) -> None:
        """Set the gradients to None."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def restore(self) -> None:
        """Restore everything, and clear the gradients."""
        self.clear_gradients()
        if self.changed_attribute() is not None:
            for attributes, before, _ in self.attributes:
                attributes.clear()
                attributes.update(before)
        with torch.no_grad():
            for tensor, value in self.values:
                tensor.copy_(value)
        restore_random_state(self.random)


def _is_in(tensor: Tensor, tensors: Iterable[Tensor]) -> bool:
    return any(tensor is other for other in tensors)


def _attribute_dicts(part: Any) -> list[dict[str, Any]]:
    """The dicts in which a module, or a loss that is not one, has its attributes and tensors."""
    dicts = [part.__dict__] if hasattr(part, "__dict__") else []
    return [*dicts, part._buffers, part._parameters] if isinstance(part, nn.Module) else dicts


def _same(one: Any, other: Any) -> bool:
    comparable = isinstance(one, int | float | str | torch.Size) and type(one) is type(other)
    return one is other or (comparable and bool(one == other))


def _host_generators(device: torch.device) -> list[Any]:
    """The states of the random number generators that a graph on the device does not advance."""
    state = random_state()
    return [state["python"], state["numpy"], [] if device.type == "cpu" else state["torch"].tolist()]


def report_no_graph(why: str) -> None:
    """Log one warning, which goes to stderr where no logging is configured."""
    logging.getLogger(__name__).warning("no CUDA graph: %s", why)


def should_use_graph(config: Config, images: int, device: torch.device, processes: int = 1) -> bool:
    """Whether training should try a CUDA graph; on CUDA, one line reports why not.

    Args:
        config: of the run.
        images: per epoch.
        device: of the training.
        processes: that train together.
    Raises: ConfigError if the config requires a graph (cuda_graph: true) and it is not possible.
    """
    if config.cuda_graph is False:
        return False
    why = None
    if device.type != "cuda":
        why = f"it needs a CUDA device, and this is {device}"
    elif processes > 1:
        why = f"{processes} processes train together, and their steps are not captured"
    elif config.compile:
        why = "it is not supported with compile: true"
    elif config.distillation is not None:
        why = "the teacher's forward pass is not captured"
    elif config.on_nonfinite == "skip":
        why = "on_nonfinite: skip waits for every loss"
    elif images < config.data.images_per_batch:
        size = config.data.images_per_batch
        why = f"no batch is full: there are {images} training images, and data.batch_size is {size}"
    if why is None:
        return True
    if config.cuda_graph is True:
        raise ConfigError([Problem("cuda_graph", why)])
    if device.type == "cuda":
        report_no_graph(why)
    return False
