"""Frozen layers: which of a run's parameters are trained in an epoch, and in which mode its layers are."""

from torch import nn

from .. import streams
from ..config.keys import Config
from ..errors import ConfigError, Problem
from ..models.layers import last_layer
from .run import Run


def freeze_for_good(config: Config, model: nn.Module) -> None:
    """Where the config freezes the backbone for the whole run, leave it out of the optimizer and the averages.

    Raises: ConfigError if the model has no backbone to freeze.
    """
    tuning = config.fine_tuning
    if tuning is None or tuning.freeze == "none":
        return
    try:
        head = list(last_layer(model)[1].parameters())
    except ValueError as error:
        raise ConfigError([Problem("fine_tuning.freeze", str(error))]) from None
    if len(head) == len(list(model.parameters())):
        message = f"{config.model.name} has no backbone: its last layer has all of its weights"
        raise ConfigError([Problem("fine_tuning.freeze", message)])
    is_known = ":" not in config.model.name or bool(config.model.implied)
    if is_known and config.weights_from is None and config.model.arguments.get("weights") is None:
        streams.warning("fine_tuning.freeze without pretrained weights keeps the random weights of the backbone")
    if tuning.unfreeze_epoch is None:
        _set_frozen(model, frozen=True)


def prepare_epoch(run: Run, epoch: int) -> None:
    """Put the model into training mode as of an epoch, counted from 1: frozen layers are not trained.

    They are in evaluation mode, so that batch normalization uses and keeps its statistics and nothing is dropped. It
    depends on the epoch alone, so that a run can be resumed anywhere.
    """
    run.model.train()
    tuning = run.config.fine_tuning
    if tuning is None or tuning.freeze == "none":
        return
    frozen = tuning.unfreeze_epoch is None or epoch < tuning.unfreeze_epoch
    if _set_frozen(run.model, frozen=frozen):
        run.static_step = None  # a CUDA graph has the gradients of the parameters that it was made with
    if frozen:
        head = set(last_layer(run.model)[1].modules())
        for module in run.model.modules():
            if module not in head:
                module.training = False


def _set_frozen(model: nn.Module, *, frozen: bool) -> bool:
    """Exclude all parameters but the last layer's from training, or include them. Returns: whether any changed."""
    head = {id(parameter) for parameter in last_layer(model)[1].parameters()}
    changed = [p for p in model.parameters() if id(p) not in head and p.requires_grad is frozen]
    for parameter in changed:
        parameter.requires_grad_(not frozen)
        parameter.grad = None
    return bool(changed)
