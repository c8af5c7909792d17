"""README and docs are true: their files train, their sessions print what they say, names, options and links exist."""

import ast
import doctest
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from sklearn.datasets import load_digits

import softmaxce
from softmaxce.config import registry
from softmaxce.config.recipes import recipes
from softmaxce.errors import DONE, FAILED, INTERRUPTED, TERMINATED, USAGE

from .helpers import Softmaxce

ROOT = Path(__file__).parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
BLOCKS = [
    (page, language, text)
    for page, whole in PAGES.items()
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", whole, re.MULTILINE | re.DOTALL)
]
SESSIONS = [page for page, text in PAGES.items() if ">>> " in text]


def files(page: str) -> dict[str, str]:
    """The blocks of a page that are files: their first line is their name."""
    named = [(re.match(r"# (\S+\.(?:py|yaml))\n", text), text) for at, _, text in BLOCKS if at == page]
    return {match[1]: text for match, text in named if match}


CONFIGS = [(page, name) for page in PAGES for name in files(page) if name.endswith(".yaml")]


def block(page: str, beginning: str) -> str:
    """The one block of a page that begins so."""
    (text,) = (text for at, _, text in BLOCKS if at == page and text.startswith(beginning))
    return text


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 200


def test_the_set_up_lines_are_those_that_ci_runs() -> None:
    lines = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(lines) == 2
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line not in ci] == []


