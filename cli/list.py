"""`softmaxce list`: what a config can name, with arguments, defaults and a line of doc."""

import enum
import json as jsonlib
from typing import Annotated, Any

import typer
from rich.text import Text

from softmaxce.config.keys import SUPPLIED
from softmaxce.config.registry import MENUS, TORCHVISION
from softmaxce.config.signatures import Signature, read_signature
from softmaxce.config.values import describe, show
from softmaxce.report import console

MenuName = enum.StrEnum("MenuName", {name: name for name in MENUS})  # type: ignore[misc]
SECTION = {"losses": "loss", "models": "model", "datasets": "data", "optimizers": "optimizer", "schedules": "schedule"}


def list_menus(
    menu: Annotated[MenuName | None, typer.Argument(help="One menu; all of them if left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the losses, models, datasets, optimizers, schedules and augmentations a config can name."""
    chosen = [menu.value] if menu else list(MENUS)
    if json:
        typer.echo(jsonlib.dumps({name: _entries(name) for name in chosen}, indent=2))
        return
    out = console.stdout()
    for index, name in enumerate(chosen):
        out.print(("\n" if index else "") + name, style="bold")
        for entry, about in _entries(name).items():
            console.print_entry(out, 2, Text(entry, "cyan"), Text(about["doc"]))
            for argument in about["arguments"]:
                default = "needed" if argument["required"] else f"= {show(argument['default'])}"
                console.print_entry(out, 6, Text(f"{argument['name']} {default}"), Text(argument["type"], "dim"))
    out.print("\nYour own code: module:Name or file.py:Name in place of a name (see the README).", soft_wrap=True)


def _entries(menu: str) -> dict[str, dict[str, Any]]:
    supplied = set(SUPPLIED.get(SECTION.get(menu, ""), ()))
    result = {}
    entries = dict(MENUS[menu])
    if menu == "models":
        entries["torchvision:NAME"] = TORCHVISION
        supplied.add("architecture")  # it is the NAME
    for name, target in entries.items():
        signature = read_signature(target)
        result[name] = {"doc": _first_sentence(signature.doc, target), "arguments": _arguments(signature, supplied)}
    return result


def _arguments(signature: Signature, supplied: set[str]) -> list[dict[str, Any]]:
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
