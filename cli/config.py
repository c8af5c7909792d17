"""`softmaxce config`: list, show, copy and check configs without training."""

import json as jsonlib
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.config import recipes as config_recipes
from softmaxce.config import schema as schemas
from softmaxce.errors import ConfigError, Problem
from softmaxce.report import console

app = typer.Typer(no_args_is_help=True, help="List, show, copy and check configs without training.")


@app.command("list")
def list_recipes() -> None:
    """List the recipes that are installed with softmaxce."""
    recipes = config_recipes.recipes()
    width = max(map(len, recipes))
    for name, file in recipes.items():
        headline = config_recipes.headline(file.read_text(encoding="utf-8"))
        console.print_entry(console.stdout(), 0, Text(name.ljust(width)), Text(headline))


@app.command()
def show(name: Annotated[str, typer.Argument(help="A recipe's name, or a file.")]) -> None:
    """Print a recipe's text."""
    file, _ = config_recipes.find(name)
    streams.lines(file.read_text(encoding="utf-8"))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The recipe to start from.")],
    file: Annotated[Path | None, typer.Argument(help="The file to write; default: NAME.yaml.")] = None,
) -> None:
    """Write a commented copy of a recipe to edit."""
    source, _ = config_recipes.find(name)
    target = file or Path(f"{source.stem}.yaml")
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(config_recipes.commented_copy(source.read_text(encoding="utf-8"), target))
    except FileExistsError:
        raise ConfigError([Problem(str(target), "exists and is left as it is; choose another name")]) from None
    except OSError as error:
        raise ConfigError([Problem(str(target), f"cannot be written: {error.strerror}")]) from None
    streams.line(f"wrote {target}; train it: softmaxce train --config {shlex.quote(str(target))}")


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="A YAML file, or a recipe's name.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. optimizer.lr=0.05.")
    ] = None,
) -> None:
    """Check a config without training; report every mistake with its location."""
    config = configs.load(file, [configs.parse_override(text) for text in set_ or []])
    streams.line(
        f"{file}: ok ({config.source.name}, {config.model.name}, {config.loss.name}, {config.optimizer.name}, "
        f"{config.epochs} epochs)"
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors and other programs."""
    streams.json_text(jsonlib.dumps(schemas.schema(), indent=2))
