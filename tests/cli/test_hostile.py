"""A folder prepared by an enemy: modules and settings beside a run, links, pipes, endless and odd files in it."""

import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from ..helpers import SMALL

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, app: typer.Typer) -> Path:
    """A folder with two runs, `one` and `two`, their config and an image folder; nobody's enemy."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.yaml").write_text(SMALL)
    for name, seed in (("one", 0), ("two", 1)):
        words = ["--config", str(folder / "small.yaml"), "--output", str(folder / name), "--set", f"seed={seed}"]
        done = CliRunner().invoke(app, ["train", *words, "-q"])
        assert done.exit_code == 0, done.output
    generator = np.random.default_rng(0)
    for number in range(12):
        file = folder / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16), np.uint8)).save(file)
    (folder / "images.yaml").write_text(
        f"{{epochs: 1, data: {{name: image_folder, root: {folder / 'images'}, channels: 1, batch_size: 4, "
        "in_memory: false, workers: 1}, model: linear, optimizer: {name: sgd, lr: 0.1}}"
    )
    return folder


# -- modules and settings ---------------------------------------------------------------------------------------------

# Names of modules: Python's, those of everything that is installed, and some that libraries try and do without.
OPTIONAL = (
    *("tensorboard", "triton", "IPython", "torch_xla", "cupy", "gmpy2", "sitecustomize", "usercustomize", "readline"),
    *("pandas", "colorama", "orjson", "tqdm", "cffi", "icc_rt", "tbb", "coverage", "evil_plugin", "softmaxce_cli"),
)
NAMES = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), *OPTIONAL}
NAMES -= {"softmaxce"}  # python -m itself prefers the current folder's
SETTINGS = {
    "matplotlibrc": "backend: module://evil_plugin\nno_such_key: 1\n",
    ".numba_config.yaml": "cache_dir: {trace}\ndisable_jit: 1\n",
    "evil.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
    "evil.dist-info/entry_points.txt": "".join(
        f"[{group}]\nevil = evil_plugin:run\n"
        for group in ("pydantic", "torch.backends", "hypothesis", "numba_extensions")
    ),
    **dict.fromkeys(("setup.cfg", "pyproject.toml", "tox.ini", "pytest.ini", "hypothesis.ini", ".env"), "[x\n"),
    **dict.fromkeys((".pythonrc.py", ".hypothesis/examples/x", "nvidia/cublas/lib/libcublas.so.12"), "x"),
    ".gitattributes": "* filter=evil\n",
}
# Records which of the folder's files Python opens.
AUDIT = """
import os, sys
here = os.getcwd()
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.relpath(os.path.join(here, os.fsdecode(arguments[0])), here)
        if not path.startswith(".."):
            os.write(log, (path + chr(10)).encode())
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of modules and settings, which leave a trace in the folder `trace` beside it when they are run."""
    top = tmp_path_factory.mktemp("hostile")
    folder, trace = top / "here", top / "trace"
    folder.mkdir()
    trace.mkdir()
    for name in filter(str.isidentifier, NAMES):
        (folder / f"{name}.py").write_text(f"open({str(trace)!r} + '/{name}', 'w').close()\n")
    for name, text in SETTINGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("{trace}", str(trace / "numba")))
    git = ["git", "-c", "user.name=e", "-c", "user.email=e@e"]
    for command in (["init", "-q"], ["add", ".gitattributes"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    os.utime(folder / ".gitattributes", (1, 1))  # git has to look at its content
    evil = f"touch {trace}/git; cat"
    with (folder / ".git" / "config").open("a") as stream:
        stream.write(f'[core]\nfsmonitor = "{evil}"\n[filter "evil"]\nclean = "{evil}"\nprocess = "{evil}"\n')
    hook = folder / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{evil}\n")
    hook.chmod(0o755)
    (top / "audit").mkdir()
    (top / "audit" / "sitecustomize.py").write_text(AUDIT.format(log=str(top / "opened")))
    return folder


# Several commands in one process. Whichever runs a module or reads a file of the folder, it leaves a trace.
SEVERAL = """
import sys
from softmaxce_cli.main import app
for words in map(str.split, sys.argv[1:]):
    try:
        app(words)
    except SystemExit as end:
        assert not end.code, words
