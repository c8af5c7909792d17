"""Whether a value of a config fits its type, and the message where it does not."""

import sys
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .. import argument_types
from ..errors import suggestion


def check_value(value: Any, type_: Any) -> str | None:
    """None if `value` (plain data) fits the type and holds no NaN; else `must be ..., got ...`."""
    if any(number != number for number in (value if isinstance(value, list) else [value])):
        return f"must be {describe(type_)}, got {show(value)}"
    if fits(value, type_):
        return None
    near = suggestion(value, _words(type_)) if isinstance(value, str) else ""
    return f"must be {describe(type_)}, got {show(value)}{near}"


def fits(value: Any, type_: Any) -> bool:
    """Whether a value (plain data) is of a type: what pydantic in strict mode says, whose import takes longer than the
    whole of a mistake's answer."""
    origin, args = get_origin(type_), get_args(type_)
    if type_ is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0]) and all(bounds.allow(value) for bounds in args[1:])
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in args)
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if origin in (Union, UnionType):
        return any(fits(value, member) for member in args)
    if isinstance(value, bool):
        return type_ is bool
    if type_ is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, type_ or NoneType)


def _words(type_: Any) -> list[str]:
    members = get_args(type_) if get_origin(type_) is Union else (type_,)
    return [word for m in members if get_origin(m) is Literal for word in get_args(m) if isinstance(word, str)]


def show(value: Any) -> str:
    """A value as a person would write it in YAML, shortened."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | NoneType) else None
    text = text or (f"'{value}'" if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def describe(type_: Any) -> str:
    """A type in a few plain words."""
    if type_ is None or type_ is NoneType:
        return "null"
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _describe_number(args[0], args[1:])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(a) for a in args)
    if origin is list:
        return f"a list of {describe(args[0]).removeprefix('a ')}s" if args[0] is not Any else "a list"
    if (origin is not None and NoneType in args) or origin is Union:
        return " or ".join(dict.fromkeys(describe(a) for a in args))
    if origin is dict:
        return "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}
    return words.get(type_, "a mapping" if type_ is dict else "any value")


def _describe_number(base: Any, metadata: Iterable[Any]) -> str:
    if base is str:
        return "'N steps' or 'N minutes'"  # the one text with a pattern, kinds.Moments
    noun = describe(base)
    low = high = None
    for bound in metadata:
        for name in ("gt", "ge", "lt", "le"):
            if (limit := getattr(bound, name, None)) is not None and (name, limit) != ("le", argument_types.LARGEST):
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
