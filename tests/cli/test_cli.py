"""The real command in real processes: what it prints, what it leaves behind, what its exit status says."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file

from ..helpers import Softmaxce

COMMAND = str(Path(sys.executable).parent / "softmaxce")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def steady(text: str) -> str:
    """A run's output without what a clock or a path decides."""
    text = re.sub(r'"(images_per_second|seconds)": [\d.]+', "", text)
    return re.sub(r'"run": "[^"]*"', "", text)


def test_json_is_lines_of_json_with_the_documented_fields(softmaxce: Softmaxce, small: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--json", "--output", "out")
    assert done.returncode == 0
    assert done.stderr == ""
    start, first, second, end = events(done.stdout)
    assert start["event"] == "start"
    assert start["images"] == {"train": 72, "validation": 24, "test": 40}
    assert (first["event"], first["epoch"], second["epoch"]) == ("epoch", 1, 2)
    for name in ("learning_rate", "images_per_second", "seconds"):
        assert first[name] > 0
    for split in ("train", "validation"):
        assert set(first[split]) == {"loss", "accuracy"}
        assert 0 <= first[split]["accuracy"] <= 1
    assert (end["event"], end["run"], end["status"]) == ("end", "out", "completed")
    assert set(end["test"]) == {"loss", "accuracy"}


def test_the_run_folder_holds_all_that_was_promised(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    softmaxce("train", "--config", "small.yaml", "--json")
    folder = tmp_path / "runs" / "small" / "1"
    names = {"config.yaml", "run.json", "metrics.jsonl", "last.safetensors", "last.1.safetensors", "best.safetensors"}
    found = {file.name for file in folder.iterdir()}
    assert found - {"best.1.safetensors"} == names | {".lock"}
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["classes"][0] == "class0"
    assert set(record["environment"]) >= {"softmaxce", "torch", "torchvision", "python", "device", "git_commit"}
    assert record["commands"][0][1:] == ["train", "--config", "small.yaml", "--json"]
    assert [line["epoch"] for line in events((folder / "metrics.jsonl").read_text())] == [1, 2]
    weights = load_file(folder / "best.safetensors")
    assert set(weights) == {"1.weight", "1.bias", "4.weight", "4.bias"}  # a state dict as it is


def test_the_resolved_config_trains_the_same_run(softmaxce: Softmaxce, small: Path) -> None:
    first = softmaxce("train", "--config", "small.yaml", "--set", "optimizer.lr=0.03", "--json", "--output", "a")
    second = softmaxce("train", "--config", "a/config.yaml", "--json", "--output", "b")
    assert steady(first.stdout).splitlines()[1:] == steady(second.stdout).splitlines()[1:]


def test_the_same_command_twice_gives_the_same_bits(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    runs = [softmaxce("train", "--config", "small.yaml", "--json", "--output", name) for name in ("a", "b")]
    assert steady(runs[0].stdout) == steady(runs[1].stdout)
    assert (tmp_path / "a/best.safetensors").read_bytes() == (tmp_path / "b/best.safetensors").read_bytes()


def test_a_folder_that_exists_is_never_overwritten(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    done = softmaxce("train", "--config", "small.yaml", "--output", "out")
    assert done.returncode == 2
    assert "the folder is not empty and is left as it is" in done.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]
    for number in (1, 2):
        softmaxce("train", "--config", "small.yaml", "-q")
        assert (tmp_path / "runs" / "small" / str(number) / "run.json").exists()


def test_without_a_terminal_there_is_one_plain_line_an_epoch(softmaxce: Softmaxce, small: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml")
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    number = r"\d\.\d{4}"
    assert re.fullmatch(
        rf"epoch 1/2  lr \S+  train loss {number} accuracy {number}  validation loss {number} accuracy {number}  "
        r"\d+ images/s  \d+\.\d\d s  best",
        lines[0],
    )
    assert lines[-1] == "next: softmaxce eval runs/small/1"


def test_without_a_validation_split_the_lines_say_test(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--set", "data.validation=null")
    assert "  test loss " in done.stdout
    assert "validation" not in done.stdout
    assert not (tmp_path / "runs/small/1/best.safetensors").exists()


def test_quiet_prints_the_result_alone(softmaxce: Softmaxce, small: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--quiet")
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == ["best", "test", "run"]
    assert done.stderr == ""


def test_verbose_also_tells_config_and_versions_on_stderr(softmaxce: Softmaxce, small: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--verbose", "--json")
    assert done.returncode == 0
    assert [event["event"] for event in events(done.stdout)] == ["start", "epoch", "epoch", "end"]
    printed = yaml.safe_load(done.stderr)
    assert printed["config"]["data"]["name"] == "synthetic"
    assert printed["environment"]["torch"] == torch.__version__


def on_a_terminal(arguments: list[str], folder: Path, **environment: str) -> str:
    """What the command prints on a terminal of 80 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *arguments], cwd=folder, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(slave)
    output = b""
    while True:
        if not select.select([master], [], [], 60)[0]:
            break
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(master)
    assert process.wait(60) == 0
    return output.decode()


def test_on_a_terminal_a_table_grows_and_fits_80_columns(small: Path, tmp_path: Path) -> None:
    output = on_a_terminal(["train", "--config", "small.yaml"], tmp_path)
    assert "\x1b[" in output
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    lines = [part for line in plain.splitlines() for part in line.split("\r")]
    header = next(line for line in lines if "train loss" in line)
    assert " ".join(header.split()) == "epoch lr train loss train acc val loss val acc images/s sec"
    assert "…" not in plain
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("arguments", [["list"], ["config", "list"]])
def test_lists_break_between_words_on_a_terminal_and_nowhere_in_a_pipe(
    arguments: list[str], tmp_path: Path, softmaxce: Softmaxce
) -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(arguments, tmp_path))
    piped = softmaxce(*arguments).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.split() == piped.split()  # no word is cut in two
    assert max(map(len, piped.splitlines())) > 80


def test_a_long_path_is_not_cut_in_two(softmaxce: Softmaxce, small: Path) -> None:
    folder = "/".join(["a_long_name_for_a_folder"] * 5)
    softmaxce("train", "--config", "small.yaml", "-q", "--output", folder)
    assert softmaxce("eval", folder).stdout.startswith(f"{folder}/best.safetensors (epoch ")


def test_no_color_and_force_color_hold_for_lists_and_errors(softmaxce: Softmaxce, tmp_path: Path) -> None:
    assert re.search(r"\x1b\[[\d;]*36m", softmaxce("list", FORCE_COLOR="1").stdout)
    assert "\x1b[1;31merror: \x1b[0m" in softmaxce("train", FORCE_COLOR="1").stderr
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", on_a_terminal(["list"], tmp_path, NO_COLOR="1"))


def test_no_color_takes_the_colours_away(small: Path, tmp_path: Path) -> None:
    output = on_a_terminal(["train", "--config", "small.yaml"], tmp_path, NO_COLOR="1")
    colours = re.findall(r"\x1b\[[\d;]*(?:3[0-7]|38;5;\d+)m", output)
    assert colours == []


def test_force_color_colours_a_pipe_without_a_bar(softmaxce: Softmaxce, small: Path) -> None:
    softmaxce("train", "--config", "small.yaml", "-q")
    done = softmaxce("eval", FORCE_COLOR="1")
    assert "\x1b[" in done.stdout
    trained = softmaxce("train", "--config", "small.yaml", FORCE_COLOR="1")
    assert "━" not in trained.stdout
    assert "\x1b[?25l" not in trained.stdout  # no hidden cursor


# -- requirements -----------------------------------------------------------------------------------------------------


def test_a_requirement_met_is_0_and_not_met_is_1(softmaxce: Softmaxce, small: Path) -> None:
    train = ("train", "--config", "small.yaml", "--epochs", "8")
    met = softmaxce(*train, "--require", "accuracy>=0.1", "--require", "ece<1")
    assert met.returncode == 0
    assert "require accuracy>=0.1: met, it is" in met.stdout
    unmet = softmaxce(*train, "--require", "accuracy>=0.1", "--require", "loss<0.000001")
    assert unmet.returncode == 1
    assert "require loss<1e-06: NOT met, it is" in unmet.stdout
    assert softmaxce("eval", "--require", "recall.class3>=0").returncode == 0
    assert softmaxce("eval", "--require", "f1.class3>1").returncode == 1
    wrong = softmaxce("eval", "--require", "recall.class33>0.5")
    assert wrong.returncode == 2
    assert "there is no class 'class33'; did you mean 'class3'?" in wrong.stderr


def test_a_diverging_run_is_1_and_says_why(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--set", "optimizer.lr=1e30", "--json")
    assert done.returncode == 1
    assert events(done.stdout)[-1]["status"] == "failed"
    assert done.stderr.startswith("error: the training loss is ")
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "runs/small/1/run.json").read_text())["status"] == "failed"


# -- interruption and resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_is_answered_with_its_status_and_the_way_on(
    number: signal.Signals, status: int, word: str, small: Path, tmp_path: Path, softmaxce: Softmaxce
) -> None:
    arguments = ["--set", "data.train=4000", "--epochs", "200"]
    process = subprocess.Popen(
        [COMMAND, "train", "--config", "small.yaml", "--json", "--output", "out", *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(3):  # the start and two epochs
        process.stdout.readline()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "resume with: softmaxce train --resume out" in stderr
    assert "Traceback" not in stderr
    end = events(stdout)[-1]
    assert end["status"] == word
    shown = softmaxce("eval", "out", "--json")  # what it left is whole
    assert shown.returncode == 0


def test_stopped_and_resumed_gives_the_uninterrupted_bits(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    train = ("train", "--config", "small.yaml", "--set", "data.train=4000", "--epochs", "6", "--json")
    whole = softmaxce(*train, "--output", "whole")
    process = subprocess.Popen([COMMAND, *train, "--output", "cut"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.kill()
    process.communicate()
    again = softmaxce("train", "--resume", "cut", "--json")
    assert again.returncode == 0
    assert events(again.stdout)[0]["epochs_done"] >= 1

    def epochs(folder: str) -> list[str]:
        return [steady(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]

    assert epochs("cut") == epochs("whole")
    assert events(again.stdout)[-1]["test"] == events(whole.stdout)[-1]["test"]
    for name in ("best.safetensors", "last.safetensors"):
        ours, reference = load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name)
        assert all((ours[key] == reference[key]).all() for key in reference)


def test_resume_auto_starts_goes_on_and_leaves_a_finished_run_alone(
    softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    line = ("train", "--config", "small.yaml", "--output", "out", "--resume", "auto", "--json")
    first = softmaxce(*line)
    assert events(first.stdout)[0]["epochs_done"] == 0
    metrics = (tmp_path / "out/metrics.jsonl").read_text()
    second = softmaxce(*line, "--require", "accuracy>=0")
    assert second.returncode == 0
    assert [event["event"] for event in events(second.stdout)] == ["start", "end"]
    assert events(second.stdout)[-1]["test"] == events(first.stdout)[-1]["test"]
    assert (tmp_path / "out/metrics.jsonl").read_text() == metrics


def test_a_resumed_run_keeps_its_config(softmaxce: Softmaxce, small: Path) -> None:
    softmaxce("train", "--config", "small.yaml", "--output", "out", "-q")
    done = softmaxce("train", "--resume", "out", "--set", "optimizer.lr=1")
    assert done.returncode == 2
    assert "optimizer.lr was 0.05 and is now 1" in done.stderr
    longer = softmaxce("train", "--resume", "out", "--epochs", "3", "--json")
    assert [event["epoch"] for event in events(longer.stdout) if event["event"] == "epoch"] == [3]


# -- eval -------------------------------------------------------------------------------------------------------------


def test_eval_gives_the_final_figures_of_train(softmaxce: Softmaxce, small: Path) -> None:
    trained = events(softmaxce("train", "--config", "small.yaml", "--json").stdout)[-1]
    figures = json.loads(softmaxce("eval", "--json").stdout)
    assert figures["accuracy"] == trained["test"]["accuracy"]
    assert figures["loss"] == pytest.approx(trained["test"]["loss"], rel=1e-6)
    assert len(figures["confusion"]) == 10
    assert sum(map(sum, figures["confusion"])) == figures["images"] == 40


def test_eval_knows_the_splits_and_a_checkpoint_elsewhere(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    softmaxce("train", "--config", "small.yaml", "-q")
    counts = [
        json.loads(softmaxce("eval", "--json", "--split", name).stdout)["images"] for name in ("validation", "train")
    ]
    assert counts == [24, 72]
    (tmp_path / "runs/small/1/best.safetensors").rename(tmp_path / "moved.safetensors")
    assert json.loads(softmaxce("eval", "moved.safetensors", "--json").stdout)["images"] == 40


def test_eval_prints_every_figure_as_text(softmaxce: Softmaxce, small: Path) -> None:
    softmaxce("train", "--config", "small.yaml", "-q")
    done = softmaxce("eval", "runs/small/1")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("loss", "accuracy", "top5_accuracy", "nll", "brier", "ece", "precision", "class9", "confusion matrix"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no run under runs/ here"),
        (("nothing",), "nothing: there is no such run folder or checkpoint"),
        (("small.yaml",), "small.yaml: is not a readable checkpoint"),
        (("--split", "tset"), "--split: must be test, validation (or val) or train, got 'tset'; did you mean 'test'?"),
    ],
)
def test_eval_of_what_is_no_run_is_2_in_one_line(
    arguments: tuple[str, ...], message: str, softmaxce: Softmaxce, small: Path
) -> None:
    done = softmaxce("eval", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_eval_of_another_folder_of_images(softmaxce: Softmaxce, tmp_path: Path) -> None:
    from PIL import Image

    for split, number in (("train", 12), ("test", 4), ("other", 3)):
        for name, shade in (("dark", 20), ("light", 230)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                Image.new("L", (12 + index % 2, 12), shade + index).save(folder / f"{index}.png")
    config = "epochs: 3\ndata: {name: image_folder, root: images, size: 8, channels: 1, batch_size: 4}\n"
    (tmp_path / "folder.yaml").write_text(config + "model: linear\noptimizer: {name: sgd, lr: 0.1}\n")
    assert softmaxce("train", "--config", "folder.yaml", "-q").returncode == 0
    done = softmaxce("eval", "--data", "images/other", "--json")
    assert json.loads(done.stdout)["images"] == 6
    assert json.loads(done.stdout)["accuracy"] == 1.0
    missing = softmaxce("eval", "--data", "images/none")
    assert missing.returncode == 2
    assert "images/none" in missing.stderr


# -- the user's own code ----------------------------------------------------------------------------------------------

OWN = """\
from torch import nn

def broken(): raise KeyError("boom")

class Forward(nn.Module):
    def forward(self, logits, targets): return {}["key"]

def detached(): return lambda logits, targets: nn.functional.cross_entropy(logits.detach(), targets)

def late():
    calls = []
    def loss(logits, targets):
        calls.append(1)
        if len(calls) > 2: raise ArithmeticError("not today")
        return nn.functional.cross_entropy(logits, targets)
    return loss
"""


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("broken", 2, "own.py:broken: KeyError: 'boom' (own.py:3)"),
        ("Forward", 2, "own.py:Forward cannot take logits [B, K] and class ids [B]: KeyError: 'key' (own.py:6)"),
        ("detached", 2, "own.py:detached has no gradient"),
        ("late", 1, "error: epoch 1: ArithmeticError: not today (own.py:14)"),
    ],
)
def test_a_users_loss_that_fails_is_one_line_with_its_location(
    name: str, status: int, message: str, softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    done = softmaxce("train", "--config", "small.yaml", "-q", "--set", f"loss=own.py:{name}", "--output", "out")
    assert done.returncode == status
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if status == 1:
        assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "failed"
        again = softmaxce("train", "--config", "small.yaml", "-v", "--set", f"loss=own.py:{name}")
        assert "Traceback" in again.stderr  # --verbose shows how it came to be


def test_an_optimizers_argument_that_it_stumbles_over_is_one_line(softmaxce: Softmaxce, small: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--set", "optimizer={name: adam, betas: [0.9]}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_layers_and_memory_and_leaves_nothing(
    softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--dry-run")
    assert done.returncode == 0
    assert re.search(r"parameters: 4,282\b", done.stdout)  # 256 * 16 + 16 + 16 * 10 + 10
    assert not (tmp_path / "runs").exists()
    done = softmaxce("train", "--config", "small.yaml", "--dry-run", "--set", "model={name: cnn, channels: [4, 8]}")
    assert "MaxPool2x2 + ReLU" in done.stdout  # in one layer
    done = softmaxce("train", "--config", "small.yaml", "--dry-run", "--set", "model={name: resnet9, width: 2}")
    assert "Scaled" in done.stdout
    assert not re.search(r"\s_[A-Z]", done.stdout)  # no name that is private in Python


def test_a_users_own_loss_is_looked_up_in_the_current_folder(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    (tmp_path / "mylab").mkdir()
    code = "from torch import nn\nclass Mine(nn.CrossEntropyLoss):\n    pass\n"
    (tmp_path / "mylab" / "losses.py").write_text(code)
    assert softmaxce("train", "--config", "small.yaml", "--set", "loss=mylab.losses:Mine", "-q").returncode == 0


def test_new_writes_a_copy_that_trains_and_never_overwrites(softmaxce: Softmaxce, tmp_path: Path) -> None:
    assert softmaxce("config", "new", "digits", "mine.yaml").returncode == 0
    assert "# clip_grad_norm: null  # " in (tmp_path / "mine.yaml").read_text()
    assert "mine.yaml: ok" in softmaxce("config", "check", "mine.yaml").stdout
    again = softmaxce("config", "new", "digits", "mine.yaml")
    assert again.returncode == 2
    assert "mine.yaml: exists and is left as it is" in again.stderr


def test_list_names_everything_on_the_menus(softmaxce: Softmaxce) -> None:
    from softmaxce.config import registry

    listed = json.loads(softmaxce("list", "--json").stdout)
    for entry in registry.REGISTRIES.values():
        assert set(entry.targets) <= set(listed[entry.kind])
        assert all(about["doc"] for about in listed[entry.kind].values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["explain", "--help"],
        ["list"],
        ["config", "list"],
        ["config", "schema"],
    ],
)
def test_what_needs_no_torch_does_not_import_it(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from importlib.metadata import entry_points; from typer.testing import CliRunner\n"
        "app = next(iter(entry_points(group='console_scripts', name='softmaxce'))).load()\n"
        f"result = CliRunner().invoke(app, {arguments}); print(result.exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False"


def test_help_says_of_each_command_what_the_command_says_of_itself(app: typer.Typer) -> None:
    group: Any = typer.main.get_command(app)
    for name, (_, _, summary) in sys.modules[type(group).__module__].COMMANDS.items():
        group.load(name)
        assert group.commands[name].help.splitlines()[0] == summary
    assert list(group.commands) == group.list_commands(None)


def test_help_imports_no_command(tmp_path: Path) -> None:
    code = "import sys\nfrom softmaxce_cli.main import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    "
    code += "print(sorted(name for name in sys.modules if name.startswith(('softmaxce', 'yaml', 'pydantic'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [
        "softmaxce",
        "softmaxce.errors",
        "softmaxce.runtime",
        "softmaxce.runtime.signals",
        "softmaxce.streams",
        "softmaxce_cli",
        "softmaxce_cli.ending",
        "softmaxce_cli.main",
        "softmaxce_cli.startup",
        "softmaxce_cli.usage",
    ]
    assert done.stdout.splitlines()[-1] == str(names)


def test_a_misspelt_command_is_answered_with_the_one_that_is_meant(softmaxce: Softmaxce) -> None:
    done = softmaxce("trian")
    assert done.returncode == 2
    assert done.stderr == "error: there is no command 'trian'; did you mean 'train'?\n"


def test_a_reader_that_goes_away_ends_the_run_without_a_traceback(small: Path, tmp_path: Path) -> None:
    command = f"{COMMAND} train --config small.yaml --epochs 50 --json | head -n 1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_one_line_and_1(small: Path, tmp_path: Path) -> None:
    # the system refuses files beyond 8 KiB, as a full disk would; the checkpoint is larger
    command = f"ulimit -f 8; {COMMAND} train --config small.yaml --quiet"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: runs/small/1/best.safetensors: File too large; allow larger files (ulimit -f) and resume with: "
        "softmaxce train --resume runs/small/1\n"
    )
    assert not (tmp_path / "runs/small/1/best.safetensors.tmp").exists()


SCRIPT = """\
set -euo pipefail
softmaxce train --config small.yaml --epochs 12 --output out --quiet
softmaxce eval out --json --require 'accuracy>=0.05' > out.json
echo "held: $?"
accuracy=$(python3 -c 'import json; print(json.load(open("out.json"))["accuracy"])')
echo "accuracy $accuracy"
status=0
softmaxce eval out --json --require 'accuracy>1' > /dev/null || status=$?
echo "failed: $status"
"""


def test_a_shell_script_sees_0_and_1(small: Path, tmp_path: Path) -> None:
    (tmp_path / "ci.sh").write_text(SCRIPT)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "ci.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"accuracy (0\.\d+|1\.0)", lines[-2])
    assert [lines[-3], lines[-1]] == ["held: 0", "failed: 1"]


def test_a_file_of_nothing_but_mistakes_is_answered_in_a_page(softmaxce: Softmaxce, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("".join(f"key{i}{'x' * 1000 * (i == 0)}: 1\n" for i in range(4000)))
    done = softmaxce("config", "check", "f.yaml")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 21
    assert max(map(len, lines)) < 700
    assert lines[-1] == "error: ... and 3984 more mistakes"


def test_a_mistake_in_a_config_is_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("epochs: 0\ndata: {name: digits, batchsize: 64}\nmodel: linear\noptimizer: adam\n")
    code = "import sys\nfrom softmaxce_cli.main import app\n"
    code += "try:\n    app(['train', '--config', 'x.yaml', '--set', 'seed=1', '--verbose'])\n"
    code += "finally:\n    print({'torch', 'numba', 'rich', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "set()\n"
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--config", "a b", "--set", "x=1", "--set", "", "--seed", "3", "--output", "there"],
        ["--require", "accuracy>=1", "--require", "loss<=1"],
        ["-c", "é", "--seeds", "4", "--epochs", "2", "--log", "tensorboard", "--json", "-q", "--device", "cpu"],
        ["--resume", "auto", "--report", "--trust-code", "--dry-run", "-v"],
    ],
)
def test_options_have_the_values_that_typer_itself_gives_them(app: typer.Typer, words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    group.load("train")
    ours = group.commands["train"]
    plain = typer.Typer()
    plain.command()(ours.callback)
    theirs: Any = typer.main.get_command(plain)
    found, expected = (command.make_context("train", list(words)).params for command in (ours, theirs))
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}