# -- files and sessions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "name"), CONFIGS)
def test_the_configs_train(page: str, name: str, softmaxce: Softmaxce, tmp_path: Path) -> None:
    for file, text in files(page).items():
        (tmp_path / file).write_text(text)
    assert softmaxce("config", "check", name).stdout.startswith(f"{name}: ok")
    done = softmaxce("train", "--config", name, "--epochs", "5", "--require", "accuracy>=0.85", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shell_script_runs_unchanged(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", block("README.md", "#!")],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0.95 <= float(done.stdout.splitlines()[-1]) <= 1
    assert "require accuracy>=0.95: met" in (tmp_path / "report.txt").read_text()


def test_the_python_example_runs_unchanged(tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text(files("README.md")["api.py"])
    done = subprocess.run([sys.executable, "api.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accuracy, name = done.stdout.splitlines()[-1].split()
    assert float(accuracy) > 0.9
    assert name == str(load_digits().target[::5][0])  # the test images are every fifth
    assert (tmp_path / "runs" / "mine" / "run.json").is_file()


def test_the_article_is_executable() -> None:
    assert "docs/losses.md" in SESSIONS


@pytest.mark.parametrize("page", SESSIONS)
def test_the_python_sessions_print_what_they_say(page: str) -> None:
    failed, _ = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")
    assert failed == 0


def test_the_mistakes_shown_are_answered_as_shown(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "epochs: 1\ndata:\n  name: digits\n  batchsize: 64\nmodel: linear\noptimizer: {name: sgd,\n     lr: 0.1x}\n"
    )
    done = softmaxce("train", "--config", "mine.yaml")
    assert done.stderr == block("README.md", "error: mine.yaml")
    assert done.returncode == 2


def test_the_broken_law_is_shown_as_printed(softmaxce: Softmaxce, tmp_path: Path) -> None:
    page = "docs/extending.md"
    (tmp_path / "naive.py").write_text(files(page)["naive.py"])
    command, _, output = block(page, "$ softmaxce check-loss").partition("\n")
    done = softmaxce(*command.split()[2:])
    assert [line.rstrip() for line in done.stdout.splitlines()] == output.splitlines()
    assert done.returncode == 1


def test_the_loss_shown_obeys_the_laws_that_it_claims(softmaxce: Softmaxce, tmp_path: Path) -> None:
    page = files("docs/extending.md")
    (tmp_path / "focal.py").write_text(page["focal.py"])
    test = page["test_focal.py"].replace("Focal(gamma=1.5)", "Focal(gamma=1.5), skip=['compile', 'determinism']")
    (tmp_path / "test_focal.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_focal.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().splitlines()[-1].startswith("19 passed"), done.stdout
    limit = ("--set", "gamma=0", "--reference", "softmax_cross_entropy", "--only", "value", "--only", "gradient")
    assert softmaxce("check-loss", "focal.py:Focal", *limit).returncode == 0
    (tmp_path / "own.py").write_text(files("README.md")["own.py"])
    done = softmaxce("check-loss", "own.py:focal", "--only", "soft_targets", "--only", "rows")
    assert done.returncode == 0, done.stdout


# -- references -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """What .ci/reference defines."""
    return runpy.run_path(str(ROOT / ".ci" / "reference"))


def test_the_generated_parts_are_current(reference: dict[str, Any]) -> None:
    current = reference["pages"]()
    assert {file.name for file in current} == {"api.md", "cli.md", "config.md"}
    stale = [file.name for file, text in current.items() if file.read_text(encoding="utf-8") != text]
    assert not stale, f"{stale} differ from the code; renew them: .venv/bin/python .ci/reference"


def test_the_commands_page_lists_every_option_of_every_command(app: typer.Typer) -> None:
    """The page is made from the functions' signatures; here it is compared with the commands as they are parsed."""
    sections = re.findall(
        r"^### softmaxce ([\w -]+)\n(.*?)(?=^### |^<!-- end)", PAGES["docs/cli.md"], re.MULTILINE | re.DOTALL
    )
    shown = {name: set(re.findall(r"`(--[\w-]+)`", text)) for name, text in sections}
    assert shown == {name: parsed - {"--help"} for name, parsed in options(app).items()}


def test_the_api_page_has_every_public_name_and_the_methods_of_a_trained_model() -> None:
    headings = re.findall(r"^###+ (\S+)$", PAGES["docs/api.md"], re.MULTILINE)
    assert {f"softmaxce.{name}" for name in softmaxce.__all__} <= set(headings)
    methods = {name for name, value in vars(softmaxce.TrainedModel).items() if name[0] != "_" and callable(value)}
    assert {f"TrainedModel.{name}" for name in methods | {"open", "dataset"}} <= set(headings)
    assert "`seed` does not cover" in PAGES["docs/api.md"]


def test_every_name_is_in_the_reference() -> None:
    for entry in registry.REGISTRIES.values():
        for name in entry.targets:
            assert f"| `{name}` |" in PAGES["docs/config.md"]


def test_every_recipe_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]*\| [^|]*\| (0\.\d+|not measured yet|yours) \|", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(recipes())
    for name, accuracy in rows:
        if accuracy.startswith("0."):
            assert f"mean {accuracy} over" in recipes()[name].read_text(), name


def test_the_exit_statuses_are_the_programs() -> None:
    rows = re.findall(r"^\| (\d+(?:, \d+)?) \|", README, re.MULTILINE)
    assert [int(n) for row in rows for n in row.split(", ")] == [DONE, FAILED, USAGE, INTERRUPTED, TERMINATED]


def options(app: typer.Typer) -> dict[str, set[str]]:
    """The long options of every command, as they are parsed: `bench loss` -> {--json, ...}."""
    group: Any = typer.main.get_command(app)
    result = {}
    for name in group.list_commands(None):
        group.load(name)
        command = group.commands[name]
        for path, leaf in [(f"{name} {sub}", leaf) for sub, leaf in getattr(command, "commands", {}).items()] or [
            (name, command)
        ]:
            opts = {option for parameter in leaf.params for option in parameter.opts}
            result[path] = {option for option in opts if option.startswith("--")}
    return result


def test_every_option_shown_exists(app: typer.Typer) -> None:
    known = options(app)
    shown = 0
    for page, language, text in BLOCKS:
        for line in text.splitlines() if language == "sh" else ():
            words = line.split("#")[0].partition("softmaxce ")[2].split()
            command = next((c for c in (" ".join(words[:2]), " ".join(words[:1])) if c in known), None)
            for option in words:
                if command and re.fullmatch(r"--[a-z-]+", option):
                    assert option in known[command], f"{page}: {line}"
                    shown += 1
    assert shown >= 20


# -- links and tools --------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)(\S+?)\)", re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if page.startswith("docs/"):
            assert target.is_relative_to(ROOT / "docs"), f"{link} leads out of the site"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), link


def test_every_page_is_in_the_sites_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = {f"docs/{file}" for entry in site["nav"] for file in entry.values()}
    assert listed == {page for page in PAGES if page.startswith("docs/")}


def test_the_ci_file_is_sound_shell() -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commit_hooks_are_the_checks_of_ci() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {hook["entry"] for hook in hooks}
    checks = set(re.findall(r"\.venv/bin/(?:ruff|mypy|pytest).*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert entries == checks
    assert all(shutil.which(str(Path(sys.executable).parent / entry.split()[0].split("/")[-1])) for entry in entries)


# -- length -----------------------------------------------------------------------------------------------------------

LINES_OF_FILE, LINES_OF_FUNCTION = 400, 60


def long_ones() -> set[str]:
    """The files and functions that are longer than the rule allows."""
    result = set()
    for file in (*(ROOT / "softmaxce").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        name, text = str(file.relative_to(ROOT)), file.read_text()
        if len(text.splitlines()) > LINES_OF_FILE:
            result.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LINES_OF_FUNCTION:
                result.add(f"{name}: {node.name}")
    return result


def test_every_long_file_and_function_is_listed_with_its_reason() -> None:
    rows = re.findall(r"^\| `([\w/.]+\.py(?:: \w+)?)` \| .+ \|$", PAGES["docs/architecture.md"], re.MULTILINE)
    assert set(rows) == long_ones()
