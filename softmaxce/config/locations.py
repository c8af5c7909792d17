"""Where a value was written, in errors about it that come after the config was read."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from ..errors import ConfigError, DataError
from .keys import Config

P = ParamSpec("P")
R = TypeVar("R")


def names_options(function: Callable[Concatenate[Config, P], R]) -> Callable[Concatenate[Config, P], R]:
    """Errors that begin with a key begin with the option that set it: `--set data.root=x` in place of `data.root`."""

    @wraps(function)
    def wrapper(config: Config, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(config, *args, **kwargs)
        except ConfigError as error:
            problems = [
                replace(problem, location=config.options.get(problem.location, problem.location))
                for problem in error.problems
            ]
            if problems == list(error.problems):
                raise
            raise ConfigError(problems) from error.__cause__
        except DataError as error:
            key, colon, message = error.command_text.partition(": ")
            if not colon or key not in config.options:
                raise
            raise DataError(f"{config.options[key]}: {message}") from error.__cause__

    return wrapper
