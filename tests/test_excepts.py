"""No failure is swallowed: an error is reported, raised again, or harmless for the reason beside its handler."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Handler:
    """An except clause or a contextlib.suppress.

    Attributes:
        location: file:line.
        types: the names of the exceptions, without their modules.
        body: what is done about them.
        name: the variable that holds the error.
        comment: what is written beside it.
    """

    location: str
    types: list[str]
    body: list[ast.stmt]
    name: str | None
    comment: str

    @property
    def raises(self) -> bool:
        return any(isinstance(node, ast.Raise) for statement in self.body for node in ast.walk(statement))

    def mentions(self, name: str | None) -> bool:
        nodes = (node for statement in self.body for node in ast.walk(statement))
        return any(isinstance(node, ast.Name) and node.id == name for node in nodes)


def handlers() -> Iterator[Handler]:
    for folder in ("softmaxce", "cli"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            lines = file.read_text().splitlines()
            for node in ast.walk(ast.parse(file.read_text())):
                location = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.ExceptHandler):
                    types = names(node.type or ast.Name("BaseException"))
                    yield Handler(location, types, node.body, node.name, beside(lines, node.lineno))
                elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
                    yield Handler(location, names(ast.Tuple(node.args)), [], None, beside(lines, node.lineno))


def beside(lines: list[str], number: int) -> str:
    """The comment on a line, on one of its own above it, or on one of its own below it."""
    _, hash_, comment = lines[number - 1].partition("  # ")
    if hash_:
        return comment
    around = [lines[number - 2].strip(), lines[number].strip()]
    return next((line.removeprefix("# ") for line in around if line.startswith("# ")), "")


def names(types: ast.AST) -> list[str]:
    """`Name` of each type, without its module."""
    members = types.elts if isinstance(types, ast.Tuple) else [types]
    return [ast.unparse(member).removeprefix("*").split(".")[-1] for member in members]


HANDLERS = list(handlers())


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.location)
def test_an_error_is_reported_or_raised_or_a_comment_gives_the_reason(handler: Handler) -> None:
    if "BaseException" in handler.types:
        assert isinstance(handler.body[-1], ast.Raise) or handler.comment, handler.location
    if "Exception" in handler.types:
        assert handler.comment, "whose code is it that may raise anything?"
    if not handler.raises and not handler.mentions(handler.name):
        assert handler.comment, "why is nothing lost?"


def test_memory_that_ran_out_is_no_fault_of_the_code_that_is_called() -> None:
    for handler in HANDLERS:
        if "Exception" in handler.types:
            assert handler.mentions("ran_out_of_memory"), handler.location
            assert handler.mentions(handler.name), f"{handler.location}: the error is neither reported nor raised"


@pytest.mark.parametrize("module", ["softmaxce.data.decode", "softmaxce.data.torchvision_sets"])
def test_a_tuple_of_types_names_no_base_class_of_all(module: str) -> None:
    import importlib

    damaged = importlib.import_module(module).DAMAGED
    assert not {Exception, BaseException} & set(damaged)
    assert not any(issubclass(KeyboardInterrupt, kind) for kind in damaged)
