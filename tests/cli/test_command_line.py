"""How commands are written: positional configs, short options, the newest run, lists, help; mistakes before torch."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image
from softmaxce_cli.main import COMMANDS
from softmaxce_cli.usage import EXAMPLES
from typer.testing import CliRunner, Result

from softmaxce.config import reader

from ..helpers import SMALL


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, app: typer.Typer) -> Iterator[Path]:
    """The current folder, with a config, an image and a run."""
    folder = tmp_path_factory.mktemp("command-line")
    (folder / "small.yaml").write_text(SMALL)
    (folder / "images").mkdir()
    Image.new("L", (16, 16), 20).save(folder / "photo.jpg")
    Image.new("L", (16, 16), 90).save(folder / "images" / "a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(app, ["train", "small.yaml", "-q"]).exit_code == 0
        yield folder


def call(app: typer.Typer, line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def test_train_takes_a_config_as_an_argument_and_the_common_keys_as_options(here: Path, app: typer.Typer) -> None:
    line = "train small.yaml --lr 0.01 --batch-size 16 --model linear --epochs 1 --output short -q"
    done = call(app, line)
    assert done.exit_code == 0, done.output
    config = yaml.safe_load((here / "short" / "config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["data"]["batch_size"], config["epochs"]) == (0.01, 16, 1)
    assert config["model"]["name"] == "linear"


def test_sweep_takes_them_with_several_values(here: Path, app: typer.Typer) -> None:
    done = call(app, "sweep small.yaml --lr 0.01,0.1 --model linear --epochs 1 --output swept -q")
    assert done.exit_code == 0, done.output
    assert sorted(folder.name for folder in (here / "swept").iterdir()) == ["lr=0.01", "lr=0.1"]


def test_a_short_option_is_named_in_its_mistake(here: Path, app: typer.Typer) -> None:
    for line, message in {
        "train small.yaml --lr high": "error: --lr high: lr must be",
        "train small.yaml --batch-size 0": "error: --batch-size 0: batch_size must be a positive whole number or auto",
        "train small.yaml --model lenett": "error: --model lenett: there is no 'lenett'",
        "train small.yaml --config digits": "error: --config: cannot be combined with the argument CONFIG",
        "sweep small.yaml": "error: --set: is required",
        "sweep --lr 1,2": "error: CONFIG: is required",
        "explain --image x.png": "error: --image: there is no such option; IMAGE is written without a name: softmaxce",
        "report --run x": "error: --run: there is no such option; RUN is written without a name: softmaxce report ",
    }.items():
        done = call(app, line)
        assert done.exit_code == 2
        assert done.stderr.startswith(message), done.stderr


def test_predict_and_explain_take_the_newest_run(here: Path, app: typer.Typer) -> None:
    for line in ("predict photo.jpg", "predict images", "predict 'images/*.png'", "predict runs/small/1 photo.jpg"):
        done = call(app, line)
        assert done.exit_code == 0, done.output
        assert re.fullmatch(r"\d\.\d{4}  class\d  \S+\n", done.stdout)
    assert "test image 0 of synthetic, classified by runs/small/1" in call(app, "explain").stdout
    assert "photo.jpg, classified by runs/small/1" in call(app, "explain photo.jpg").stdout
    done = call(app, "predict runs/small/1")
    assert (done.exit_code, done.stderr.startswith("error: PATH: is required")) == (2, True)


def test_val_is_the_validation_split(here: Path, app: typer.Typer) -> None:
    short, long = (json.loads(call(app, f"eval --split {name} --json").stdout) for name in ("val", "validation"))
    assert short == long
    assert call(app, "eval --split valid").stderr.startswith(
        "error: --split: must be test, validation (or val) or train"
    )


def test_a_comma_is_the_option_repeated(here: Path, app: typer.Typer) -> None:
    both = [
        json.loads(call(app, f"check-loss softmax_cross_entropy {options} --json").stdout)["laws"]
        for options in ("--only shift,finite", "--only shift --only finite")
    ]
    names = [[law["law"] for law in laws] for laws in both]
    assert names[0] == names[1]
    assert set(names[0]) == {"shift", "finite"}
    done = call(app, "eval --require 'accuracy>=0, loss<100' --require ece<=1")
    assert done.exit_code == 0
    assert done.stdout.count(": met, it is") == 3
    assert "error: --only shfit: there is no such law" in call(app, "check-loss poly --only shfit").stderr


@pytest.mark.parametrize(
    "key", ["tta", "data.normalize", "data.validation", "clip_grad_norm", "early_stopping", "checkpoint_every"]
)
def test_none_and_null_are_the_same(key: str) -> None:
    configs = [reader.load("digits", [reader.parse_override(f"{key}={value}")]).to_dict() for value in ("none", "null")]
    assert configs[0] == configs[1]


# -- help -------------------------------------------------------------------------------------------------------------


def test_every_command_has_an_example_that_it_accepts(app: typer.Typer) -> None:
    group = typer.main.get_command(app)
    for name, lines in EXAMPLES.items():
        for line in lines:
            program, *words = shlex.split(line.partition(" > ")[0])
            assert program == "softmaxce"
            assert words[: len(name.split())] == name.split()
            command = group
            for word in name.split():
                command.load(word) if hasattr(command, "load") else None
                command = command.commands[word]  # type: ignore[attr-defined]
            command.make_context(name, words[len(name.split()) :])  # raises if an option or an argument is wrong
            assert line in command.get_help(command.make_context(name, [], resilient_parsing=True))
    tops = {name.split()[0] for name in EXAMPLES}
    assert tops == set(COMMANDS)


@pytest.mark.parametrize("name", ["", *EXAMPLES])
def test_help_is_whole_and_its_metavars_are_words(name: str, app: typer.Typer) -> None:
    help_ = call(app, f"{name} --help").stdout
    assert not re.search(r"<(bool|int|float|str|path|list|Path)", help_)
    assert "[[" not in help_
    assert "{" not in help_.replace("{'", "")
    assert not re.search(r"\.\.\.$(?<!\]\.\.\.)(?<![A-Z]\.\.\.)", help_, re.MULTILINE)
    for _, _, about in COMMANDS.values() if not name else ():
        assert about in re.sub(r"\s+", " ", help_)


# -- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "lr-find digits --min-lr 0": "--min-lr: must be a number above 0, got 0",
    "lr-find digits --max-lr 1e-7": "--max-lr: must be above --min-lr, which is 1e-06, got 1e-07",
    "lr-find digits --output x.jpg": "--output: must be a name that ends in .svg or .png, got x.jpg",
    "lr-find digits --set optimizer.lr=1": "--set optimizer.lr: is what lr-find varies, from --min-lr to --max-lr",
    "eval nowhere": "nowhere: there is no such run folder or checkpoint",
    "eval --data nowhere": "--data nowhere: there is no such folder",
    "eval --device gpu": "--device: device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'",
    "eval --temperature 0": "--temperature: must be a number from 1e-06 to 1e+06, got 0",
    "eval --split tset": "--split: must be test, validation (or val) or train, got 'tset'; did you mean 'test'?",
    "eval --require acuracy>=1": "--require acuracy>=1: there is no metric 'acuracy'",
    "eval --batch-size 0": "--batch-size: must be greater than or equal to 1",
    "predict nowhere photo.jpg": "nowhere: there is no such run folder or checkpoint",
    "predict photo.jpg --json --csv": "--json and --csv: cannot be combined",
    "explain nowhere photo.jpg": "nowhere: there is no such run folder or checkpoint",
    "explain runs/small/1 nowhere.jpg": "nowhere.jpg: there is no such file",
    "explain --index 1 --mix x": "--mix: needs an image's number",
    "explain --logits 1": "--logits: needs two numbers",
    "calibrate nowhere": "nowhere: there is no such run folder or checkpoint",
    "calibrate --device tpu": "--device: device must be",
    "report nowhere": "nowhere: there is no run in this folder",
    "report --output images": "--output images: is a folder",
    "compare runs/small/1": "compare: takes two runs or more",
    "compare runs/small/1 nowhere": "nowhere: there is no such run folder or checkpoint",
    "compare runs/small/1 runs/small/1 --html images": "--html images: is a folder",
    "explain --html images": "--html images: is a folder",
    "train": "CONFIG: is required",
    "train nowhere": "there is no file and no recipe called 'nowhere'",
    "train --resume nowhere": "--resume nowhere: there is no run in this folder",
    "sweep small.yaml --lr 1,x": "--set optimizer.lr=x: lr must be",
    "check-loss nowhere": "there is no 'nowhere'",
    "check-loss poly --device gpu": "--device: device must be",
    "bench loss --shapes 3": "--shapes: write rows x classes",
    "bench loss --device gpu": "--device: device must be",
    "bench predict nowhere images": "nowhere: there is no such run folder or checkpoint",
    "runs nowhere": "there is no folder nowhere here",
    "list modles": "KIND: 'modles' is not one of",
    "config check nowhere": "there is no",
    "config new digits small.yaml": "small.yaml: exists and is left as it is",
    "frobnicate": "there is no command 'frobnicate'",
}

DRIVER = """
import json, shlex, sys
from typer.testing import CliRunner
from softmaxce_cli.main import app

for line in json.load(sys.stdin):
    done = CliRunner().invoke(app, shlex.split(line))
    print(json.dumps([done.exit_code, done.stdout, done.stderr, "torch" in sys.modules]), flush=True)
"""


def test_every_commands_mistakes_of_path_and_option_are_answered_before_torch_is_imported(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps([*MISTAKES]), cwd=here, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    answers = map(json.loads, done.stdout.splitlines())
    for (line, message), (status, stdout, stderr, torch_imported) in zip(MISTAKES.items(), answers, strict=True):
        assert message in stderr, (line, stderr)
        assert not torch_imported, line
        assert stdout == ""
        assert status == 2, line
        assert stderr.startswith("error: ")
