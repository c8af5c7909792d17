"""run.json and --version say which code ran."""

import re
import shutil
from pathlib import Path

from softmaxce.runtime.version import PACKAGE, softmaxce_version, source_digest

from .helpers import Softmaxce

CODE = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")


def test_one_changed_character_is_another_version(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "copy", ignore=CODE)
    file = tmp_path / "copy" / "losses" / "reference.py"
    file.write_bytes(file.read_bytes() + b"\n")
    assert source_digest(tmp_path / "copy") != source_digest(PACKAGE)


def test_a_file_that_moves_is_another_version(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "copy", ignore=CODE)
    (tmp_path / "copy" / "models" / "mlp.py").rename(tmp_path / "copy" / "models" / "perceptron.py")
    assert source_digest(tmp_path / "copy") != source_digest(PACKAGE)


def test_a_copy_without_git_and_with_the_recipes_of_a_wheel_is_the_same_version(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "copy", ignore=CODE)
    (tmp_path / "copy" / "configs").mkdir(exist_ok=True)
    (tmp_path / "copy" / "configs" / "__init__.py").write_text("")
    assert source_digest(tmp_path / "copy") == source_digest(PACKAGE)


def test_the_command_prints_the_version_that_runs_record(softmaxce: Softmaxce) -> None:
    assert softmaxce("--version").stdout == f"softmaxce {softmaxce_version()}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?\+[0-9a-f]{12}", softmaxce_version())
