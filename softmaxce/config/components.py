"""From a name and its arguments to a callable, checked against the callable's own signature.

The signature is the schema: nothing is declared twice. It is read from the source text, without importing it, so that
a mistake in a config is answered before torch is loaded and before any user's code runs; where the text does not tell
(a decorated function, a name imported from elsewhere), the real signature is read when the component is built.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .. import argument_types
from ..errors import ConfigError, Problem, SoftmaxceError, in_one_line, ran_out_of_memory
from . import registry

TORCHVISION = "softmaxce.models.torchvision_models:torchvision_model"  # what torchvision:NAME stands for
# module:Name or file.py:Name, as Python and as JSON Schema read it: identifiers of ASCII, or of any letters beyond it.
_IDENTIFIER = r"[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*"
OWN_CODE = rf"^(.*\.py|{_IDENTIFIER}(\.{_IDENTIFIER})*):{_IDENTIFIER}$(?!\n)"
REQUIRED = object()  # the default of an argument that has none


@dataclass(frozen=True)
class Argument:
    """One argument of a component: its name, the type a config may give it, and its default."""

    name: str
    type: Any = Any
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether a config has to give it."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class Signature:
    """What a component takes.

    Attributes:
        arguments: in order.
        doc: its docstring.
        takes_any: it has a **kwargs, so unknown names cannot be called wrong.
        leading: of a function, how many of its arguments can be given by position and have no default; 0 of a class.
    """

    arguments: tuple[Argument, ...]
    doc: str = ""
    takes_any: bool = False
    leading: int = 0

    def names(self) -> list[str]:
        """The names of all arguments, the supplied ones too."""
        return [argument.name for argument in self.arguments]


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

    def plain(self) -> dict[str, Any]:
        """As a config writes it."""
        return {"name": self.name, **self.arguments}


class NotStatic(Exception):
    """The source text does not tell; ask the object itself."""


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


MENUS: dict[str, Mapping[str, str]] = {
    "losses": registry.LOSSES,
    "models": registry.MODELS,
    "datasets": registry.DATASETS,
    "optimizers": registry.OPTIMIZERS,
    "schedules": registry.SCHEDULES,
    "augmentations": registry.AUGMENTATIONS,
}


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near. Case does not count."""
    words = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), list(words), n=1, cutoff=0.6)
    return f"; did you mean '{words[near[0]]}'?" if near else ""


# -- signatures -------------------------------------------------------------------------------------------------------


def read_signature(target: str) -> Signature:
    """The signature of `module:Name` or `file.py:Name`, read from its source text without importing anything.

    Raises:
        NotStatic: if the text does not tell.
        ValueError: with the likely remedy, if the module, the file or the name in it does not exist.
    """
    module, _, name = target.rpartition(":")
    file = _source_file(module)
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise ValueError(f"{file}:{error.lineno}:{error.offset}: {error.msg}") from None
    node = next((n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name), None)
    if node is None:
        bound, open_ended = _top_level_names(tree)
        if name in bound or open_ended:
            raise NotStatic(target)
        raise ValueError(f"{file.name} defines no '{name}'{suggestion(name, bound)}")
    doc = ast.get_docstring(node) or ""
    function: ast.stmt | None = node
    if isinstance(node, ast.ClassDef):
        function = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or node.decorator_list:
        raise NotStatic(target)
    return _static_signature(function, doc, skip_self=isinstance(node, ast.ClassDef))


def signature_of(component: Callable[..., Any]) -> Signature:
    """The signature of an object at hand, in the same form; types are taken where they are simple."""
    arguments = []
    takes_any = False
    leading = 0
    for parameter in inspect.signature(component).parameters.values():
        if parameter.kind <= parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty:
            leading += not inspect.isclass(component)
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            annotation = parameter.annotation
            text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
            arguments.append(Argument(parameter.name, _type_of_text(text), default))
    return Signature(tuple(arguments), inspect.getdoc(component) or "", takes_any, leading)


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


