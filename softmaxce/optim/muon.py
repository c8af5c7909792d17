"""Muon, the optimizer that orthogonalises the update of each hidden layer's matrix."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..argument_types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from . import unwrapped

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; chosen by its author for the steepest slope at 0


class Muon(torch.optim.Optimizer):
    """Muon for the hidden layers' matrices and filters, AdamW for all else (Jordan et al. 2024).

    https://kellerjordan.github.io/posts/muon: the momentum's average of gradients, a matrix [outputs, inputs] (filters
    flattened to it), is replaced by a matrix near U V^T of its singular value decomposition U S V^T, so that every
    direction is learnt at the same pace; then it is scaled by sqrt(max(1, outputs / inputs)). As there, the first and
    the last layer, biases and normalisation are left to AdamW (Loshchilov & Hutter 2019). torch.optim.Muon takes the
    same steps, on matrices alone, and leaves the rest to its caller.

    Args:
        params: what is trained.
        model: tells which of these are hidden layers' weights.
        lr: of the matrices; about ten times what AdamW likes.
        momentum: the old gradients' share in the average.
        nesterov: look ahead by adding the newest gradient once more.
        weight_decay: decoupled: each step first multiplies the matrices by 1 - lr * weight_decay.
        ns_steps: Newton-Schulz iterations; 3 to 5.
        normalize: instead of decay, scale each matrix at each step so that its rows have length 1 in the mean square,
            as airbench does; for layers followed by a normalisation, to which their scale means nothing.
        adamw_lr, adamw_betas, adamw_eps, adamw_weight_decay: of all else.
        fused: whether AdamW takes torch's fused step.
    Raises: ValueError if the model has no hidden layer that is trained.
    """

    def __init__(
        self,
        params: Any,
        model: nn.Module,
        lr: PositiveFloat = 0.02,
        momentum: Fraction = 0.95,
        nesterov: bool = True,
        weight_decay: NonNegativeFloat = 0.0,
        ns_steps: PositiveInt = 5,
        normalize: bool = False,
        adamw_lr: PositiveFloat = 0.003,
        adamw_betas: list[Fraction] | tuple[Fraction, ...] = (0.9, 0.95),
        adamw_eps: PositiveFloat = 1e-10,
        adamw_weight_decay: NonNegativeFloat = 0.0,
        fused: bool | None = None,
    ) -> None:
        params = list(params)
        hidden = {id(weight) for weight in hidden_weights(model)}
        matrices = [parameter for parameter in params if id(parameter) in hidden]
        if not matrices:
            raise ValueError("the model has no hidden layer for Muon: a trained layer between its first and its last")
        rest = [parameter for parameter in params if id(parameter) not in hidden]
        options = {"lr": adamw_lr, "betas": tuple(adamw_betas), "eps": adamw_eps, "weight_decay": adamw_weight_decay}
        self.adamw = torch.optim.AdamW(rest, **options, fused=fused)  # type: ignore[arg-type]
        own = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        own |= {"ns_steps": ns_steps, "normalize": normalize}
        super().__init__([{"params": matrices, **own}, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both. Returns: what `closure`, called first, gives; None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        for weight in group["params"]:
            if weight.grad is not None:
                self._step_of(weight, weight.grad, group)
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[1:]  # load_state_dict makes new ones
        unwrapped.stepper(self.adamw)()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of; torch's own leaves out what a subclass adds."""
        return {**super().__getstate__(), "adamw": self.adamw}

    def _step_of(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        direction = orthogonalized(update.flatten(1), group["ns_steps"])
        rows, columns = direction.shape
        if group["normalize"]:
            weight.mul_(math.sqrt(rows) / weight.norm())
        else:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(direction.view(weight.shape), alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """The weights of a model's fully connected and convolutional layers but for the first and the last."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | _ConvNd)]
    return [layer.weight for layer in layers[1:-1]]


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """A matrix [R, C] U S V^T with its singular values S brought near 1, to between about 0.7 and 1.2.

    Newton-Schulz: x -> a x + b x^3 + c x^5 on the singular values, `steps` times, from the matrix divided by its
    Frobenius norm; in bfloat16, as published. Returns: [R, C], of the matrix's dtype.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.bfloat16() if len(matrix) <= matrix.shape[1] else matrix.bfloat16().T
    x = wide / wide.norm().clamp_min(1e-7)
    for _ in range(steps):
        squared = x @ x.T
        polynomial = torch.addmm(squared, squared, squared, beta=b, alpha=c)  # b S^2 + c S^4
        x = torch.addmm(x, polynomial, x, beta=a)
    result: Tensor = x if len(matrix) <= matrix.shape[1] else x.T
    return result.to(matrix.dtype)
