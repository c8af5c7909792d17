"""`softmaxce list`: what a config can name, with arguments, defaults and a line of documentation."""

import enum
import json as jsonlib
from typing import Annotated, Any

import typer
from rich.text import Text

from softmaxce import streams
from softmaxce.config.registry import REGISTRIES, Registry
from softmaxce.config.signatures import Signature, read_signature
from softmaxce.config.values import describe, show
from softmaxce.report import console

KINDS = {registry.kind: registry for registry in REGISTRIES.values()}
Kind = enum.StrEnum("Kind", {name: name for name in KINDS})  # type: ignore[misc]


def list_components(
    kind: Annotated[Kind | None, typer.Argument(help="One kind of component; default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the losses, models, datasets, optimizers, schedules and augmentations that a config can name."""
    kinds = [kind.value] if kind else list(KINDS)
    if json:
        streams.json_text(jsonlib.dumps({name: _entries(KINDS[name]) for name in kinds}, indent=2))
        return
    out = console.stdout()
    for index, name in enumerate(kinds):
        if index:
            out.print()
        out.print(name, style="bold")
        for entry, about in _entries(KINDS[name]).items():
            console.print_entry(out, 2, Text(entry, "cyan"), Text(about["doc"]))
            for argument in about["arguments"]:
                default = "required" if argument["required"] else f"= {show(argument['default'])}"
                console.print_entry(out, 6, Text(f"{argument['name']} {default}"), Text(argument["type"], "dim"))
    out.print()
    out.print("Your own code: module:Name or file.py:Name in place of a name (see the README).", soft_wrap=True)


def _entries(registry: Registry) -> dict[str, dict[str, Any]]:
    entries = {name: (target, registry.supplied) for name, target in registry.targets.items()}
    for family in registry.families:
        entries[f"{family.prefix}:NAME"] = (family.target, (*registry.supplied, family.argument))
    result = {}
    for name, (target, supplied) in entries.items():
        signature = read_signature(target)
        result[name] = {"doc": _first_sentence(signature.doc, target), "arguments": _arguments(signature, supplied)}
    return result


def _arguments(signature: Signature, supplied: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": argument.name,
            "type": describe(argument.type),
            "required": argument.required,
            "default": None if argument.required or argument.default is ... else argument.default,
        }
        for argument in signature.arguments
        if argument.name not in supplied
    ]


def _first_sentence(doc: str, target: str) -> str:
    line = doc.strip().split("\n")[0]
    return line if line and not target.startswith("torch.") else f"PyTorch's own, {target.replace(':', '.')}"
