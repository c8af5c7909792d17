"""One training step, to show that everything fits together before a run is started."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import as_training_error, within_memory
from ..losses.interface import reduction_of
from ..models.max_pool import MaxPool2x2
from .freezing import prepare_epoch
from .optimizer import describe_groups
from .run import Run
from .step import TrainingStep


@as_training_error(lambda: "the first batch")
@within_memory("training")
def dry_run(run: Run) -> dict[str, Any]:
    """Take one training step and measure it.

    Returns: `layers` (rows of name, type, output shape, parameters), `groups` (of the optimizer: the parameters' names
        and number, learning rate, weight decay), `loss` (nats per image), and memory in bytes:
        `parameters`, `gradients`, `optimizer` (its state), `activations` (what the forward pass saves for the backward
        pass).
    Raises: TrainingError, whatever the parts of the run raise, as session.train does.
    """
    shapes: dict[str, list[int]] = {}
    hooks = []
    for name, module in run.model.named_modules():
        if not list(module.children()):

            def record_shape(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                shapes.setdefault(name, list(output.shape) if isinstance(output, Tensor) else [])

            hooks.append(module.register_forward_hook(record_shape))
    images, labels = next(iter(run.train.epoch(1)))
    targets: Tensor = labels
    if run.mix is not None:
        images, targets = run.mix(images, labels)
    saved: dict[int, int] = {}  # address -> bytes of a tensor that the forward pass saves

    def record_size(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in run.parameters}
    prepare_epoch(run, run.config.epochs)  # in which the most is trained
    step = TrainingStep(run)
    with torch.autograd.graph.saved_tensors_hooks(record_size, lambda tensor: tensor):
        _, loss = step.forward(images, targets)
    activations = sum(size for address, size in saved.items() if address not in weights)
    loss.backward()  # not scaled: GradScaler may leave out a first step, and the optimizer would have no state to show
    run.optimizer.step()
    for hook in hooks:
        hook.remove()
    parameters, of_model = run.parameters, list(run.model.parameters())
    state = [value for entry in run.optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    modules = dict(run.model.named_modules())
    return {
        "batch": list(images.shape),
        "loss": loss.item() / (len(images) if reduction_of(run.loss) == "sum" else 1),
        "layers": [_layer(name, modules[name], shape) for name, shape in shapes.items()],
        "groups": describe_groups(run.optimizer, run.model),
        "num_parameters": sum(p.numel() for p in of_model),
        "num_trained": sum(p.numel() for p in of_model if p.requires_grad),
        "num_trained_of_loss": sum(p.numel() for p in parameters[len(of_model) :] if p.requires_grad),
        "memory": {
            "parameters": sum(p.nbytes for p in parameters),
            "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
            "optimizer": sum(tensor.nbytes for tensor in state),
            "activations": activations,
        },
    }


def _layer(name: str, module: nn.Module, shape: list[int]) -> dict[str, Any]:
    parameters = sum(p.numel() for p in module.parameters())
    return {"name": name, "type": _type(module), "output": shape, "parameters": parameters}


def _type(module: nn.Module) -> str:
    """A module's type, with the ReLU that it applies too."""
    name = type(module).__name__
    return f"{name} + ReLU" if isinstance(module, MaxPool2x2) and module.relu else name
