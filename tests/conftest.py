"""What several tests use: the installed command, real data where there is some, a small config."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from hypothesis import settings

from .helpers import SMALL, Completed, Softmaxce

settings.register_profile("softmaxce", deadline=None)  # the first example pays for torch's warm-up
settings.load_profile("softmaxce")

os.environ.pop("GITHUB_STEP_SUMMARY", None)  # the tests' runs are nothing that a workflow should sum up

if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["SOFTMAXCE_CACHE"] = tempfile.mkdtemp(prefix="softmaxce-tests-")  # not among the user's own
else:  # one of several processes, which share the folder above and the processors
    os.environ.setdefault("GOMP_SPINCOUNT", "100")  # a thread that waits leaves its core to the other processes

# Tests with real MNIST and CIFAR-10 are skipped where this folder has none.
REAL_DATA = Path(os.environ.get("SOFTMAXCE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped without one; in Triton's interpreter, test_triton_kernels.py runs some of them."""
    if item.get_closest_marker("gpu") is not None and os.environ.get("TRITON_INTERPRET") != "1":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real MNIST, where there is one."""
    if not (REAL_DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"real MNIST is not in {REAL_DATA} ($SOFTMAXCE_TEST_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def app() -> typer.Typer:
    """The command, as its installed entry point gives it."""
    (entry,) = entry_points(group="console_scripts", name="softmaxce")
    loaded: typer.Typer = entry.load()
    return loaded


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Completed]]:
    """Run the command in a folder, in a fork of a process that has imported what it needs (command_server.py)."""
    streams = {name: tmp_path_factory.mktemp("streams") / name for name in ("stdout", "stderr")}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("command_server.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None

    def run(folder: Path, command: list[str], environment: Mapping[str, str]) -> Completed:
        for file in streams.values():
            file.write_text("")
        request = {"folder": str(folder), "command": command, "environment": os.environ | environment}
        print(json.dumps(request | {name: str(file) for name, file in streams.items()}), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, *(file.read_text() for file in streams.values()))

    yield run
    server.communicate()


@pytest.fixture
def softmaxce(tmp_path: Path, request: pytest.FixtureRequest) -> Softmaxce:
    """Run the command in a folder of the test's own: in a fork, unless a variable is read when a process starts."""

    def run(*arguments: str, **environment: str) -> Completed:
        command = [str(Path(sys.executable).parent / "softmaxce"), *arguments]
        if not any(name.startswith(("PYTHON", "OMP_")) for name in environment):
            done: Completed = request.getfixturevalue("forked")(tmp_path, command, environment)
            return done
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A config that trains in an instant, in the test's folder."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file
