"""Every kind of mistake that a person makes in a config or on the command line, and how it is answered.

One process runs the whole table through the installed command and notes whether torch was ever imported.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GOOD = """\
seed: 0
epochs: 2
data:
  name: synthetic
  batch_size: 32
model: {name: mlp, hidden: [16]}
loss: {name: softmax_cross_entropy, label_smoothing: 0.1}
optimizer: {name: sgd, lr: 0.1}
schedule: cosine
"""


@dataclass(frozen=True)
class Mistake:
    """A config (GOOD with one text replaced by another), arguments, and the lines that answer it."""

    old: str = ""
    new: str = ""
    arguments: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    config: bool = True
    files: dict[str, str] = field(default_factory=dict)


def edit(old: str, new: str, *answers: str, **files: str) -> Mistake:
    named = {name.replace("_py", ".py"): text for name, text in files.items()}
    return Mistake(old, new, (), tuple(f"c.yaml:{answer}" for answer in answers), files=named)


def line(*arguments: str, answer: str, config: bool = True) -> Mistake:
    return Mistake(arguments=arguments, answers=(answer,), config=config)


MISTAKES = {
    # -- names
    "model misspelt": edit("mlp,", "mpl,", "6:15: there is no 'mpl' among the models; did you mean 'mlp'?"),
    "loss misspelt": edit(
        "softmax_cross_entropy", "softmax_crossentropy", "7:14: there is no 'softmax_crossentropy' among the losses; did"
    ),
    "a file without a name in it": edit(
        "{name: mlp, hidden: [16]}",
        "own.py",
        "6:8: 'own.py' is a file, not a name in it; write own.py:Net or own.py:make",
        own_py="class Net: ...\n_hidden = 1\ndef _helper(): ...\ndef make(): ...\n",
    ),
    "optimizer unknown": edit("sgd", "lion9000", "8:19: there is no 'lion9000' among the optimizers; `softmaxce list"),
    "optimizer in torch's case": edit("name: sgd", "name: Adam", "8:19: there is no 'Adam' among the optimizers; did you"),
    "schedule misspelt": edit("cosine", "cosin", "9:11: there is no 'cosin' among the schedules; did you mean 'cosine'?"),
    "dataset misspelt": edit("synthetic", "minst", "4:9: there is no 'minst' among the datasets; did you mean 'mnist'?"),
    "torchvision model misspelt": edit(
        "{name: mlp, hidden: [16]}", "torchvision:resnet81", "6:8: torchvision has no model 'resnet81'; did you mean"
    ),
    "module not there": edit("name: mlp, hidden: [16]", "name: 'no.such:Net'", "6:15: there is no module 'no' to import"),
    "file not there": edit("name: mlp, hidden: [16]", "name: 'net.py:Net'", "6:15: there is no file 'net.py'"),
    "name not in the user's file": edit(
        "name: mlp, hidden: [16]", "name: 'net.py:Net'", "6:15: net.py defines no 'Net'; did you mean 'Nett'?",
        net_py="class Nett: pass\n",
    ),
    "user's file does not parse": edit(
        "name: mlp, hidden: [16]", "name: 'net.py:Net'", "6:15: net.py:1:", net_py="class Net(:\n"
    ),
    "name without its component's name": edit("name: sgd, ", "", "8:12: optimizer needs a 'name', got {'lr': 0.1}"),
    "a list for a component": edit("schedule: cosine", "schedule: [cosine]", "9:11: schedule must be a name or a mapping"),
    # -- arguments
    "argument misspelt": edit(
        "label_smoothing", "label_smothing",
        "7:37: softmax_cross_entropy takes no 'label_smothing'; did you mean 'label_smoothing'?",
    ),
    "argument of another optimizer": edit("lr: 0.1", "lr: 0.1, betas: [0.9, 0.99]", "8:33: sgd takes no 'betas'; it takes lr,"),
    "argument of the wrong type": edit("lr: 0.1", "lr: fast", "8:28: lr must be a number of at least 0, got 'fast'"),
    "argument out of range": edit("0.1}\nopt", "1.5}\nopt", "7:54: label_smoothing must be a number in [0, 1], got 1.5"),
    "number in quotes": edit("lr: 0.1", "lr: '0.1'", "8:28: lr must be a number of at least 0, got '0.1'"),
    "yaml 1.1 number": edit("batch_size: 32", "batch_size: 1_024", "5:15: batch_size must be a positive whole number or auto, got '1_024'"),
    "supplied argument": edit("hidden: [16]", "hidden: [16], num_classes: 10", "6:34: 'num_classes' is supplied by softmaxce"),
    "needed argument missing": edit("schedule: cosine", "schedule: step", "9:1: step needs 'step_size' (a positive whole number)"),
    "argument of the user's own loss": edit(
        "softmax_cross_entropy, label_smoothing", "'tilt.py:Tilted', taw", "7:32: tilt.py:Tilted takes no 'taw'; did you mean 'tau'?",
        tilt_py="class Tilted:\n    def __init__(self, tau: float = 1.0):\n        raise SystemExit('was run')\n",
    ),
    "a choice misspelt": edit(
        "label_smoothing: 0.1", "reduction: men", "7:48: reduction must be one of mean, sum, none, got 'men'; did you mean 'mean'?"
    ),
    "torch's name for the learning rate": edit("lr: 0.1", "learning_rate: 0.1", "8:24: sgd takes no 'learning_rate'; did you mean 'lr'?"),
    "list with a wrong item": edit("[16]", "[16, no]", "6:28: hidden must be a list of positive whole numbers, got [16, 'no']"),
    # -- keys
    "top-level key misspelt": edit("epochs: 2", "epoch: 2", "2:1: a config takes no 'epoch'; did you mean 'epochs'?", "1:1: a config needs 'epochs'"),
    "key of another trainer": edit("seed: 0", "lr: 0.1", "1:1: a config takes no 'lr'; here it is optimizer.lr"),
    "batch size at the top": edit("seed: 0", "batch_size: 32", "1:1: a config takes no 'batch_size'; here it is data.batch_size"),
    "criterion for loss": edit("loss:", "criterion:", "7:1: a config takes no 'criterion'; here it is loss"),
    "data key misspelt": edit("batch_size", "batchsize", "5:3: synthetic takes no 'batchsize'; did you mean 'batch_size'?"),
    "data key of another trainer": edit("batch_size: 32", "val_split: 0.1", "5:3: synthetic takes no 'val_split'; did you mean 'validation'?"),
    "data left out": edit("data:\n  name: synthetic\n  batch_size: 32\n", "", "1:1: a config needs 'data'"),
    "epochs zero": edit("epochs: 2", "epochs: 0", "2:9: epochs must be a positive whole number, got 0"),
    "epochs a fraction": edit("epochs: 2", "epochs: 2.5", "2:9: epochs must be a positive whole number, got 2.5"),
    "seed true": edit("seed: 0", "seed: true", "1:7: seed must be a whole number in [0, 9223372036854775808), got true"),
    "seed beyond 63 bits": edit("seed: 0", "seed: 9223372036854775808", "1:7: seed must be a whole number in [0, 92233"),
    "a number that is none": edit("lr: 0.1", "lr: .nan", "8:28: lr must be a number of at least 0, got nan"),
    "normalize misspelt": edit("batch_size: 32", "normalize: imgnet", "5:14: normalize must be one of auto, model, imagenet, none or a mapping, got"),
    "precision unknown": edit("seed: 0", "precision: fp15", "1:12: precision must be one of float32, bf16, fp16, auto, got 'fp15'"),
    "device unknown": edit("seed: 0", "device: gpu", "1:9: device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    "validation zero": edit("batch_size: 32", "validation: 0", "5:15: validation must be"),
    "validation of one whole": edit("batch_size: 32", "validation: 1.0", "5:15: validation must be a fraction between 0 and 1 or a whole number of images, got 1.0; for so many images write 1"),
    "validation above one": edit("batch_size: 32", "validation: 1.5", "5:15: validation must be"),
    "normalize half given": edit("batch_size: 32", "normalize: {mean: [0.5]}", "5:3: normalize needs 'std'"),
    "augmentation misspelt": edit(
        "batch_size: 32", "augment: [random_crop, flip]", "5:26: there is no 'flip' among the augmentations"
    ),
    "augmentation's argument": edit(
        "batch_size: 32", "augment: [{name: random_crop, pad: 4}]", "5:33: random_crop takes no 'pad'; did you mean 'padding'?"
    ),
    "augment no list": edit("batch_size: 32", "augment: random_crop", "5:12: augment must be a list, got 'random_crop'"),
    "a metric misspelt": edit("seed: 0", "metrics: [macro_f]", "1:10: metrics must be a list, each one of accuracy, loss, top5_accuracy, nll, brier, ece, macro_f1, balanced_accuracy, worst_class_recall, macro_roc_auc, macro_average_precision, got ['macro_f']; did you mean 'macro_f1'?"),
    "unfreezing what is not frozen": edit("seed: 0", "fine_tuning: {unfreeze_epoch: 2}", "1:15: nothing is frozen; add freeze: backbone"),
    "fine tuning a word": edit("seed: 0", "fine_tuning: backbone", "1:14: write it as {freeze: backbone, unfreeze_epoch: 3}, got 'backbone'"),
    "layer decay at the top": edit("seed: 0", "layer_decay: 0.7", "1:1: a config takes no 'layer_decay'; here it is fine_tuning.layer_decay"),
    "two averages": edit("seed: 0", "model_ema_decay: 0.9\nswa: {start_epoch: 1}", "2:1: swa and model_ema_decay are two averages"),
    "distillation without a teacher": edit("seed: 0", "distillation: {weight: 0.5}", "1:1: distillation needs 'teacher'"),
    "early stopping a number": edit("seed: 0", "early_stopping: 5", "1:17: write it as {patience: 5}, got 5"),
    "early stopping without validation": edit(
        "seed: 0", "early_stopping: {patience: 3}", "1:1: early_stopping needs a validation split; set data.validation"
    ),
    # -- the file
    "repeated key": edit("seed: 0", "epochs: 1", "2:1: 'epochs' was already set on line 1"),
    "tab": edit("  batch_size", "\tbatch_size", "5:1: is not valid YAML"),
    "bracket missing": edit("[16]}", "[16}", "6:31: is not valid YAML"),
    "python tag": edit("seed: 0", "seed: !!python/object/apply:os.getpid []", "1:7: the tag"),
    "empty": edit(GOOD, "", " is empty"),
    "a list": edit(GOOD, "- seed: 0\n", "1:1: must be a mapping"),
    "every mistake at once": edit(
        GOOD, "epochs: x\ndata: {name: digts}\nmodel: lenett\noptimizer: {name: sgd, lrr: 1}\nwhat: 1\n",
        "1:9: epochs must be", "2:14: there is no 'digts'", "3:8: there is no 'lenett'", "4:24: sgd takes no 'lrr'", "5:1: a config takes no 'what'",
    ),
    # -- the command line
    "no such config": line("--config", "nowhere.yaml", answer="--config: there is no file 'nowhere.yaml'", config=False),
    "recipe misspelt": line("--config", "digit", answer="--config: there is no file and no recipe called 'digit'; did you mean 'digits'?", config=False),
    "recipe in capitals": line("--config", "DIGITS", answer="--config: there is no file and no recipe called 'DIGITS'; did you mean 'digits'?", config=False),
    "no config": line(answer="CONFIG: is required", config=False),
    "set without a value": line("--set", "epochs", answer="--set epochs: write it as key=value"),
    "set of an unknown key": line("--set", "optimizer.lrr=1", answer="--set optimizer.lrr=1: sgd takes no 'lrr'; did you mean 'lr'?"),
    "set of a wrong value": line("--set", "data.batch_size=none", answer="--set data.batch_size=none: batch_size must be a positive"),
    "set below a number": line("--set", "epochs.x=1", answer="--set epochs.x=1: 'epochs' is a plain value"),
    "set with broken yaml": line("--set", "model=[a", answer="--set model=[a: is not valid YAML"),
    "device option": line("--device", "gpu0", answer="--device: device must be auto, cpu, cuda, cuda:N or mps, got 'gpu0'"),
    "epochs option": line("--epochs", "0", answer="--epochs: epochs must be a positive whole number, got 0"),
    "requirement without a number": line("--require", "accuracy", answer="--require accuracy: write it as metric>=number"),
    "requirement in percent": line("--require", "accuracy>=99", answer="--require accuracy>=99: accuracy lies in [0, 1]; write accuracy>=0.99"),
    "requirement a little above 1": line("--require", "accuracy>=1.01", answer="--require accuracy>=1.01: accuracy lies in [0, 1]"),
    "requirement above 100": line("--require", "accuracy>=101%", answer="--require accuracy>=101%: accuracy lies in [0, 1]"),
    "requirement of a class in percent": line("--require", "recall.3>=95", answer="--require recall.3>=95: recall.3 lies in [0, 1]; write recall.3>=0.95"),
    "requirement of a loss in percent": line("--require", "loss<=5%", answer="--require loss<=5%: loss is a number, not a percentage; write loss<=0.05"),
    "requirement of an unknown figure": line("--require", "acuracy>=0.9", answer="--require acuracy>=0.9: there is no metric 'acuracy'; did you"),
    "resume from nothing": line("--resume", "runs/none", answer="--resume runs/none: there is no run in this folder"),
    "unknown option": line("--confg", "x", answer="--confg: there is no such option; did you mean '--config'?"),
    "epochs not a number": line("--epochs", "many", answer="--epochs: must be a whole number"),
}  # fmt: skip

DRIVER = """
import json, os, sys
from importlib.metadata import entry_points
from typer.testing import CliRunner

