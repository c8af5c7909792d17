"""What is installed, and which module may import which."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages() -> set[str]:
    """Every folder with Python files, by the name it is installed under."""
    found = {"softmaxce.configs", "softmaxce_cli"}
    for file in (ROOT / "softmaxce").rglob("*.py"):
        found.add(".".join(file.parent.relative_to(ROOT).parts))
    return found


def test_the_list_of_packages_is_the_folders() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages()


def test_the_wheel_holds_the_recipes_and_claims_two_names_only(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, so that no build folder appears in the project
    for name in PROJECT["tool"]["setuptools"]["packages"]:
        folder = {"softmaxce.configs": "configs", "softmaxce_cli": "cli"}.get(name, name.replace(".", "/"))
        (source / folder).mkdir(parents=True, exist_ok=True)
        for file in (ROOT / folder).iterdir():
            if file.is_file():
                (source / folder / file.name).write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"softmaxce", "softmaxce_cli"}
    recipes = {f"softmaxce/configs/{file.name}" for file in (ROOT / "configs").glob("*.yaml")}
    pages = {str(file.relative_to(ROOT)) for kind in ("html", "js") for file in (ROOT / "softmaxce").rglob(f"*.{kind}")}
    assert recipes | pages | {"softmaxce/configs/schema.json", "softmaxce/py.typed"} <= set(names)


# -- floors and circles -----------------------------------------------------------------------------------------------

ARCHITECTURE = ROOT / "docs" / "architecture.md"
TORCH_FREE = {"argument_types", "errors", "files", "streams", "config"}


def floors() -> list[list[str]]:
    """The floors that docs/architecture.md lists, the highest first: the names that each line begins with."""
    (text,) = re.findall(r"<!-- floors.*?-->\n(.*?)<!-- end of floors -->", ARCHITECTURE.read_text(), re.DOTALL)
    lines = re.findall(r"^\d+\. ((?:`\w+`(?:, | and )?)+)", text, re.MULTILINE)
    return [re.findall(r"`(\w+)`", line) for line in lines]


LEVEL = {part: number for number, parts in enumerate(reversed(floors())) for part in parts}
FILES = {
    ".".join(["softmaxce_cli" if part == "cli" else part for part in file.relative_to(ROOT).with_suffix("").parts])
    .removesuffix(".__init__"): file
    for folder in ("softmaxce", "cli")
    for file in sorted((ROOT / folder).rglob("*.py"))
}  # fmt: skip


def part_of(module: str) -> str:
    """The package or module of the top level that a dotted name belongs to."""
    return "cli" if module.startswith(("softmaxce_cli", "softmaxce.__main__")) else module.split(".")[1]


def imports(module: str, *, in_functions: bool = True) -> set[str]:
    """The modules that a module imports anywhere, inside functions too, but for type checkers alone."""
    file = FILES[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(file.read_text())
    checked_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    imported = set()
    for node in ast.walk(tree) if in_functions else tree.body:
        if id(node) in checked_only:
            continue
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            imported.update(name if name in FILES else base for name in names)
    return imported - {module}


def circles() -> list[list[str]]:
    """The groups of modules that import each other, directly or through others (Tarjan 1972)."""
    graph = {module: imports(module) & FILES.keys() for module in FILES}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            groups.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return [group for group in groups if len(group) > 1]


def test_every_package_has_a_floor() -> None:
    assert set(LEVEL) == {part_of(module) for module in FILES if module != "softmaxce"} - {"configs"}


@pytest.mark.parametrize("module", [module for module in FILES if module != "softmaxce"])
def test_a_file_imports_only_from_floors_below_its_own(module: str) -> None:
    part = part_of(module)
    for other in imports(module):
        if other.startswith(("softmaxce.", "softmaxce_cli")) and part_of(other) not in (part, "configs"):
            assert LEVEL[part_of(other)] < LEVEL[part], f"{module} imports {other}"
        if part in TORCH_FREE:
            assert other.split(".")[0] not in {"torch", "torchvision", "sklearn", "numpy"}, f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles() == []


# -- imports of torch by commands -------------------------------------------------------------------------------------


def modules_with_torch() -> set[str]:
    """The modules whose own import leads to that of torch, by the imports outside functions."""
    at_once = {module: imports(module, in_functions=False) for module in FILES}
    heavy = {module for module, names in at_once.items() if any(name.split(".")[0] == "torch" for name in names)}
    while more := {module for module, names in at_once.items() if module not in heavy and names & heavy}:
        heavy |= more
    return heavy


def imports_of_torch(node: ast.AST, heavy: set[str]) -> list[str]:
    """The imports below a node that lead to torch, in order; "" for one inside `with fast_imports()`."""
    if isinstance(node, ast.With) and "fast_imports" in ast.unparse(node.items[0]):
        return [""]
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return []
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    else:
        return [line for child in ast.iter_child_nodes(node) for line in imports_of_torch(child, heavy)]
    return [ast.unparse(node)] if names & (heavy | {"torch"}) else []


def test_every_command_imports_torch_where_signals_wait_for_the_end_of_the_import() -> None:
    heavy = modules_with_torch()
    assert {"softmaxce.build", "softmaxce.session"} <= heavy
    first = {
        f"{module}.{function.name}": lines[0]
        for module in FILES
        if module.startswith("softmaxce_cli")
        for function in ast.parse(FILES[module].read_text()).body
        # The functions with an underscore are called by the others, once these have imported it.
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_")
        if (lines := imports_of_torch(function, heavy))
    }
    assert len(first) > 10
    unprotected = {name for name, line in first.items() if line}
    assert unprotected == {"softmaxce_cli.explain.explain"}  # calls two functions first, which import it
