"""From a name and its arguments in a config to a callable, checked against the callable's own signature.

The signature is the schema, so that nothing is declared twice. It is read from the source text, without an import, so
that a mistake in a config is answered before torch is loaded and before any code of the user's runs. Where the text is
not enough (a decorated function, a name imported from elsewhere), the real signature is read when the component is
built.
"""

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem, SoftmaxceError, in_one_line, ran_out_of_memory, suggestion
from . import rules
from .registry import Registry
from .signatures import Argument, NotStatic, Signature, current_folder_last, read_signature, signature_of
from .values import convert, describe


@dataclass(frozen=True)
class Component:
    """A name from a config, the code it stands for, and its arguments.

    Attributes:
        name: as the config writes it.
        target: module:Name or file.py:Name.
        arguments: by name.
        implied: the arguments that the name itself implies (the architecture of `torchvision:resnet50`).
        location: where the config names it, for messages; ignored when two components are compared.
        instance: a Python object that stands in its place (config/objects.py); None if it is built by its name.
    """

    name: str
    target: str
    arguments: dict[str, Any]
    implied: dict[str, Any] = field(default_factory=dict)
    location: str = field(default="", compare=False)
    instance: Any = field(default=None, compare=False, repr=False)

    @property
    def is_object(self) -> bool:
        """Whether a Python object was passed in its place: `<mylab.Net>`. Only the caller has it."""
        return is_object(self.name)

    def to_dict(self) -> dict[str, Any]:
        """As a config writes it."""
        return {"name": self.name, **self.arguments}


def is_object(name: str) -> bool:
    """Whether a name stands for a Python object: `<mylab.Net>`."""
    return name.startswith("<") and name.endswith(">")


def takes(component: Component, name: str) -> bool:
    """Whether a component has an argument of this name. Raises: ConfigError if its code cannot be read."""
    if component.is_object:
        return False
    try:
        try:
            signature = read_signature(component.target)
        except NotStatic:  # the object's own signature is read instead
            signature = signature_of(load_object(component.target))
    except (ValueError, TypeError) as error:
        raise ConfigError([Problem(component.location, str(error))]) from error
    return name in signature.names()


# -- checking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArgumentProblem:
    """What is wrong with a component's arguments.

    Attributes:
        argument: the name; None if it is the component as a whole.
        message: what is wrong, and the remedy.
        of_value: the value is wrong, not the name.
        others: the other arguments that it involves.
    """

    argument: str | None
    message: str
    of_value: bool = False
    others: tuple[str, ...] = ()


def resolve(
    registry: Registry,
    name: str,
    arguments: Mapping[str, Any],
    location: str,
    *,
    aliases: Mapping[str, str] | None = None,
    other_keys: Sequence[str] = (),
) -> tuple[Component, list[ArgumentProblem]]:
    """The component that a config names, its arguments converted and its defaults filled in; and what is wrong with it.

    Args:
        registry: of its section.
        name: as the config writes it.
        arguments: as the config writes them.
        location: of the name, for messages.
        aliases: what other trainers call an argument -> its name here, for suggestions.
        other_keys: keys that may stand beside the arguments, for suggestions.
    Raises: ValueError if there is no such component.
    """
    if is_object(name):
        return Component(name, name, dict(arguments), {}, location), []
    target, implied = registry.resolve(name)
    component = Component(name, target, dict(arguments), implied, location)
    try:
        signature = read_signature(target)
    except NotStatic:  # `build` checks the arguments against the object itself
        return component, []
    return check_component(
        component, signature, registry.supplied, registry.called_with, aliases=aliases, other_keys=other_keys
    )


def check_arguments(
    what: str,
    signature: Signature,
    arguments: Mapping[str, Any],
    supplied: Collection[str] = (),
    *,
    aliases: Mapping[str, str] | None = None,
    other_keys: Sequence[str] = (),
) -> tuple[dict[str, Any], list[ArgumentProblem]]:
    """The arguments of a component called `what`, each converted to its type, and what is wrong with them."""
    known = {a.name: a for a in signature.arguments}
    converted: dict[str, Any] = dict(arguments)
    problems: list[ArgumentProblem] = []
    for name, value in arguments.items():
        if name in supplied:
            problems.append(ArgumentProblem(name, f"'{name}' is supplied by softmaxce; remove it"))
        elif name in known:
            try:
                converted[name] = convert(value, known[name].type)
            except ValueError as error:
                problems.append(ArgumentProblem(name, f"{name} {error}", of_value=True))
        elif not signature.takes_any:
            names = [n for n in known if n not in supplied]
            hint = _likely(name, [*names, *other_keys], aliases or {}) or _takes(names)
            problems.append(ArgumentProblem(name, f"{what} takes no '{name}'{hint}"))
    missing = [a.name for a in known.values() if a.required and a.name not in arguments and a.name not in supplied]
    for name in missing:
        kind = "" if known[name].type is Any else f" ({describe(known[name].type)})"
        problems.append(ArgumentProblem(None, f"{what} needs '{name}'{kind}"))
    return converted, problems


def _likely(name: str, known: Sequence[str], aliases: Mapping[str, str]) -> str:
    alias = aliases.get(name)
    return f"; did you mean '{alias}'?" if alias in known else suggestion(name, known)


