"""A training step's forward and backward pass as a CUDA graph: captured once, checked, replayed on full batches.

A small network's step is some hundred kernels of a few microseconds each, and Python takes longer to launch them than a
GPU to run them. A graph is launched as a whole. It holds what costs most launches and is the same for every run: the
model, the loss, the check of the loss, the backward pass and the running sums. The optimizer's step stays outside, with
clipping, the scaler's bookkeeping and the moving average: a fused optimizer is one launch for all weights, while in a
graph it would need `capturable`, a learning rate that is a tensor, and states that no checkpoint may replace. So every
optimizer can be used, also Muon and a user's own, and none knows of the graph.

A graph repeats what the device did and nothing of what Python did. So nothing is captured that a replay would not
repeat: a step that waits for the device, draws random numbers on the CPU or changes an attribute of its modules. What
was captured is then replayed with other images and other weights than it was captured with, beside the step itself.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import in_one_line, ran_out_of_memory
from ..runtime.random_state import random_state, restore_random_state

Body = Callable[[Tensor, Tensor], Tensor]  # images, targets -> whether the loss is bad []; gradients and sums in place

OTHERWISE = 1.25  # what the weights are multiplied by for the check
TOLERANCE = 0.02  # of a norm; a GPU adds up in any order, and in 16 bits that shows


class NoGraphError(Exception):
    """There can be no graph; the message says why."""


class StaticStep:
    """A forward and backward pass over buffers that stay where they are, for batches of one shape.

    Args:
        body: the pass itself.
        images: [B, C, H, W], a batch of that shape.
        targets: [B] or [B, K], likewise.
        parameters: whose gradients it makes.
        copied: add its gradients to those there are, so that they can be kept; else there must be none, and those it
            gives hold until the next call.

    Until `capture` is called it runs the body; then it replays it.
    """

    def __init__(
        self, body: Body, images: Tensor, targets: Tensor, parameters: Sequence[nn.Parameter], *, copied: bool
    ) -> None:
        self.body: Body | None = body
        self.images, self.targets = torch.empty_like(images), torch.empty_like(targets)
        self.parameters = list(parameters)
        self.copied = copied

    def takes(self, images: Tensor, targets: Tensor) -> bool:
        """Whether a batch has the shape that this was made for."""
        return images.shape == self.images.shape and targets.shape == self.targets.shape

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """A batch's gradients and sums. Returns: whether its loss is bad [], which the next call may write over."""
        self.images.copy_(images)
        self.targets.copy_(targets)
        if self.body is not None:
            return self.body(self.images, self.targets)
        self.graph.replay()
        if self.copied:
            self._hand_out_copies()
            return self.bad.clone()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.bad

    def _hand_out_copies(self) -> None:
        """Add the gradients to those there are; where there are none, a copy is the first."""
        pairs = list(zip(self.parameters, self.gradients, strict=True))
        if added := [(there, gradient) for parameter, gradient in pairs if (there := parameter.grad) is not None]:
            torch._foreach_add_([there for there, _ in added], [gradient for _, gradient in added])
        for parameter, gradient in pairs:
            if parameter.grad is None:
                parameter.grad = gradient.clone()

    def capture(self, stream: torch.cuda.Stream) -> None:
        """Capture the body on a stream on which it has run before. There must be no gradients."""
        assert self.body is not None
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self.images.device.index]
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.bad = self.body(self.images, self.targets)
        except BaseException:
            # A capture that failed may leave the generator waiting for its end, and the next dropout then raises.
            generator.graphsafe_set_state(generator.clone_state())
            raise
        self.parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        self.gradients = [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]
        self.graph = graph
        self.body = None  # which holds the run, and the run holds this


def static_step(
    body: Body, images: Tensor, targets: Tensor, holders: Sequence[Any], sums: Sequence[Tensor], *, copied: bool
) -> StaticStep:
    """A StaticStep, on a GPU a captured one, that does what `body` does. Whatever `body` changes is put back.

    Args:
        body: the pass.
        images: [B, C, H, W], any batch of the shape that is to come.
        targets: [B] or [B, K], likewise.
        holders: the model and the loss.
        sums: what else the pass changes in place.
        copied: as StaticStep's.
    Raises: NoGraphError if there can be none.
    """
    kept = _Kept(holders, sums)
    step = StaticStep(body, images, targets, list(kept.parameters.values()), copied=copied)
    why = None
    try:
        if images.is_cuda:
            _capture(step, kept, images, targets)
        else:
            _warm_up(step, kept, images, targets)
        why = _difference(step, body, kept, images.flip(0), targets)
    except NoGraphError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - the user's model and loss, where they were not meant to run
        first = error.__context__ or error  # to end a capture that failed is an error of its own
        why = f"a step cannot be captured: {in_one_line(first)}"
        if ran_out_of_memory(error):
            why = "memory ran out while a step was captured"
    finally:
        kept.put_back()
    if why is not None:
        raise NoGraphError(why)
    return step


