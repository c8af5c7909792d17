"""Muon, the optimizer that orthogonalizes the update of each hidden layer's weight matrix."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..argument_types import Betas, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from . import unwrapped

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; its author chose them for the steepest slope at 0
LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class Muon(torch.optim.Optimizer):
    """Muon for the weight matrices and filters of hidden layers, AdamW for the rest (Jordan et al. 2024).

    https://kellerjordan.github.io/posts/muon: the moving average of the gradients, a matrix [outputs, inputs] (filters
    are flattened), has the singular value decomposition U S V^T. The update is a matrix near U V^T, so that all
    directions are learned at the same rate, times sqrt(max(1, outputs / inputs)). As there, the first and the last
    layer, biases and normalization layers are trained by AdamW (Loshchilov & Hutter 2019). torch.optim.Muon takes the
    same steps, but accepts matrices only.

    Args:
        params: the parameters to train.
        model: its layers determine which parameters are hidden weights.
        lr: of the matrices; about ten times a learning rate for AdamW.
        momentum: decay of the moving average.
        nesterov: Nesterov momentum.
        weight_decay: decoupled; each step first multiplies the matrices by 1 - lr * weight_decay.
        ns_steps: Newton-Schulz iterations; 3 to 5.
        normalize: instead of decay, scale each matrix at each step to rows of root-mean-square length 1, as airbench
            does; for layers followed by a normalization, which cancels their scale.
        adamw_lr, adamw_betas, adamw_eps, adamw_weight_decay: of the other parameters.
        fused: whether AdamW uses torch's fused step.
    Raises: ValueError if no hidden layer is trained.
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
        adamw_betas: Betas = (0.9, 0.95),
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; to those for AdamW, with its options where the group has none."""
        options = {} if "ns_steps" in param_group else self.adamw.defaults
        super().add_param_group({**options, **param_group})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of Muon and of AdamW. Returns: the result of `closure`, which is called first; None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rest = []
        for group in self.param_groups:
            if "ns_steps" not in group:
                rest.append(group)
                continue
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_of(weight, weight.grad, group)
        self.adamw.state, self.adamw.param_groups = self.state, rest  # load_state_dict replaces them
        unwrapped.stepper(self.adamw)()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy or pickle; torch's own omits the attributes of a subclass."""
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
    """The weights of a model's linear and convolutional layers, except the first and the last."""
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    return [layer.weight for layer in layers[1:-1]]


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """A matrix U S V^T, [R, C], with its singular values S replaced by values between about 0.7 and 1.2.

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
