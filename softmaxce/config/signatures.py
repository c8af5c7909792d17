"""A component's signature, read from its source text without importing it."""

import ast
import contextlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_origin

from .. import argument_types
from ..errors import suggestion
from ..files import read_file
from . import rules

MAX_SOURCE = 4 << 20  # bytes of a Python file
REQUIRED = object()  # the default of an argument that has none


@dataclass(frozen=True)
class Argument:
    """One argument of a component: its name, the type a config may give it, and its default."""

    name: str
    type: Any = Any
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Signature:
    """The arguments of a component.

    Attributes:
        arguments: in order.
        doc: its docstring.
        takes_any: it has **kwargs, so that no name is unknown.
        leading: the number of a function's positional arguments without a default; 0 for a class.
    """

    arguments: tuple[Argument, ...]
    doc: str = ""
    takes_any: bool = False
    leading: int = 0

    def names(self) -> list[str]:
        """The names of all arguments, including those that softmaxce supplies."""
        return [argument.name for argument in self.arguments]


@contextlib.contextmanager
def current_folder_last() -> Iterator[None]:
    """The current folder is on the module search path, after everything that is installed, while a user's
    `module:Name` is looked up; so a file in it never takes the place of a module that something else needs."""
    folder = os.getcwd()  # noqa: PTH109 - as an entry of sys.path
    sys.path.append(folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed it
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


class NotStatic(Exception):
    """The source text does not determine the signature; inspect the object itself."""


def read_signature(target: str) -> Signature:
    """The signature of `module:Name` or `file.py:Name`, read from its source text without importing anything.

    The types of torch's optimizers have the ranges that torch's constructors check.

    Raises:
        NotStatic: if the text does not determine it.
        ValueError: with the likely remedy, if the module, the file or the name in it does not exist.
    """
    signature = _read_signature(target)
    if not target.startswith("torch.optim."):
        return signature
    types = rules.TORCH_OPTIMIZERS
    return replace(signature, arguments=tuple(replace(a, type=types.get(a.name, a.type)) for a in signature.arguments))


def _read_signature(target: str) -> Signature:
    module, _, name = target.rpartition(":")
    file = source_file(module)
    tree = _parse(file)
    node = next((n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name), None)
    if node is None:
        bound, open_ended = _top_level_names(tree)
        if name in bound or open_ended:
            raise NotStatic(target)
        raise ValueError(f"{file.name} defines no '{name}'{suggestion(name, bound)}")
    doc = ast.get_docstring(node) or ""
    function: ast.stmt | None = node
    base = None
    if isinstance(node, ast.ClassDef):
        function = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        base = _base_in_package(module, tree, node)
    if function is None and base is not None:
        return replace(read_signature(base), doc=doc)
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or node.decorator_list:
        raise NotStatic(target)
    signature = _static_signature(function, doc, skip_self=isinstance(node, ast.ClassDef))
    if base is not None and function.args.vararg and function.args.kwarg:
        return _with_arguments_of(read_signature(base), signature, function)
    return signature


def top_level_definitions(file: str) -> list[str]:
    """The functions and classes that a Python file defines, in order. Raises: ValueError, if it cannot be read."""
    tree = _parse(source_file(file))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _parse(file: Path) -> ast.Module:
    try:
        return _tree(read_file(file, MAX_SOURCE), str(file))
    except SyntaxError as error:
        raise ValueError(f"{file}:{error.lineno}:{error.offset}: {error.msg}") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except (RecursionError, MemoryError):  # what Python's parser raises on expressions nested too deeply
        raise ValueError(f"{file}: is nested too deeply") from None


@lru_cache(maxsize=32)  # a sweep's configs name the same few files many times
def _tree(source: str | bytes, name: str) -> ast.Module:
    return ast.parse(source, name)


def _base_in_package(module: str, tree: ast.Module, node: ast.ClassDef) -> str | None:
    """The `module:Name` of the first base of a class of softmaxce's own, if that is defined in the same package."""
    if module.partition(".")[0] != __name__.partition(".")[0] or not node.bases:
        return None
    name = ast.unparse(node.bases[0])
    if any(isinstance(n, ast.ClassDef) and n.name == name for n in tree.body):
        return f"{module}:{name}"
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and line.level == 1 and any(alias.name == name for alias in line.names):
            return f"{module.rpartition('.')[0]}.{line.module}:{name}"
    return None


def _with_arguments_of(base: Signature, own: Signature, function: ast.FunctionDef) -> Signature:
    """A class's signature with its base's arguments in place of *args and **kwargs, in the order that Python has."""
    positional = len(own.arguments) - len(function.args.kwonlyargs)
    inherited = [argument for argument in base.arguments if argument.name not in own.names()]
    arguments = (*own.arguments[:positional], *inherited, *own.arguments[positional:])
    return replace(own, arguments=arguments, takes_any=base.takes_any)


def signature_of(component: Callable[..., Any]) -> Signature:
    """The signature of an imported object, in the same form; complex annotations count as Any."""
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


def source_file(module: str) -> Path:
    """The file of a `module` or `file.py`, found without importing anything. Raises: ValueError, NotStatic."""
    if module.endswith(".py"):
        file = Path(module)
        if not file.is_file():
            raise ValueError(f"there is no file '{module}' (in {Path.cwd()})")
        return file
    top, *rest = module.split(".")
    try:
        with current_folder_last():
            spec = importlib.util.find_spec(top)  # finds a top-level module without executing it
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
    raise NotStatic(module)  # an extension module, or a path hook


def _top_level_names(tree: ast.Module) -> tuple[set[str], bool]:
    """The names a module binds at its top level, and whether there may be others (a star import, __getattr__)."""
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
    except ValueError:  # not a literal
        return ...  # there is a default, but only running the code would show its value


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
    "NoneType": None,  # as inspect prints the annotation None
    **{name: value for name, value in vars(argument_types).items() if get_origin(value) in (Annotated, Literal)},
}


def _type_of_text(text: str) -> Any:
    try:
        return _type_of(ast.parse(text, mode="eval").body)
    except SyntaxError:  # an annotation that is no expression accepts any value
        return Any


def _type_of(node: ast.expr | None) -> Any:
    """The type that an annotation stands for, restricted to values that a config can hold; else Any."""
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
    """A union without the members that a config cannot hold, such as Tensor; Any if none is left."""
    known = tuple(t for t in types if t is not Any)
    return Union[known] if any(t is not None for t in known) else Any  # noqa: UP007 - X | Y needs the members
