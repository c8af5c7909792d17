"""The optimizer that a config names, over the parameters of a model and a loss, in groups with rates of their own."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..config.components import build
from ..config.keys import Config
from ..errors import ConfigError, Problem, in_one_line, ran_out_of_memory
from ..losses.interface import Loss
from ..models.layers import Block, blocks
from ..optim import unwrapped


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a config names, over the trainable parameters; fused if possible, unless the config decides.

    Raises: ConfigError.
    """
    component = config.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError([Problem("model", "has no parameters to train")])
    arguments = dict(component.arguments)
    # With a loss scaler, torch's fused steps on the CPU apply gradients that are not finite (observed with 2.15).
    device = parameters[0].device.type
    can_fuse = device == "cuda" or (device == "cpu" and config.precision != "fp16")
    can_fuse = can_fuse and not arguments.get("differentiable")
    if "fused" in arguments and arguments["fused"] is arguments.get("foreach") is None and can_fuse:
        arguments["fused"] = True
    with unwrapped.construction():
        optimizer = build(replace(component, arguments=arguments), {"params": parameters, "model": model})
    if not isinstance(optimizer, torch.optim.Optimizer):
        message = f"{component.name} must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        raise ConfigError([Problem(component.location, message)])
    _split_groups(optimizer, config, model)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # what the schedule's factor multiplies
    return optimizer


def add_loss_parameters(optimizer: torch.optim.Optimizer, config: Config, model: nn.Module, loss: Loss) -> None:
    """Add the loss's own parameters, if it has any, to the optimizer: in a group of their own, without weight decay.

    Raises: ConfigError if the optimizer does not accept them.
    """
    of_model = set(model.parameters())
    parameters = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    parameters = [parameter for parameter in parameters if parameter.requires_grad and parameter not in of_model]
    if not parameters:
        return
    try:
        with unwrapped.construction():
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
    except Exception as error:  # the user's optimizer may raise anything
        if ran_out_of_memory(error):
            raise
        message = f"{config.optimizer.name} does not accept the parameters of the loss: {in_one_line(error)}"
        raise ConfigError([Problem(config.optimizer.location, message)]) from error
    group = optimizer.param_groups[-1]
    group.setdefault("initial_lr", group["lr"])


def complete_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give every trained parameter a momentum: torch's fused SGD takes those of all parameters of a group or of none.

    A parameter may get its first gradient later than others, because it was frozen or its layer was not used. With a
    momentum of zeros its first step is torch's, but for `dampening`, which torch leaves out of a first step.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        lacking = [p for p in trained if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        is_first_step = len(lacking) == len(trained)
        if group["fused"] and group["momentum"] and not (is_first_step and group["dampening"]):
            for parameter in lacking:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


# -- groups -----------------------------------------------------------------------------------------------------------


def _split_groups(optimizer: torch.optim.Optimizer, config: Config, model: nn.Module) -> None:
    """Split the optimizer's groups by learning rate and weight decay, where `fine_tuning` or `no_decay` ask for it.

    The last layer's groups come first: the learning rate that is reported is that of the first group.
    """
    tuning = config.fine_tuning
    decay, head_lr = (tuning.layer_decay, tuning.head_lr) if tuning is not None else (None, None)
    if decay is None and head_lr is None and config.no_decay == "none":
        return
    chain = _blocks(model) if decay is not None or head_lr is not None else [Block("", list(model.parameters()))]
    distance = {id(p): steps for steps, block in enumerate(reversed(chain)) for p in block.parameters}
    split: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            steps = distance[id(parameter)]
            rate = group["lr"] * (decay or 1.0) ** steps
            if head_lr is not None and steps == 0:
                rate = head_lr
            plain = config.no_decay == "auto" and parameter.ndim <= 1
            parts.setdefault((rate, plain), []).append(parameter)
        order = sorted(parts, key=lambda key: (distance[id(parts[key][0])], key[1]))
        for rate, plain in order:
            changes = {"weight_decay": 0.0} if plain and "weight_decay" in group else {}
            split.append({**group, "params": parts[rate, plain], "lr": rate, **changes})
    optimizer.param_groups[:] = split


def _blocks(model: nn.Module) -> list[Block]:
    """The model's blocks, the last layer last. Raises: ConfigError if it has no last layer."""
    try:
        return blocks(model)
    except ValueError as error:
        raise ConfigError([Problem("fine_tuning", str(error))]) from None


def describe_groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """The optimizer's groups, for `--dry-run`: names, number of parameters, learning rate, weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rows = []
    for group in optimizer.param_groups:
        of_group = [names.get(id(parameter), "the loss") for parameter in group["params"]]
        rows.append(
            {
                "parameters": of_group,
                "num_parameters": sum(parameter.numel() for parameter in group["params"]),
                "learning_rate": group["initial_lr"],
                "weight_decay": group.get("weight_decay"),
            }
        )
    return rows
