"""What is installed, and what stands on what."""

import ast
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


# The floors: a file imports from floors below its own, so that a loss cannot reach a model nor a model read a config.
FLOORS = [
    {"errors", "files", "interrupts", "kinds", "yamlfile", "menus", "processors"},
    {"registry", "config", "schema", "runfolder", "header", "runs", "resume", "grid", "requirements", "configs"},
    {"eager", "native", "watching"},
    {"losses", "models", "data", "optim", "muon", "average", "views", "metrics", "runtime", "nonfinite_cpu"},
    {"train", "cudagraph", "nonfinite", "checkpoint", "verify", "memory"},
    {"build", "provenance", "evaluate", "calibration", "predict", "compare"},
    {"explain", "bench", "laws"},
    {"report"},
    {"softmaxce_cli"},
]
TORCH_FREE = FLOORS[0] | FLOORS[1]


def floor_of(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def imports(file: Path) -> set[str]:
    """The modules a file imports anywhere, ours as `softmaxce.x`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(file.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update([f"{module}.{alias.name}" for alias in node.names] if module == "softmaxce" else [module])
    return found


FILES = [
    file
    for file in sorted((ROOT / "softmaxce").rglob("*.py"))
    if file.parent != ROOT / "softmaxce" or file.stem != "__init__"
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_below_its_own(file: Path) -> None:
    part = file.relative_to(ROOT / "softmaxce").with_suffix("").parts[0]
    for module in imports(file):
        if module.startswith("softmaxce."):
            other = module.split(".")[1]
            if other != part:
                low = floor_of(other) < floor_of(part) or (
                    floor_of(other) == floor_of(part)
                    and part
                    in TORCH_FREE
                    | {"train", "checkpoint", "evaluate", "calibration", "predict", "compare", "provenance"}
                )
                assert low, f"{part} imports {other}"
        if part in TORCH_FREE:
            assert module.split(".")[0] not in {"torch", "torchvision", "sklearn", "numpy"}, f"{part} imports {module}"