"""
SPAWN = "import multiprocessing as m; m.set_start_method('spawn'); from softmaxce_cli.main import app; app()"
COMMAND = (str(BIN / "softmaxce"),)
MODULE = (sys.executable, "-m", "softmaxce")
TRAIN = ("train", "--config", "{runs}/small.yaml", "--epochs", "1", "-q", "--output")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (COMMAND, (*TRAIN, "{out}/a", "--report", "--log", "tensorboard")),
    "train --seeds": (COMMAND, (*TRAIN, "{out}/b", "--seeds", "2")),
    "sweep": (COMMAND, ("sweep", *TRAIN[1:], "{out}/c", "--set", "optimizer.lr=0.1,0.2")),
    "workers": (COMMAND, ("train", "--config", "{runs}/images.yaml", "-q", "--output", "{out}/d")),
    "spawned workers": (
        (sys.executable, "-P", "-c", SPAWN),
        ("train", "--config", "{runs}/images.yaml", "-q", "--output", "{out}/e"),
    ),
    "eval": (COMMAND, ("eval", "{runs}/one")),
    "each of the others": (
        (sys.executable, "-P", "-c", SEVERAL),
        (
            "list losses",
            "config show digits",
            "runs {runs}",
            "predict {runs}/one {runs}/images/a/0.png",
            "explain {runs}/one --index 0 --html {out}/e.html",
            "calibrate {runs}/one",
            "report {runs}/one --output {out}/r.html",
            "compare {runs}/one {runs}/two --html {out}/c.html",
            "check-loss poly --only shift",
        ),
    ),
    "-m": (MODULE, ("eval", "{runs}/one")),
    "-m --help": (MODULE, ("--help",)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_in_the_current_folder_that_no_argument_names_is_run_or_read(
    name: str, hostile: Path, runs: Path, tmp_path: Path
) -> None:
    program, arguments = COMMANDS[name]
    trace, opened = hostile.parent / "trace", hostile.parent / "opened"
    environment = os.environ | {"PYTHONPATH": str(hostile.parent / "audit")}
    environment.pop("PYTHONSAFEPATH", None)
    allowed: set[str] = set()
    if program == MODULE:  # what Python itself runs of a folder, before any module that it is to run
        nothing = [sys.executable, "-m", "no_such_module"]
        subprocess.run(nothing, cwd=hostile, env=environment, capture_output=True, check=False)
        allowed = {file.name for file in trace.iterdir()}
    for file in (*trace.iterdir(), opened):
        file.unlink(missing_ok=True)
    before = sorted(str(file) for file in hostile.rglob("*"))
    words = [word.format(runs=runs, out=tmp_path) for word in arguments]
    done = subprocess.run(
        [*program, *words], cwd=hostile, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in trace.iterdir()} <= allowed
    read = set(opened.read_text().splitlines()) if opened.exists() else set()
    assert {path for path in read if str(hostile / path) in before and Path(path).stem not in allowed} == set()
    assert sorted(str(file) for file in hostile.rglob("*")) == before
    assert "no_such_key" not in done.stderr


@pytest.mark.parametrize("entries", [":{lib}", "{lib}:", ".:{lib}", "{lib}"])
def test_an_empty_entry_of_pythonpath_is_not_the_current_folder(entries: str, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.py").touch()
    (tmp_path / "json.py").write_text("open('trace', 'w').close()\n")
    script = "import softmaxce_cli, sys, os, json, mine; print(os.environ['PYTHONPATH'], os.getcwd() in sys.path)"
    environment = os.environ | {"PYTHONPATH": entries.format(lib=tmp_path / "lib"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{tmp_path / 'lib'} False\n", done.stderr
    assert not (tmp_path / "trace").exists()


MINE = """
import os, sys, torch, beside
from softmaxce.data.splits import Dataset, OnDisk

here = os.getcwd()
assert sys.path[-1] == here

def decode(file):
    return torch.full((1, 8, 8), int(file), dtype=torch.uint8)

def data(root):
    split = OnDisk(tuple(map(str, range(12))), torch.arange(12) % 2, (1, 8, 8), decode, 1)
    return Dataset(split, split, ("even", "odd"))

def loss(logits, targets):
    assert here not in sys.path
    return torch.nn.functional.cross_entropy(logits, targets)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_users_module_is_looked_up_in_the_current_folder_last_and_in_workers_too(method: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").touch()
    (tmp_path / "json.py").write_text("open('trace', 'w').close()\n")
    (tmp_path / "mine.yaml").write_text(
        "{epochs: 1, data: {name: 'mine:data', batch_size: 4}, model: linear, loss: 'mine:loss', "
        "optimizer: {name: sgd, lr: 0.1}}"
    )
    command = [sys.executable, "-P", "-c", SPAWN.replace("spawn", method)]
    words = ["train", "--config", "mine.yaml", "-q", "--output", "run"]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "trace").exists()


