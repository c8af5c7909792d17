"""Words of the command line that stand for themselves, taken as they are.

typer reads every value by pydantic, whose import takes as long as all else that somebody waits for who has made a
mistake in a config. A text needs no reading, nor does what was not given at all. The rest goes typer's way.
"""

from typing import Any


def read_plainly(parameters: list[Any]) -> list[Any]:
    """The parameters, made to take plain values as they are, where this typer works as the one described above."""
    for parameter in parameters:
        if getattr(parameter, "_runtime_param", ...) is None and hasattr(parameter, "type_descriptor"):
            parameter._runtime_param = _Plainly(parameter.type_descriptor)
    return parameters


class _Plainly:
    """What typer asks to turn the words after an option into its value."""

    def __init__(self, described: Any) -> None:
        self.annotation = described.annotation if described.parameter_info.parser is None else None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if self.annotation is str and type(value) is str:
            return value
        if self.annotation == list[str] and type(value) in (list, tuple) and all(type(word) is str for word in value):
            return list(value)
        param._runtime_param = None  # typer makes its own
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