def _source_file(module: str) -> Path:
    if module.endswith(".py"):
        file = Path(module)
        if not file.is_file():
            raise ValueError(f"there is no file '{module}' (looked from {Path.cwd()})")
        return file
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # a top-level name is found without being run
    except ValueError:  # __main__ and the like have no spec
        spec = None
    if spec is None:
        raise ValueError(f"there is no module '{top}' to import (looked in {Path.cwd()} and the installed packages)")
    if not rest:
        if spec.origin is None or not spec.origin.endswith(".py"):
            raise NotStatic(module)
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        for file in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if file.is_file():
                return file
    raise NotStatic(module)  # an extension module, or a path hook's business


def _top_level_names(tree: ast.Module) -> tuple[set[str], bool]:
    """The names a module binds at its top level, and whether others may appear (a star import, __getattr__)."""
    names: set[str] = set()
    open_ended = False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            open_ended |= node.name == "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            open_ended = True
        else:
            names.update(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return names, open_ended or "*" in names


def _static_signature(function: ast.FunctionDef, doc: str, skip_self: bool) -> Signature:
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_self else 0 :]
    pairs += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    arguments = tuple(Argument(a.arg, _type_of(a.annotation), _literal(default)) for a, default in pairs)
    leading = 0 if skip_self else len(positional) - len(spec.defaults)
    return Signature(arguments, doc, spec.kwarg is not None, leading)


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:  # a default that is no literal; only running the code would tell
        return ...  # it has a default, but only running the code would tell which


NAMES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "tuple": list,  # YAML has one kind of list
    "dict": dict,
    "List": list,
    "Tuple": list,
    "Dict": dict,
    "Sequence": list,
    "NoneType": None,  # as an annotation at hand prints it
    **{name: value for name, value in vars(argument_types).items() if get_origin(value) in (Annotated, Literal)},
}


def _type_of_text(text: str) -> Any:
    try:
        return _type_of(ast.parse(text, mode="eval").body)
    except SyntaxError:  # an annotation that is no type takes any value
        return Any


def _type_of(node: ast.expr | None) -> Any:
    """The type an annotation's text means, as far as a config can give it; Any where it says nothing of the kind."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _type_of_text(text)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return NAMES.get(name, Any)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _union(_type_of(left), _type_of(right))
        case ast.Subscript(value=ast.Name(id=outer) | ast.Attribute(attr=outer), slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if outer == "Literal":
                return Literal.__getitem__(tuple(_literal(item) for item in items))
            if outer == "Annotated":
                return _type_of(items[0])
            types = [_type_of(item) for item in items if not (isinstance(item, ast.Constant) and item.value is ...)]
            if outer == "Optional":
                return _union(*types, None)
            if outer == "Union":
                return _union(*types)
            if NAMES.get(outer) is list:
                inside = types[0] if len(set(map(str, types))) == 1 else Any
                return list.__class_getitem__(inside)
            return NAMES.get(outer, Any)
        case _:
            return Any


def _union(*types: Any) -> Any:
    """A union without what a config cannot give (a Tensor, say); Any if nothing is left."""
    known = tuple(t for t in types if t is not Any)
    return Union[known] if any(t is not None for t in known) else Any  # noqa: UP007 - the members are not known here


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


def whole_numbers(arguments: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """The arguments with 1e3 and 2.0 as whole numbers where nothing but those will do, as JSON Schema takes them."""
    types = {argument.name: argument.type for argument in signature.arguments}
    return {
        name: value if name not in types or check_value(value, types[name]) is None else _whole(value, types[name])
        for name, value in arguments.items()
    }


def _whole(value: Any, type_: Any) -> Any:
    def as_whole(item: Any) -> Any:
        return int(item) if isinstance(item, float) and item.is_integer() else item

    changed = [as_whole(item) for item in value] if isinstance(value, list) else as_whole(value)
    return changed if check_value(changed, type_) is None else value


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
