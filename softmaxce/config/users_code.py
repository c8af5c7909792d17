"""The user's own code in a config that was read from a run: what it is, and whether it may run."""

from ..errors import RunError
from .keys import Config


def users_code(config: Config, *, training: bool = True) -> list[str]:
    """The code outside softmaxce that a config names, such as `mylab.losses:Tilted`.

    Args:
        config: of a run.
        training: name also what only training runs: optimizer, schedule and augmentations.
    """
    components = [config.model, config.loss, config.source]
    if training:
        components += [config.optimizer, config.schedule, *config.augment]
    names = [component.name for component in components if ":" in component.name and not component.implied]
    return list(dict.fromkeys(names))


def refuse_users_code(config: Config, location: str, *, training: bool = True) -> None:
    """Refuse a config that was read from a run, not written by the user, if it names code outside softmaxce.

    Args:
        config: of the run.
        location: the checkpoint or run folder it was read from.
        training: the run is resumed; otherwise what only training runs is not refused.
    Raises: RunError, with the option that allows it.
    """
    if names := users_code(config, training=training):
        raise RunError(
            f"{location}: its config names code outside softmaxce, {', '.join(names)}, which would be run; "
            "if you trust that folder and that code, add --trust-code"
        )