def _takes(names: list[str]) -> str:
    return f"; it takes {', '.join(names)}" if names else "; it takes no arguments"


def left_to_the_caller(
    signature: Signature, arguments: Mapping[str, Any], supplied: Collection[str], called_with: int
) -> list[str]:
    """The arguments that a plain function receives when it is called: `logits` and `targets` of loss(logits, targets).

    A function that takes at least `called_with` positional arguments without a default, none of them given beforehand,
    is itself the component. A class, or a function that takes fewer, builds the component; the list is then empty.
    """
    names = signature.names()[:called_with]
    is_plain = signature.leading >= called_with and not {*names} & {*arguments, *supplied}
    return names if is_plain else []


def _default(argument: Argument) -> Any:
    """An argument's default as a config's value would be: of the declared type, a list in place of a tuple."""
    value = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    try:
        return convert(value, argument.type)  # torch declares `weight_decay: float = 0`
    except ValueError:  # the default need not be of the declared type
        return value


def check_component(
    component: Component,
    signature: Signature,
    supplied: Collection[str],
    called_with: int = 0,
    *,
    aliases: Mapping[str, str] | None = None,
    other_keys: Sequence[str] = (),
) -> tuple[Component, list[ArgumentProblem]]:
    """The component with its arguments converted and its defaults filled in, and what is wrong with it."""
    preset = {*supplied, *component.implied}
    preset.update(left_to_the_caller(signature, component.arguments, preset, called_with))
    arguments, problems = check_arguments(
        component.name, signature, component.arguments, preset, aliases=aliases, other_keys=other_keys
    )
    defaults = {
        a.name: _default(a)
        for a in signature.arguments
        if a.name not in preset and not a.required and a.default is not ...
    }
    order = {name: i for i, name in enumerate(signature.names())}
    arguments = dict(sorted({**defaults, **arguments}.items(), key=lambda item: order.get(item[0], len(order))))
    if not problems:
        for names, message in rules.broken(component.target, arguments):
            written = [name for name in names if name in component.arguments]
            problems.append(ArgumentProblem(written[0], message, of_value=True, others=tuple(written[1:])))
    return replace(component, arguments=arguments), problems


# -- building ---------------------------------------------------------------------------------------------------------


def load_object(target: str) -> Any:
    """Import `module:Name` or `file.py:Name`.

    Raises: ValueError if the module cannot be imported or has no such name.
    """
    module_name, _, name = target.rpartition(":")
    try:
        with current_folder_last():
            module = (
                _import_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
            )
    except Exception as error:  # importing runs the user's code, which may raise anything
        sys.modules.pop(_module_name(Path(module_name)), None)
        if ran_out_of_memory(error):
            raise
        raise ValueError(f"importing '{module_name}' failed: {in_one_line(error)}") from error
    if not hasattr(module, name):
        raise ValueError(f"'{module_name}' has no '{name}'{suggestion(name, dir(module))}")
    return getattr(module, name)


def _import_file(file: Path) -> Any:
    name = _module_name(file)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file.resolve())
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _module_name(file: Path) -> str:
    """A module name for a user's file; files of one name in different folders get different ones."""
    return f"softmaxce_user_{file.stem}_{zlib.crc32(str(file.resolve()).encode()):08x}"


def build(component: Component, supplied: Mapping[str, Any], called_with: int = 0) -> Any:
    """What a component names, built with its arguments and with those of `supplied` that it takes.

    Args:
        component: the name and the arguments from a config.
        supplied: what softmaxce passes to a component that takes it.
        called_with: the number of arguments the result will be called with. A function that waits for them (see
            `left_to_the_caller`), or an object that is not a class or function, is itself the result, with its other
            arguments bound.
    Raises: ConfigError, with the component's location, if the name cannot be imported, an argument does not fit, or the
        callable raises anything.
    """
    if component.instance is not None:
        return component.instance
    if component.is_object:
        message = (
            f"{component.name} is a Python object that was passed to softmaxce.train, and no name to build it by; "
            "pass it again, to softmaxce.train or softmaxce.load"
        )
        raise ConfigError([Problem(component.location, message)])
    try:
        target = load_object(component.target)
        signature = signature_of(target)
    except (ValueError, TypeError) as error:
        raise ConfigError([Problem(component.location, str(error))]) from error
    preset = {*supplied, *component.implied}
    waits_for = left_to_the_caller(signature, component.arguments, preset, called_with)
    arguments, problems = check_arguments(component.name, signature, component.arguments, {*preset, *waits_for})
    if problems:
        raise ConfigError([Problem(component.location, problem.message) for problem in problems])
    arguments |= component.implied
    arguments |= {name: value for name, value in supplied.items() if name in signature.names()}
    is_factory = inspect.isclass(target) or inspect.isroutine(target) or isinstance(target, partial)
    if waits_for or (called_with and not is_factory):
        return partial(target, **arguments) if arguments else target
    try:
        return target(**arguments)
    except SoftmaxceError:
        raise
    except Exception as error:  # a constructor of the user's may raise anything
        if ran_out_of_memory(error):
            raise
        raise ConfigError([Problem(component.location, f"{component.name}: {in_one_line(error)}")]) from error
