"""The recipes that are installed with softmaxce, and a recipe copied with its comments."""

import shlex
from importlib import resources
from pathlib import Path

from ..errors import ConfigError, Problem, suggestion
from . import yamlfile
from .keys import KEYS, Config, signature_of_section
from .schema import attribute_docs


def recipes() -> dict[str, Path]:
    """The recipes installed with softmaxce, name -> file."""
    folder = resources.files("softmaxce.configs")
    files = sorted(Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {file.stem: file for file in files}


def find(config: str) -> tuple[Path, str]:
    """The file that `--config` refers to, and its name in messages.

    Raises: ConfigError if it is neither a file nor a recipe.
    """
    path = Path(config)
    if path.is_file():
        return path, config
    known = recipes()
    if config in known:  # a folder of that name usually contains the data
        return known[config], f"configs/{config}.yaml"
    if path.exists():
        return path, config
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        hint = f"; the recipe of that name is --config {path.stem}" if path.stem in known else ""
        raise ConfigError([Problem("--config", f"there is no file '{config}'{hint}")])
    hint = suggestion(config, known) or "; `softmaxce config list` shows the recipes"
    raise ConfigError([Problem("--config", f"there is no file and no recipe called '{config}'{hint}")])


MODELINE = "# yaml-language-server: $schema="


def headline(text: str) -> str:
    """A recipe's summary: its first comment that is neither the modeline nor a command."""
    comments = [
        line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and not line.startswith(MODELINE)
    ]
    return next((line for line in comments if line and not line.startswith("softmaxce ")), "")


def commented_copy(text: str, target: Path) -> str:
    """A recipe to edit: its text, with the path of the schema, its command, and the keys left at their defaults."""
    schema_file = Path(str(resources.files("softmaxce.configs"))) / "schema.json"
    lines = [line for line in text.splitlines() if not line.startswith(MODELINE)]
    lines = [f"{MODELINE}{schema_file}", f"# softmaxce train --config {shlex.quote(str(target))}", "#", *lines]
    present = set(yamlfile.parse(text, str(target)).data)
    docs = attribute_docs(Config)
    rest = []
    for argument in signature_of_section(Config, KEYS).arguments:
        if argument.name not in present:
            value = yamlfile.dump({argument.name: argument.default}).strip()
            rest.append(f"# {value}  # {docs[argument.name]}")
    return "\n".join([*lines, "", "# Every other key, with its default:", *rest, ""])
