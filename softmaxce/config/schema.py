"""The config for editors and for people who start one: its JSON Schema, and a recipe's commented copy."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from . import registry
from .components import OWN_CODE
from .keys import COMPONENTS, KEYS, SUPPLIED, Config, Data, EarlyStopping, Normalize, signature_of_section
from .registry import TORCHVISION
from .signatures import Argument, Signature, read_signature


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config file: every key, every name on a menu, every argument."""
    root = _section(signature_of_section(Config, KEYS), Config)
    properties = root["properties"]
    for key, menu in COMPONENTS.items():
        properties[key] |= _component(menu, SUPPLIED[key])
    data, definitions = _data()
    properties["data"] |= data
    properties["early_stopping"] |= {"anyOf": [_section(signature_of_section(EarlyStopping)), {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "softmaxce config",
        **root,
        "$defs": {
            "torchvision": {"enum": [f"torchvision:{name}" for name in registry.torchvision_names()]},
            **definitions,
        },
    }


def _section(signature: Signature, documented: type | None = None) -> dict[str, Any]:
    docs = attribute_docs(documented) if documented else {}
    properties = {}
    for argument in signature.arguments:
        properties[argument.name] = _argument(argument)
        if argument.name in docs:
            properties[argument.name]["description"] = docs[argument.name]
    required = [argument.name for argument in signature.arguments if argument.required]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": signature.takes_any,
    }


def _argument(argument: Argument) -> dict[str, Any]:
    result = TypeAdapter(argument.type).json_schema()
    if not argument.required and argument.default is not ...:
        result["default"] = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    return result


def _component(menu: Mapping[str, str], supplied: tuple[str, ...]) -> dict[str, Any]:
    """A name on the menu, the user's module:Name, or a mapping of a name and its arguments."""
    own = {"type": "string", "pattern": OWN_CODE}
    choices: list[dict[str, Any]] = [{"enum": list(menu)}]
    for name, target in menu.items():
        choices.append(_mapping({"const": name}, read_signature(target), supplied))
    if menu is registry.MODELS:
        own["pattern"] = OWN_CODE.replace("^", "^(?!torchvision:[^:]*$)", 1)
        names = {"$ref": "#/$defs/torchvision"}
        choices += [names, _mapping(names, read_signature(TORCHVISION), (*supplied, "architecture"))]
    choices += [own, {"type": "object", "properties": {"name": own}, "required": ["name"]}]
    return {"anyOf": choices}


def _mapping(name: dict[str, Any], signature: Signature, supplied: tuple[str, ...]) -> dict[str, Any]:
    open_ones = tuple(argument for argument in signature.arguments if argument.name not in supplied)
    section = _section(Signature(open_ones, signature.doc, signature.takes_any))
    section["properties"] = {"name": name, **section["properties"]}
    section["required"] = ["name", *section.get("required", [])]
    if signature.doc:
        section["description"] = signature.doc.split("\n")[0]
    return section


def _data() -> tuple[dict[str, Any], dict[str, Any]]:
    """The data section: its own keys, defined once, in every choice, and beside them those of the source."""
    own = _section(signature_of_section(Data), Data)["properties"]
    own["augment"] = {
        "type": "array",
        "items": _component(registry.AUGMENTATIONS, SUPPLIED["augment"]),
        "description": own["augment"]["description"],
    }
    numbers = _section(signature_of_section(Normalize))
    own["normalize"] |= {"anyOf": [{"enum": ["auto", "imagenet", "none"]}, numbers]}
    result = _component(registry.DATASETS, SUPPLIED["data"])
    for choice in result["anyOf"]:
        if "properties" in choice:
            name = choice["properties"]["name"]
            references = {key: {"$ref": f"#/$defs/data.{key}"} for key in own if key != "name"}
            choice["properties"] = {"name": name, **references, **choice["properties"]}
    return result, {f"data.{key}": definition for key, definition in own.items() if key != "name"}


def attribute_docs(documented: type) -> dict[str, str]:
    """What a dataclass's docstring says of each attribute."""
    body = (documented.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", body, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}
