"""The README is true: its files train, its sessions print what they say, its menus and options exist."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from softmaxce.config import registry
from softmaxce.config.keys import Config, Data, signature_of_section
from softmaxce.config.recipes import recipes
from softmaxce.errors import DONE, FAILED, INTERRUPTED, TERMINATED, USAGE

from .helpers import Softmaxce

FILE = Path(__file__).parents[1] / "README.md"
README = FILE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """The blocks that are files: their first line is their name."""
    found = {}
    for _, text in BLOCKS:
        if match := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            found[match[1]] = text
    return found


@pytest.mark.parametrize("name", ["mine.yaml", "own.yaml"])
def test_the_configs_train(name: str, softmaxce: Softmaxce, tmp_path: Path) -> None:
    for file, text in files().items():
        (tmp_path / file).write_text(text)
    assert softmaxce("config", "check", name).stdout.startswith(f"{name}: ok")
    done = softmaxce("train", "--config", name, "--epochs", "5", "--require", "accuracy>=0.85", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shell_script_runs_as_it_stands(tmp_path: Path) -> None:
    (script,) = (text for _, text in BLOCKS if text.startswith("#!"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0.95 <= float(done.stdout.splitlines()[-1]) <= 1
    assert "require accuracy>=0.95: met" in (tmp_path / "report.txt").read_text()


def test_the_python_sessions_print_what_they_say() -> None:
    failed, tried = doctest.testfile(str(FILE), module_relative=False, encoding="utf-8")
    assert tried >= 8
    assert failed == 0


def test_the_mistakes_shown_are_answered_as_shown(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (shown,) = (text for _, text in BLOCKS if text.startswith("error: mine.yaml"))
    (tmp_path / "mine.yaml").write_text(
        "epochs: 1\ndata:\n  name: digits\n  batchsize: 64\nmodel: linear\noptimizer: {name: sgd,\n     lr: 0.1x}\n"
    )
    done = softmaxce("train", "--config", "mine.yaml")
    assert done.stderr == shown
    assert done.returncode == 2


def test_the_broken_law_is_shown_as_printed(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (shown,) = (text for _, text in BLOCKS if text.startswith("$ softmaxce check-loss"))
    (tmp_path / "naive.py").write_text(files()["naive.py"])
    command, _, output = shown.partition("\n")
    done = softmaxce(*command.split()[2:])
    assert [line.rstrip() for line in done.stdout.splitlines()] == output.splitlines()
    assert done.returncode == 1


def test_the_loss_shown_keeps_the_laws_it_claims(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (tmp_path / "focal.py").write_text(files()["focal.py"])
    done = softmaxce("check-loss", "focal.py:Focal", "--skip", "compile", "--skip", "determinism")
    assert done.returncode == 0, done.stdout
    limit = ("--set", "gamma=0", "--reference", "softmax_cross_entropy", "--only", "value", "--only", "gradient")
    assert softmaxce("check-loss", "focal.py:Focal", *limit).returncode == 0


def test_every_recipe_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]*\| [^|]*\| (0\.\d+|not measured yet|yours) \|", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(recipes())
    for name, accuracy in rows:
        if accuracy.startswith("0."):
            assert accuracy in recipes()[name].read_text(), name


def test_every_key_is_in_the_reference() -> None:
    rows = " ".join(re.findall(r"^\| (`.*?) \|", README, re.MULTILINE))
    keys = set(re.findall(r"`([\w.]+)`", rows))
    components = {"model", "loss", "optimizer", "schedule"}
    fields = {argument.name for argument in signature_of_section(Config).arguments}
    wanted = (fields - {"data", "source", "augment", "recipe"}) | components
    wanted |= {f"data.{argument.name}" for argument in signature_of_section(Data).arguments}
    assert wanted <= keys


def test_the_defaults_in_the_reference_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(data\.)?(\w+)` \| (\S+) \|", README, re.MULTILINE)
    compared = 0
    for section, key, text in rows:
        arguments = signature_of_section(Data if section else Config).arguments
        argument = next((a for a in arguments if a.name == key), None)
        if argument is not None and not argument.required and text not in ("|", "none"):
            assert yaml.safe_load(text.strip("`")) == argument.default, key
            compared += 1
    assert compared >= 10


def test_every_model_and_every_loss_is_named() -> None:
    for name in (*registry.MODELS, *registry.LOSSES):
        assert f"`{name}`" in README


def test_the_exit_statuses_are_the_programs() -> None:
    rows = re.findall(r"^\| (\d+(?:, \d+)?) \|", README, re.MULTILINE)
    assert [int(n) for row in rows for n in row.split(", ")] == [DONE, FAILED, USAGE, INTERRUPTED, TERMINATED]


def options(command: Any) -> set[str]:
    """The options of a command and of its sub-commands."""
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


def test_every_option_shown_exists(app: typer.Typer) -> None:
    group: Any = typer.main.get_command(app)
    for name in group.list_commands(None):
        group.load(name)
    known = options(group)
    shown = set()
    for language, text in BLOCKS:
        if language == "sh":
            lines = [line.split("#")[0] for line in text.splitlines() if "softmaxce" in line]
            shown |= {o for line in lines for o in re.findall(r"(?<= )--[a-z-]+", line.partition("softmaxce ")[2])}
    assert shown
    assert shown <= known


def test_the_tree_names_every_module() -> None:
    modules = {file.name for file in FILE.with_name("softmaxce").glob("*.py")} - {"__init__.py"}
    folders = {f"{file.parent.name}/" for file in FILE.with_name("softmaxce").glob("*/__init__.py")}
    for name in modules | folders:
        assert re.search(rf"^  {re.escape(name)} ", README, re.MULTILINE), name


def test_the_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.+?\]\((\S+?)\)", README):
        assert FILE.with_name(picture.split("/")[0]).joinpath(picture.split("/")[1]).exists()


def test_the_ci_file_is_sound_shell() -> None:
    done = subprocess.run(["bash", "-n", str(FILE.parent / ".ci" / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