app = next(iter(entry_points(group="console_scripts", name="softmaxce"))).load()
answers = {}
for name, (folder, arguments) in json.load(sys.stdin).items():
    os.chdir(folder)
    result = CliRunner().invoke(app, arguments)
    answers[name] = [result.exit_code, result.stdout, result.stderr, "torch" in sys.modules]
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, bool]]:
    """What each mistake got: exit status, stdout, stderr, and whether torch had been imported by then."""
    top = tmp_path_factory.mktemp("mistakes")
    calls = {}
    for name, mistake in MISTAKES.items():
        assert mistake.old in GOOD
        folder = top / name.replace(" ", "_").replace("'", "")
        folder.mkdir()
        text = GOOD.replace(mistake.old, mistake.new, 1) if mistake.old else GOOD
        for file, content in {"c.yaml": text, **mistake.files}.items():
            (folder / file).write_text(content)
        calls[name] = (str(folder), ["train", *(["--config", "c.yaml"] if mistake.config else []), *mistake.arguments])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(calls), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, tuple[int, str, str, bool]] = json.loads(done.stdout)
    return answers


def test_there_are_at_least_forty() -> None:
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_with_its_location_and_a_remedy(
    name: str, answers: dict[str, tuple[int, str, str, bool]]
) -> None:
    status, stdout, stderr, torch_imported = answers[name]
    assert status == 2
    assert stdout == ""
    assert "Traceback" not in stderr
    assert not torch_imported
    lines = stderr.splitlines()
    for expected in MISTAKES[name].answers:
        assert any(text.removeprefix("error: ").startswith(expected) or expected in text for text in lines), stderr
    if MISTAKES[name].old:
        assert len(lines) == len(MISTAKES[name].answers), stderr  # every mistake, and none invented


def test_the_config_they_start_from_is_sound(tmp_path: Path) -> None:
    from softmaxce.config import reader

    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    assert reader.load(str(file)).epochs == 2
