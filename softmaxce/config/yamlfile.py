"""Reads YAML 1.2, and records where every key and value was written.

PyYAML implements YAML 1.1, in which `lr: 3e-4` is text, `no` is false, `010` is 8 and the last of two equal keys wins.
Here scalars follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema) and a repeated key is refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, Problem
from ..files import open_file

# No config needs more; larger files are refused before they take seconds to parse, or fill the memory.
MAX_BYTES = 1 << 18
MAX_DEPTH = 50
MAX_NODES = 10_000  # aliases may repeat a node; this bounds what they expand to
MAX_TEXT = 10_000  # characters in one scalar
MAX_DIGITS = 300  # of an integer

NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)$"
)
CORE = (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT))

Path_ = tuple[str | int, ...]  # the keys and list positions that lead to a value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to hold them
    depth = 0
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise self._too_much(f"nested more than {MAX_DEPTH} levels deep")
        if self.nodes > MAX_NODES:
            raise self._too_much(f"more than {MAX_NODES:,} values")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_TEXT:
            message = f"a string of {len(node.value):,} characters; {MAX_TEXT:,} are the limit"
            raise yaml.composer.ComposerError(None, None, message, node.start_mark)
        self.depth -= 1
        return node

    def _too_much(self, message: str) -> yaml.composer.ComposerError:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return yaml.composer.ComposerError(None, None, f"{message}; that is not a config", mark)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # indent list items under their key

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # PyYAML writes these YAML 1.1 line breaks unescaped in single quotes, where they are read back as spaces
        style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _tag, _pattern in CORE:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)


@dataclass(frozen=True)
class Document:
    """A YAML document's plain data, and the position of every key and value in it.

    Attributes:
        name: the file's name, as the user wrote it.
        data: dicts, lists, str, int, float, bool, None.
        keys: path -> (line, column) of the key (or of the list item) it ends with, counted from 1.
        values: path -> (line, column) of the value.
        folder: where files that it names are looked for after the current folder; None for nowhere.
    """

    name: str
    data: Any
    keys: dict[Path_, tuple[int, int]]
    values: dict[Path_, tuple[int, int]]
    folder: Path | None = None

    def location(self, path: Path_, *, of_value: bool = False) -> str:
        """`file:line:column` of `path`, or of the nearest container of it that was written; the name if no file was."""
        positions = self.values if of_value else self.keys
        if not self.values:
            return self.name
        while path and path not in positions:
            path = path[:-1]
        return ":".join(map(str, (self.name, *positions.get(path, (1, 1)))))


def read(file: Path, name: str | None = None) -> Document:
    """Read a YAML file.

    Args:
        file: its path.
        name: what to call it in messages; its path if not given.
    Raises: ConfigError if it cannot be read, is too large, or is not valid YAML 1.2 of plain data.
    """
    name = name or str(file)
    try:
        # a pipe that is open already, as <(command) makes one, is no file but has an end
        with file.open("rb") if file.parent == Path("/dev/fd") else open_file(file) as stream:
            raw = stream.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise ConfigError([Problem(name, "is a folder; give the YAML file in it")]) from None
    except OSError as error:
        raise ConfigError([Problem(name, f"cannot be read: {error.strerror}")]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError([Problem(name, f"is larger than {MAX_BYTES} bytes; that is not a config")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise ConfigError([Problem(name, message)]) from None
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Parse one YAML document. Raises ConfigError, with the location, if it is not valid YAML 1.2 of plain data."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, name)]) from None
    except yaml.reader.ReaderError as error:  # it has a position, but no mark
        raise ConfigError([_character_problem(error, text, name)]) from None
    except (ValueError, OverflowError):  # a bug of PyYAML's: \UFFFFFFFF, or a %YAML version of thousands of digits
        assert loader is not None
        mark = loader.get_mark()
        location = f"{name}:{mark.line + 1}:{mark.column + 1}"
        raise ConfigError([Problem(location, "is not valid YAML: a number here is out of range")]) from None
    builder = _Builder(name)
    data = builder.build(node, (), 0) if node is not None else None
    if builder.problems:
        raise ConfigError(builder.problems)
    return Document(name, data, builder.keys, builder.values)


def plain(data: Any, name: str) -> Any:
    """A copy of data that did not come from a file, checked against the limits of one.

    Args:
        data: dicts, lists, str, int, float, bool and None; tuples count as lists.
        name: what to call it in messages.
    Raises: ConfigError if it holds anything else, or more than a file may hold.
    """
    return _Copier(name).copy(data, "", 0)


class _Copier:
    """Copies plain data and counts what it copies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes = 0
        self.characters = 0

    def copy(self, value: Any, path: str, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._error("", f"holds more than {MAX_NODES:,} values or {MAX_DEPTH} levels; that is not a config")
        if isinstance(value, dict):
            return {
                self._key(key, path): self.copy(item, f"{path}.{key}" if path else key, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.copy(item, f"{path}.{i}", depth + 1) for i, item in enumerate(value)]
        if isinstance(value, str):
            return self._text(value, path)
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            if value.bit_length() > MAX_DIGITS * 10 // 3:
                raise self._error(path, "is too large a number")
            return value
        raise self._error(path, f"a config is plain data, got {type(value).__name__}")

    def _key(self, key: Any, path: str) -> str:
        if not isinstance(key, str):
            raise self._error(path, f"a key must be text, got {type(key).__name__}")
        return self._text(key, path)

    def _text(self, text: str, path: str) -> str:
        self.characters += len(text)
        if len(text) > MAX_TEXT:
            raise self._error(path, f"a string of {len(text):,} characters; {MAX_TEXT:,} are the limit")
        if self.characters > MAX_BYTES:
            raise self._error("", f"holds more than {MAX_BYTES:,} characters; that is not a config")
        if unfit := _unfit(text):
            raise self._error(path, f"the character U+{ord(unfit):04X} is not text")
        return text

    def _error(self, path: str, message: str) -> ConfigError:
        return ConfigError([Problem(self.name, f"{path}: {message}" if path else message)])


def dump(data: Any) -> str:
    """Plain data as YAML text that `parse` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _character_problem(error: yaml.reader.ReaderError, text: str, name: str) -> Problem:
    before = text[: error.position]
    line, column = before.count("\n") + 1, error.position - before.rfind("\n")
    return Problem(f"{name}:{line}:{column}", f"is not valid YAML: the character U+{ord(text[error.position]):04X}")


def _syntax_problem(error: yaml.MarkedYAMLError, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    location = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    what = error.problem or "it cannot be parsed"
    remedy = ""
    if "\\t" in what:
        remedy = "; indent with spaces, not tabs"
    elif "expected a single document" in str(error):
        what, remedy = "a second document begins here", "; a config is one document"
    elif "mapping values are not allowed" in what:
        remedy = "; check the indentation, or quote the text if it holds ': '"
    elif "expected <block end>" in what:
        remedy = "; check the indentation: this line does not line up with the ones above it"
    elif "expected ',' or" in what:
        remedy = "; a bracket or a comma is missing"
    elif error.context and "quoted scalar" in error.context:
        remedy = "; a quote is missing"
    return Problem(location, f"is not valid YAML: {what}{remedy}")


class _Builder:
    """Turns PyYAML's nodes into plain data, noting positions and collecting mistakes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: dict[Path_, tuple[int, int]] = {}
        self.values: dict[Path_, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self, node: Any, path: Path_, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            message = f"expands to more than {MAX_NODES:,} values or {MAX_DEPTH} levels; use fewer aliases"
            raise ConfigError([self._problem(node, message)])
        self.values[path] = _position(node)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            self.problems.append(self._problem(node, _not_plain(node.tag)))
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*path, i), depth) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        return self._scalar(node)

    def _item(self, node: Any, path: Path_, depth: int) -> Any:
        self.keys[path] = _position(node)
        return self.build(node, path, depth + 1)

    def _mapping(self, node: Any, path: Path_, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(self._problem(key_node, "a key must be plain text"))
                continue
            key = self._text(key_node)
            if key in result:
                line = self.keys[(*path, key)][0]
                message = f"'{key}' was already set on line {line}; remove one of the two"
                self.problems.append(self._problem(key_node, message))
                continue
            self.keys[(*path, key)] = _position(key_node)
            result[key] = self.build(value_node, (*path, key), depth + 1)
        return result

    def _scalar(self, node: Any) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text = node.value
        if kind == "str":
            return self._text(node)
        if kind == "null" and NULL.match(text):
            return None
        if kind == "bool" and BOOL.match(text):
            return text.lower() == "true"
        if kind == "int" and INT.match(text):
            if len(text) > MAX_DIGITS:
                self.problems.append(self._problem(node, "is too large a number"))
                return 0
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if kind == "float" and FLOAT.match(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        self.problems.append(self._problem(node, _not_plain(node.tag)))
        return None

    def _text(self, node: Any) -> str:
        text: str = node.value
        if unfit := _unfit(text):
            self.problems.append(self._problem(node, f"the character U+{ord(unfit):04X} is not text"))
        return text

    def _problem(self, node: Any, message: str) -> Problem:
        return Problem(":".join(map(str, (self.name, *_position(node)))), message)


def _unfit(text: str) -> str:
    """The first character that is not text, NUL or a lone surrogate; else an empty string."""
    return next((character for character in text if character == "\0" or "\ud800" <= character <= "\udfff"), "")


def _not_plain(tag: str) -> str:
    tag = tag if len(tag) <= 60 else tag[:57] + "..."
    return f"the tag '{tag}' is not allowed here; a config is plain data"


def _position(node: Any) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
