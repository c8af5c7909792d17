"""The names of `train --log`, and the packages that each needs. Imports neither these packages nor torch."""

import importlib.util
import os
from collections.abc import Sequence

from ...errors import ConfigError, Problem, suggestion

LOGGERS = {  # name -> module:Name, as it is imported once it is used
    "tensorboard": "softmaxce.report.loggers.tensorboard:TensorBoardLogger",
    "mlflow": "softmaxce.report.loggers.mlflow:MlflowLogger",
    "wandb": "softmaxce.report.loggers.wandb:WandbLogger",
}
SQL = ("sqlalchemy", "alembic")  # of MLflow's local store; a server needs neither


def check_loggers(names: Sequence[str], option: str) -> list[str]:
    """The names, each once, if they are known and what they need is installed.

    Args:
        names: as the user gave them.
        option: that named them, for messages.
    Raises: ConfigError, with the extra to install.
    """
    for name in names:
        if name not in LOGGERS:
            message = f"must be {', '.join(list(LOGGERS)[:-1])} or {[*LOGGERS][-1]}{suggestion(name, LOGGERS)}"
            raise ConfigError([Problem(f"{option} {name}", message)])
        needed = [name, *(SQL if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ else ())]
        if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
            message = f"needs {' and '.join(missing)}; install with: pip install 'softmaxce[{name}]'"
            raise ConfigError([Problem(f"{option} {name}", message)])
    return list(dict.fromkeys(names))