# -- a run folder -----------------------------------------------------------------------------------------------------

FILES = ("run.json", "metrics.jsonl", "config.yaml", "calibration.json", "last.safetensors", "best.safetensors")
RUN_COMMANDS = {
    "runs": ("runs", "{top}"),
    "eval": ("eval", "{run}"),
    "predict": ("predict", "{run}", "{top}/0.png"),
    "explain": ("explain", "{run}", "--index", "0"),
    "calibrate": ("calibrate", "{run}"),
    "report": ("report", "{run}"),
    "compare": ("compare", "{run}", "{top}/other"),
    "resume": ("train", "--resume", "{run}", "--epochs", "3", "-q", "--log", "tensorboard"),
}


def pipe(file: Path) -> None:
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(1 << 42)  # takes no room


def folder(file: Path) -> None:
    file.mkdir()


def deep(file: Path) -> None:
    text = b"[" * 100_000
    if file.suffix == ".safetensors":
        inner = json.dumps({"__metadata__": {"softmaxce": "0 " + text.decode()}}).encode()
        text = len(inner).to_bytes(8, "little") + inner
    file.write_bytes(text)


def numbers(file: Path) -> None:
    """JSON whose numbers are larger than any float or of another type, in every known entry."""
    many = "9" * 5000
    entries = ("epoch", "epochs", "best_epoch", "seconds", "temperature", "learning_rate", "recipe", "status")
    values = (many, "1e999", "-1", "[]", "{}", '"x"', "null", many[:250])
    file.write_text("{" + ", ".join(f'"{name}": {value}' for name, value in zip(entries, values, strict=True)) + "}\n")


KINDS: tuple[Callable[[Path], None], ...] = (pipe, endless, huge, folder, deep, numbers)


@pytest.fixture
def alarm() -> Iterator[None]:
    """A command that hangs ends the test, with an error."""

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(280)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("command", RUN_COMMANDS)
@pytest.mark.usefixtures("alarm")
def test_pipes_and_endless_or_odd_files_in_a_run_are_a_line_with_the_files_name(
    command: str, runs: Path, tmp_path: Path, app: typer.Typer
) -> None:
    shutil.copytree(runs / "two", tmp_path / "other")
    shutil.copy(runs / "images" / "a" / "0.png", tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number, name in enumerate(FILES, list(RUN_COMMANDS).index(command)):
        unread = command not in ("runs", "resume") and name in ("config.yaml", "last.safetensors")
        # Each kind of damage meets each command and each file, but not each command with each file.
        kinds = [KINDS[(number + offset) % len(KINDS)] for offset in (0, 1, 3)]
        for damage in (pipe,) if unread else kinds:
            run = tmp_path / "run"
            shutil.copytree(runs / "one", run)
            (run / name).unlink(missing_ok=True)
            damage(run / name)
            words = [word.format(run=run, top=tmp_path) for word in RUN_COMMANDS[command]]
            done = CliRunner().invoke(app, words)
            where = f"{command}, {name}: {damage.__name__}: {done.output}{done.exception!r}"
            assert isinstance(done.exception, SystemExit | None), where
            assert done.exit_code in (0, 1, 2), where
            refused += bool(done.exit_code) or name in done.stderr  # `runs` lists the others
            if done.exit_code:
                assert name in done.stderr or str(run) in done.stderr, where
                assert len(done.stderr.splitlines()) <= 9, where
            shutil.rmtree(run)
    assert refused > 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "kilobytes"


LINKED = (*FILES, "report.html", "nonfinite.safetensors", "last.1.safetensors", "best.1.safetensors")
TEMPORARY = tuple(f"{name}.tmp" for name in LINKED)


@pytest.mark.parametrize("links", ["files", "lock", "pictures", "report", "tensorboard"])
def test_no_command_writes_through_a_link_in_a_run_folder(
    links: str, runs: Path, tmp_path: Path, app: typer.Typer
) -> None:
    def folders(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name).is_dir()]

    run, outside = tmp_path / "run", tmp_path / "outside"
    for copy in (run, outside):  # without the folders that another test's report may have made there
        shutil.copytree(runs / "one", copy, ignore=folders)
    for name in (*LINKED, *TEMPORARY, ".lock"):
        if not (outside / name).exists():
            (outside / name).write_text("mine")
    (outside / "calibration.json").write_text('{"temperature": 1.0, "epoch": 1}')
    names = (*LINKED, *TEMPORARY) if links == "files" else (".lock",) if links == "lock" else (links,)
    for name in names:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(outside / name if links in ("files", "lock") else outside)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    for command in ("resume", "calibrate", "report", "eval", "runs", "explain"):
        words = [word.format(run=run, top=tmp_path) for word in RUN_COMMANDS[command]]
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, SystemExit | None), repr(done.exception)
        if done.exit_code:
            assert f"{run / names[0]}: is " in done.stderr, done.output
        assert done.exit_code == 0 or links != "files", done.output
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before


