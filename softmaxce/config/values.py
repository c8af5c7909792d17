"""Values of a config, converted to the types of the arguments they are for, and described in messages."""

import math
import re
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import DocInfo
from pydantic import TypeAdapter, ValidationError

from .. import argument_types
from ..errors import suggestion


def convert(value: Any, type_: Any) -> Any:
    """A value of a config (plain data) as the type of its argument, by pydantic's strict rules.

    An int where a float is expected becomes a float. A whole float becomes an int where only an int is accepted, as in
    JSON Schema: 1e3 is 1000. `none` and null are the same where one of them is accepted.

    Raises: ValueError, `must be ..., got ...`, if it does not fit or contains a NaN.
    """
    choices = _choices(type_)
    if not _contains_nan(value):
        alike = "none" if value is None else None if value == "none" else value
        for candidate in (value, _whole_floats_as_ints(value), alike):
            try:
                result = _adapter(type_).validate_python(candidate, strict=True)
            except ValidationError:  # the next candidate may fit; if none does, the error below is raised
                continue
            if isinstance(result, bool) == isinstance(
                value, bool
            ):  # pydantic takes true for Literal[1]; JSON Schema not
                return result
    words = [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
    likely = next((hint for word in words if word not in choices and (hint := suggestion(word, choices))), "")
    raise ValueError(f"must be {describe(type_)}, got {show(value)}{likely}")


@cache
def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def _contains_nan(value: Any) -> bool:
    if isinstance(value, list):  # not a dict: that is a section, whose values are converted one by one
        return any(map(_contains_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _whole_floats_as_ints(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole_floats_as_ints(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole_floats_as_ints(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _choices(type_: Any) -> list[str]:
    members = get_args(type_) if get_origin(type_) in (Union, list) else (type_,)
    return [word for m in members if get_origin(m) is Literal for word in get_args(m) if isinstance(word, str)]


def show(value: Any) -> str:
    """A value as a person would write it in YAML, shortened to 60 characters."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | NoneType) else None
    text = text or (f"'{value}'" if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def describe(type_: Any) -> str:
    """A type in plain words: `a positive whole number`, `one of mean, sum, none`."""
    if type_ is None or type_ is NoneType:
        return "null"
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _describe_annotated(args[0], args[1:])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(a if isinstance(a, str) else show(a) for a in args)
    if origin is list and get_origin(args[0]) is Literal:
        return f"a list, each {describe(args[0])}"
    if origin is list:
        return f"a list of {_plural(describe(args[0]))}" if args[0] is not Any else "a list"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe(a) for a in args))
    if origin is dict:
        return "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list"}
    return words.get(type_, "a mapping" if type_ is dict else "any value")


def _plural(phrase: str) -> str:
    """`a number in [0, 1]` -> `numbers in [0, 1]`."""
    return re.sub(r"^(?:a )?(.*?)(?= in | of at least |$)", r"\1s", phrase, count=1)


def _describe_annotated(base: Any, metadata: tuple[Any, ...]) -> str:
    """A type with bounds, or with a description of its own (annotated_types.doc)."""
    noun = describe(base)
    low = high = None
    for constraint in metadata:
        if isinstance(constraint, DocInfo):
            return constraint.documentation
        for name in ("gt", "ge", "lt", "le"):
            limit = getattr(constraint, name, None)
            if limit is not None and (name, limit) != ("le", argument_types.LARGEST):
                shown = int(limit) if float(limit).is_integer() else limit
                if name in ("gt", "ge"):
                    low = ("(" if name == "gt" else "[") + str(shown)
                else:
                    high = str(shown) + (")" if name == "lt" else "]")
    if low and high:
        return f"{noun} in {low}, {high}"
    if low == "(0":
        return noun.replace("a ", "a positive ", 1)
    return f"{noun} of at least {low[1:]}" if low else noun
