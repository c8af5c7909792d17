"""Frozen layers: which of a run's parameters are trained in an epoch, and in which mode its layers are."""

from collections.abc import Sequence

from torch import nn

from .. import streams
from ..config.keys import Config, FineTuning
from ..errors import ConfigError, Problem
from ..models.layers import last_layer
from .optimizer import complete_momenta
from .run import Run


def freeze_for_good(config: Config, model: nn.Module) -> None:
    """Where the config freezes the backbone for the whole run, leave it out of the optimizer and the averages.

    Raises: ConfigError if the model has no backbone to freeze.
    """
    tuning = config.fine_tuning
    if tuning is None or tuning.freeze == "none":
        return
    try:
        backbone = _backbone(model)
    except ValueError as error:
        raise ConfigError([Problem("fine_tuning.freeze", str(error))]) from None
    if not backbone:
        message = f"{config.model.name} has no backbone: its last layer has all of its weights"
        raise ConfigError([Problem("fine_tuning.freeze", message)])
    is_known = ":" not in config.model.name or bool(config.model.implied)
    if is_known and config.weights_from is None and config.model.arguments.get("weights") is None:
        streams.warning("fine_tuning.freeze without pretrained weights keeps the random weights of the backbone")
    if tuning.unfreeze_epoch is None:
        _set_frozen(backbone, frozen=True)


def prepare_epoch(run: Run, epoch: int) -> None:
    """Put the model into training mode as of an epoch, counted from 1: frozen layers are not trained.

    They are in evaluation mode, so that batch normalization uses and keeps its statistics and nothing is dropped. It
    depends on the epoch alone, so that a run can be resumed anywhere.
    """
    run.model.train()
    tuning = run.config.fine_tuning
    if tuning is not None and tuning.freeze != "none":
        _freeze_in(run, epoch, tuning)
    complete_momenta(run.optimizer)


def _freeze_in(run: Run, epoch: int, tuning: FineTuning) -> None:
    frozen = tuning.unfreeze_epoch is None or epoch < tuning.unfreeze_epoch
    # A parameter that the model itself keeps fixed is not the optimizer's, and stays so.
    trained = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    if _set_frozen([p for p in _backbone(run.model) if id(p) in trained], frozen=frozen):
        run.static_step = None  # a CUDA graph has the gradients of the parameters that it was made with
    if frozen:
        head = set(last_layer(run.model)[1].modules())
        for module in run.model.modules():
            if module not in head:
                module.training = False


def _backbone(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the last layer's."""
    head = {id(parameter) for parameter in last_layer(model)[1].parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


def _set_frozen(parameters: Sequence[nn.Parameter], *, frozen: bool) -> bool:
    """Exclude parameters from training, or include them. Returns: whether any of them changed."""
    changed = [parameter for parameter in parameters if parameter.requires_grad is frozen]
    for parameter in changed:
        parameter.requires_grad_(not frozen)
        parameter.grad = None
    return bool(changed)
