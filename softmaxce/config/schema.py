"""The JSON Schema of a config, for editors and other programs."""

import re
from typing import Any

from pydantic import TypeAdapter

from .keys import KEYS, SECTIONS, Config, Data, Normalize, Sampler, signature_of_section
from .registry import OWN_CODE, REGISTRIES, Registry
from .signatures import Argument, Signature, read_signature

WEIGHTS_FROM = {
    "type": ["string", "null"],
    "description": "start with the weights of another run: its folder or a checkpoint",
}


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config file: every key, every registered name, every argument."""
    root = _section(signature_of_section(Config, KEYS), Config)
    properties = root["properties"]
    for key in ("model", "loss", "optimizer", "schedule"):
        properties[key] |= _component(REGISTRIES[key])
    for choice in properties["model"]["anyOf"]:
        if "properties" in choice:
            choice["properties"]["weights_from"] = {"$ref": "#/$defs/model.weights_from"}
    data, definitions = _data()
    properties["data"] |= data
    for key, section in SECTIONS.items():
        properties[key] |= {"anyOf": [_section(signature_of_section(section), section), {"enum": [None, "none"]}]}
    families = {
        family.prefix: {"type": "string", "pattern": rf"^{family.prefix}:\w+(\.\w+)?$"}  # an optional package's
        if family.tagged
        else {"enum": [f"{family.prefix}:{name}" for name in family.names()]}
        for registry in REGISTRIES.values()
        for family in registry.families
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "softmaxce config",
        **root,
        "$defs": {**families, **definitions, "model.weights_from": WEIGHTS_FROM},
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
    result = _with_none(TypeAdapter(argument.type).json_schema())
    if not argument.required and argument.default is not ...:
        result["default"] = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    return result


def _with_none(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that accepts `none` where it accepts null, and null where it accepts `none`."""
    choices = schema.get("anyOf", [schema])
    if {"type": "null"} in choices:
        choices.append({"const": "none"})
    for choice in choices:
        if "none" in choice.get("enum", ()):
            choice["enum"].append(None)
            choice.pop("type", None)
    return schema


def _component(registry: Registry) -> dict[str, Any]:
    """A registered name, the user's module:Name, or a mapping of a name and its arguments."""
    own = {"type": "string", "pattern": OWN_CODE}
    choices: list[dict[str, Any]] = [{"enum": list(registry.targets)}]
    for name, target in registry.targets.items():
        choices.append(_mapping({"const": name}, read_signature(target), registry.supplied))
    for family in registry.families:
        own["pattern"] = own["pattern"].replace("^", f"^(?!{family.prefix}:[^:]*$)", 1)
        names = {"$ref": f"#/$defs/{family.prefix}"}
        choices += [names, _mapping(names, read_signature(family.target), (*registry.supplied, family.argument))]
    choices += [own, {"type": "object", "properties": {"name": own}, "required": ["name"]}]
    return {"anyOf": choices}


def _mapping(name: dict[str, Any], signature: Signature, supplied: tuple[str, ...]) -> dict[str, Any]:
    arguments = tuple(argument for argument in signature.arguments if argument.name not in supplied)
    section = _section(Signature(arguments, signature.doc, signature.takes_any))
    section["properties"] = {"name": name, **section["properties"]}
    section["required"] = ["name", *section.get("required", [])]
    if signature.doc:
        section["description"] = signature.doc.split("\n")[0]
    return section


def _data() -> tuple[dict[str, Any], dict[str, Any]]:
    """The data section, and definitions: its own keys are defined once and referred to beside each data set's."""
    own = _section(signature_of_section(Data), Data)["properties"]
    own["augment"] = {
        "type": "array",
        "items": _component(REGISTRIES["augment"]),
        "description": own["augment"]["description"],
    }
    numbers = _section(signature_of_section(Normalize))
    own["normalize"] |= {"anyOf": [{"enum": ["auto", "model", "imagenet", "none", None]}, numbers]}
    own["sampler"] |= {"anyOf": [{"enum": ["none", "balanced", None]}, _section(signature_of_section(Sampler))]}
    result = _component(REGISTRIES["data"])
    for choice in result["anyOf"]:
        if "properties" in choice:
            name = choice["properties"]["name"]
            references = {key: {"$ref": f"#/$defs/data.{key}"} for key in own if key != "name"}
            choice["properties"] = {"name": name, **references, **choice["properties"]}
    return result, {f"data.{key}": definition for key, definition in own.items() if key != "name"}


def attribute_docs(documented: type) -> dict[str, str]:
    """The descriptions of a dataclass's attributes, from its docstring."""
    body = (documented.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", body, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}