def test_a_lock_that_is_a_second_name_of_another_file_leaves_its_content(
    runs: Path, tmp_path: Path, app: typer.Typer
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(runs / "one", run)
    mine.write_text("mine")
    (run / ".lock").unlink()
    (run / ".lock").hardlink_to(mine)
    done = CliRunner().invoke(app, ["train", "--resume", str(run), "--epochs", "3", "-q"])
    assert done.exit_code == 0, done.output
    assert mine.read_text() == "mine"


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alarm")
def test_pipes_among_data_files_are_a_line(runs: Path, tmp_path: Path, app: typer.Typer) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            os.mkfifo(raw / f"{split}-{kind}-ubyte")
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "c.yaml")
    (tmp_path / "big.png").symlink_to("/dev/zero")
    commands = {
        "train-images-idx3-ubyte cannot be read (it is a pipe, not a file)": [
            "train",
            "--config",
            "mnist",
            "--set",
            f"data.root={tmp_path}",
            "--output",
            "{out}",
        ],
        "a.png: it is a pipe": ["predict", str(runs / "one"), str(tmp_path / "a.png")],
        "big.png: it is a device": ["predict", str(runs / "one"), str(tmp_path / "big.png")],
        "c.yaml: cannot be read: it is a pipe": ["train", "--config", str(tmp_path / "c.yaml")],
    }
    for message, words in commands.items():
        done = CliRunner().invoke(app, [word.format(out=tmp_path / "run") for word in words])
        assert done.exit_code == 2, done.output
        assert message in done.stderr, done.output


def test_an_endless_list_of_paths_is_a_line(runs: Path, tmp_path: Path) -> None:
    with Path("/dev/zero").open() as zeros:
        done = subprocess.run(
            [*COMMAND, "predict", str(runs / "one"), "-"], stdin=zeros, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "is not a path" in done.stderr
    assert "Traceback" not in done.stderr


# -- downloads --------------------------------------------------------------------------------------------------------


def test_a_runs_config_downloads_nothing(
    runs: Path, tmp_path: Path, app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import safe_open

    from softmaxce.runs import checkpoint

    asked: list[object] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request") and monkeypatch is not None:
            asked.append(arguments)

    sys.addaudithook(audit)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    run = tmp_path / "run"
    shutil.copytree(runs / "one", run)
    changes = {
        "data": {"name": "cifar10", "download": True, "root": str(tmp_path / "data")},
        "model": {"name": "torchvision:squeezenet1_1", "weights": "DEFAULT"},
    }
    for key, value in changes.items():
        for name in ("best.safetensors", "last.safetensors"):
            with safe_open(runs / "one" / name, framework="pt") as stream:
                header = json.loads(stream.metadata()["softmaxce"].partition(" ")[2])
                tensors = {entry: stream.get_tensor(entry) for entry in stream.keys()}  # noqa: SIM118 - it is no dict
            header["config"][key] = value
            (run / name).write_bytes(checkpoint.serialized(tensors, header)[0])
        (run / "config.yaml").write_text(json.dumps(header["config"]))
        for command in ("eval", "predict", "explain", "calibrate", "report", "resume"):
            words = [word.format(run=run, top=runs / "images" / "a") for word in RUN_COMMANDS[command]]
            done = CliRunner().invoke(app, words)
            assert isinstance(done.exception, SystemExit | None), repr(done.exception)
            assert done.exit_code in (1, 2) or command == "predict", done.output
            assert not (tmp_path / "data").exists()
            assert not (tmp_path / "hub").exists()
    assert asked == []
