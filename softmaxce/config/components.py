"""From a name and its arguments to a callable, checked against the callable's own signature.

The signature is the schema: nothing is declared twice. It is read from the source text, without importing it, so that
a mistake in a config is answered before torch is loaded and before any user's code runs; where the text does not tell
(a decorated function, a name imported from elsewhere), the real signature is read when the component is built.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem, SoftmaxceError, in_one_line, ran_out_of_memory, suggestion
from . import registry
from .registry import MENUS, TORCHVISION
from .signatures import NotStatic, Signature, read_signature, signature_of, whole_numbers
from .values import check_value, describe

# module:Name or file.py:Name, as Python and as JSON Schema read it: identifiers of ASCII, or of any letters beyond it.
_IDENTIFIER = r"[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*"
OWN_CODE = rf"^(.*\.py|{_IDENTIFIER}(\.{_IDENTIFIER})*):{_IDENTIFIER}$(?!\n)"


@dataclass(frozen=True)
class Component:
    """A name from a config, the code it stands for, and its arguments.

    `implied` holds the arguments that the name itself gives (`torchvision:resnet50`'s architecture); `place` is where
    the config names it, and does not count when two components are compared.
    """

    name: str
    target: str
    arguments: dict[str, Any]
    implied: dict[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As a config writes it."""
        return {"name": self.name, **self.arguments}


# -- names ------------------------------------------------------------------------------------------------------------


def target_of(name: str, menu: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The `module:Name` a config's name stands for, and the arguments that the name itself implies.

    Raises: ValueError, with the likely remedy, if the name is not on the menu and is no `module:Name`.
    """
    if name in menu:
        return menu[name], {}
    prefix, colon, rest = name.rpartition(":")
    if prefix == "torchvision" and menu is registry.MODELS:
        known = registry.torchvision_names()
        if rest not in known:
            raise ValueError(f"torchvision has no model '{rest}'{suggestion(rest, known)}")
        return TORCHVISION, {"architecture": rest}
    if colon:
        if re.search(OWN_CODE, name):
            return name, {}
        raise ValueError(f"'{name}' is no module:Name; write for example mylab.losses:Tilted or ./tilted.py:Tilted")
    listing = next(word for word, entries in MENUS.items() if entries is menu)
    hint = suggestion(name, menu) or f"; `softmaxce list {listing}` shows all"
    raise ValueError(f"there is no '{name}' among the {listing}{hint}")


# -- signatures -------------------------------------------------------------------------------------------------------


def takes(component: Component, name: str) -> bool:
    """Whether a component has an argument of this name. Raises: ConfigError if its code cannot be read."""
    try:
        try:
            signature = read_signature(component.target)
        except NotStatic:  # the object itself is asked
            signature = signature_of(load_object(component.target))
    except (ValueError, TypeError) as error:
        raise ConfigError([Problem(component.place, str(error))]) from error
    return name in signature.names()


# -- checks -----------------------------------------------------------------------------------------------------------


def check_arguments(
    what: str, signature: Signature, arguments: Mapping[str, Any], supplied: Collection[str] = ()
) -> list[tuple[str | None, str]]:
    """What is wrong with `arguments` for a component called `what`: (argument or None, message) pairs."""
    known = {a.name: a for a in signature.arguments}
    problems: list[tuple[str | None, str]] = []
    for name, value in arguments.items():
        if name in supplied:
            problems.append((name, f"'{name}' is supplied by softmaxce; remove it"))
        elif name not in known:
            if not signature.takes_any:
                open_names = [n for n in known if n not in supplied]
                likely = suggestion(name, open_names) or _takes(open_names)
                problems.append((name, f"{what} takes no '{name}'{likely}"))
        elif (message := check_value(value, known[name].type)) is not None:
            problems.append((name, f"{name} {message}"))
    missing = [a.name for a in known.values() if a.required and a.name not in arguments and a.name not in supplied]
    for name in missing:
        kind = "" if known[name].type is Any else f" ({describe(known[name].type)})"
        problems.append((None, f"{what} needs '{name}'{kind}"))
    return problems


def _takes(names: list[str]) -> str:
    return f"; it takes {', '.join(names)}" if names else "; it takes no arguments"


def left_to_the_caller(
    signature: Signature, arguments: Mapping[str, Any], supplied: Collection[str], called_with: int
) -> list[str]:
    """The arguments that a plain function takes when it is called: `logits` and `targets` of loss(logits, targets).

    A function whose first `called_with` arguments nobody gives beforehand is itself what the config wants. A class, and
    a function that takes fewer such arguments, make what it wants; for them the list is empty.
    """
    names = signature.names()[:called_with]
    is_plain = signature.leading >= called_with and not {*names} & {*arguments, *supplied}
    return names if is_plain else []


def check_component(
    component: Component, signature: Signature, supplied: Collection[str], called_with: int = 0
) -> tuple[Component, list[tuple[str | None, str]]]:
    """The component with the defaults it did not give filled in, and what is wrong with it."""
    component = replace(component, arguments=whole_numbers(component.arguments, signature))
    given = {*supplied, *component.implied}
    given.update(left_to_the_caller(signature, component.arguments, given, called_with))
    problems = check_arguments(component.name, signature, component.arguments, given)
    defaults = {
        a.name: list(a.default) if isinstance(a.default, tuple) else a.default
        for a in signature.arguments
        if a.name not in given and not a.required and a.default is not ...
    }
    arguments = {**{k: v for k, v in defaults.items() if k not in component.arguments}, **component.arguments}
    order = {name: i for i, name in enumerate(signature.names())}
    arguments = dict(sorted(arguments.items(), key=lambda item: order.get(item[0], len(order))))
    return replace(component, arguments=arguments), problems


# -- building ---------------------------------------------------------------------------------------------------------


def load_object(target: str) -> Any:
    """Import `module:Name` or `file.py:Name`.

    Raises: ValueError if the module cannot be imported or has no such name.
    """
    module_name, _, name = target.rpartition(":")
    try:
        if module_name.endswith(".py"):
            file = Path(module_name).resolve()
            unique = f"softmaxce_user_{file.stem}"
            if unique not in sys.modules:
                spec = importlib.util.spec_from_file_location(unique, file)
                assert spec is not None
                assert spec.loader is not None
                sys.modules[unique] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules[unique])
            module = sys.modules[unique]
        else:
            module = importlib.import_module(module_name)
    except Exception as error:  # importing the user's module; told
        sys.modules.pop(f"softmaxce_user_{Path(module_name).stem}", None)
        if ran_out_of_memory(error):
            raise
        raise ValueError(f"importing '{module_name}' failed: {in_one_line(error)}") from error
    if not hasattr(module, name):
        raise ValueError(f"'{module_name}' has no '{name}'{suggestion(name, dir(module))}")
    return getattr(module, name)


def build(component: Component, supplied: Mapping[str, Any], called_with: int = 0) -> Any:
    """What a component names, made with its arguments and with those of `supplied` that it takes.

    Args:
        component: the name and the arguments that a config gives.
        supplied: what softmaxce gives to a component that takes it.
        called_with: how many arguments the result will be called with. A function that waits for them (see
            `left_to_the_caller`), or an object made already, is itself the result, with its other arguments bound.
    Raises: ConfigError, with the component's place, if the name cannot be imported, an argument does not fit, or the
        callable raises anything.
    """
    try:
        found = load_object(component.target)
        signature = signature_of(found)
    except (ValueError, TypeError) as error:
        raise ConfigError([Problem(component.place, str(error))]) from error
    component = replace(component, arguments=whole_numbers(component.arguments, signature))
    given = {*supplied, *component.implied}
    waits_for = left_to_the_caller(signature, component.arguments, given, called_with)
    problems = check_arguments(component.name, signature, component.arguments, {*given, *waits_for})
    if problems:
        raise ConfigError([Problem(component.place, message) for _, message in problems])
    extra = {name: value for name, value in supplied.items() if name in signature.names()}
    arguments = {**component.arguments, **component.implied, **extra}
    makes = inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, partial)
    if waits_for or (called_with and not makes):
        return partial(found, **arguments) if arguments else found
    try:
        return found(**arguments)
    except SoftmaxceError:
        raise
    except Exception as error:  # the user's constructor; told with its line
        if ran_out_of_memory(error):
            raise
        raise ConfigError([Problem(component.place, f"{component.name}: {in_one_line(error)}")]) from error