def _capture(step: StaticStep, kept: "_Kept", images: Tensor, targets: Tensor) -> None:
    current, side = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            _warm_up(step, kept, images, targets)
            with _waiting_is_an_error():
                step(images, targets)
            kept.drop_gradients()
            step.capture(side)
    finally:
        current.wait_stream(side)


def _warm_up(step: StaticStep, kept: "_Kept", images: Tensor, targets: Tensor) -> None:
    """Take the step once: whatever is compiled, chosen or set up at a first call is then there.

    Raises: NoGraphError if Python did something that a replay would not do again.
    """
    before = _host_generators(images.device)
    step(images, targets)
    kept.drop_gradients()
    if changed := kept.changed_attribute():
        raise NoGraphError(f"a step changes {changed}")
    if before != _host_generators(images.device):
        raise NoGraphError("a step draws random numbers on the CPU")


def _difference(step: StaticStep, body: Body, kept: "_Kept", images: Tensor, targets: Tensor) -> str | None:
    """In what the step differs from its body, on a batch and with weights that it has not seen; None if in nothing."""
    outcomes = []
    for call in (body, step):
        kept.put_back()
        with torch.no_grad():
            torch._foreach_mul_(list(kept.parameters.values()), OTHERWISE)
        for _ in range(1 + step.copied):
            bad = call(images, targets)
        found = {f"the gradient of '{name}'": parameter.grad for name, parameter in kept.parameters.items()}
        found |= {"the check of the loss": bad, **kept.counted}
        drawn = torch.cuda.get_rng_state(images.device) if images.is_cuda else torch.get_rng_state()
        outcomes.append(({name: None if x is None else x.detach().clone() for name, x in found.items()}, drawn))
    (expected, drawn), (replayed, drawn_again) = outcomes
    for name, value in expected.items():
        if not _close(value, replayed[name]):
            return f"replayed, a step is not the same: {name} differs"
    return None if torch.equal(drawn, drawn_again) else "replayed, a step draws other random numbers"


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if not one.is_floating_point():
        return bool(((one.long() - other.long()).abs() <= 1 + TOLERANCE * one.long().abs()).all())
    # A scale that is too large for fp16 makes infinities, in both.
    one, other = (torch.nan_to_num(x.float(), 0.0, 0.0, 0.0) for x in (one, other))
    return bool((one - other).norm() <= TOLERANCE * one.norm())


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """An operation within that waits for the device raises an error, without spoiling a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


class _Kept:
    """What a step may change, as it was: weights, running statistics, sums, attributes and random numbers.

    Args:
        holders: the model and the loss.
        sums: what else it changes in place.
    """

    def __init__(self, holders: Sequence[Any], sums: Sequence[Tensor]) -> None:
        roots = [holder for holder in holders if isinstance(holder, nn.Module)]
        self.parameters = {name: parameter for root in roots for name, parameter in root.named_parameters()}
        self.counted = {f"sum {number}": value for number, value in enumerate(sums)}
        for root in roots:
            self.counted |= {f"{type(root).__name__}.{name}": buffer for name, buffer in root.named_buffers()}
        self.values = [
            (tensor, tensor.detach().clone()) for tensor in (*self.parameters.values(), *self.counted.values())
        ]
        self.attributes = [
            (place, dict(place), type(part).__name__)
            for holder in holders
            for part in (holder.modules() if isinstance(holder, nn.Module) else [holder])
            for place in _places(part)
        ]
        self.random = random_state()

    def changed_attribute(self) -> str | None:
        """An attribute that is another object now, in words."""
        for place, before, owner in self.attributes:
            for name in {**before, **place}:
                if not _same(before.get(name), place.get(name)):
                    return f"the attribute '{name}' of {owner}"
        return None

    def drop_gradients(self) -> None:
        """There are none then."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def put_back(self) -> None:
        """All is as it was, and there are no gradients."""
        self.drop_gradients()
        if self.changed_attribute() is not None:
            for place, before, _ in self.attributes:
                place.clear()
                place.update(before)
        with torch.no_grad():
            for tensor, value in self.values:
                tensor.copy_(value)
        restore_random_state(self.random)


def _places(part: Any) -> list[dict[str, Any]]:
    """Where a module, or a loss that is none, keeps its attributes and its tensors."""
    places = [part.__dict__] if hasattr(part, "__dict__") else []
    return [*places, part._buffers, part._parameters] if isinstance(part, nn.Module) else places


def _same(one: Any, other: Any) -> bool:
    plain = isinstance(one, int | float | str | torch.Size) and type(one) is type(other)
    return one is other or (plain and bool(one == other))


def _host_generators(device: torch.device) -> list[Any]:
    """The states of the generators that a graph on the device does not know of."""
    state = random_state()
    return [state["python"], state["numpy"], [] if device.type == "cpu" else state["torch"].tolist()]


def tell_no_graph(why: str) -> None:
    """One line: on stderr, if nobody has set up a log."""
    logging.getLogger(__name__).warning("no CUDA graph: %s", why)
