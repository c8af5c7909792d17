"""What `softmaxce explain` prints: the expected text, the width, the mistakes, and the numbers of a real image."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.cells import cell_len
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from torchvision.transforms import v2
from typer.testing import CliRunner

from softmaxce.build import load_source
from softmaxce.data.splits import InMemory
from softmaxce.errors import DataError
from softmaxce.explain import trained
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.report import terminal_art

from ..helpers import SMALL, Softmaxce
from .conftest import Explain
from .conftest import trained as trained_run

EXAMPLE = ("--logits", "2.0,1.0,0.1", "--label", "0", "--classes", "cat,dog,bird")


def test_three_logits_print_the_expected_text(softmaxce: Softmaxce) -> None:
    done = softmaxce("explain", *EXAMPLE)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout == Path(__file__).with_name("three_logits.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "names", [("a" * 60, "b", "c"), ("猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫", "犬", "鳥" * 30), ("cat", "dog", "bird")]
)
@pytest.mark.parametrize("more", [(), ("--weight", "1000,0.001,3", "--label-smoothing", "0.25")])
@pytest.mark.parametrize("logits", ["2,1,0.1", "-700,3.5e8,-1e5"])
def test_nothing_wraps_or_is_cut_at_80_columns(
    explain: Explain, names: tuple[str, ...], more: tuple[str, ...], logits: str
) -> None:
    for color in ({}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}):
        done = explain("--logits", logits, "--label", "1", "--classes", ",".join(names), *more, **color)
        assert done.exit_code == 0, done.output
        lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
        assert max(map(cell_len, lines[1:])) <= 80
        assert all(line == line.rstrip() for line in lines)
        assert names[1] in done.stdout


def test_colors_are_used_only_on_a_terminal_or_by_force(explain: Explain) -> None:
    assert "\x1b[" not in explain(*EXAMPLE).stdout
    assert "\x1b[" in explain(*EXAMPLE, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", explain(*EXAMPLE, FORCE_COLOR="1", NO_COLOR="1").stdout)


def test_an_encoding_without_bars_gets_question_marks_and_no_traceback(softmaxce: Softmaxce) -> None:
    done = softmaxce("explain", *EXAMPLE, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "0.6590" in done.stdout


def test_of_many_classes_the_largest_and_the_label_have_a_row_and_the_rest_one_together(explain: Explain) -> None:
    logits = [1.0 - index / 50 for index in range(100)]
    done = explain("--logits", ",".join(map(str, logits)), "--label", "99")
    softmaxed = done.stdout.split("Softmax")[1].split("The label L")[0]
    rows = re.findall(r"^   (class \d+|91 others) +([\d.e-]+)  ", softmaxed, re.MULTILINE)
    assert [name for name, _ in rows] == [*(f"class {i}" for i in range(8)), "class 99", "91 others"]
    assert float(rows[-1][1]) == pytest.approx(softmax(logits)[8:99].sum(), abs=1e-4)
    assert sum(float(number) for _, number in rows) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no run under runs/ here; train one"),
        (("--logits", "1,2"), "--label: is required with --logits"),
        (("--logits", "1,x", "--label", "0"), "--logits: 'x' is not a number"),
        (("--logits", "1,inf", "--label", "0"), "--logits: numbers must be finite"),
        (("--logits", "1", "--label", "0"), "--logits: needs two numbers or more"),
        (("--logits", "1,2", "--label", "2"), "--label: there is no class '2'; the classes are class 0, class 1"),
        (("--logits", "1,2", "--label", "0=0.7,1=0.7"), "--label: the probabilities must add up to 1, got 1.4"),
        (("--logits", "1,2", "--label", "0=x"), "--label: 'x' is not a number"),
        (("--logits", "1,2", "--label", "0=,1=1"), "--label: '0=': needs one probability from 0 to 1"),
        (("--logits", "1,2", "--label", "0=0.5 0.5"), "--label: '0=0.5 0.5': needs one probability from 0 to 1"),
        (("--logits", "1,2", "--label", "0", "--classes", "a"), "--classes: needs one name for each of the 2 logits"),
        (("--logits", "1,2", "--label", "0", "--classes", "a,a"), "--classes: names must differ"),
        (("--logits", "1,2", "--label", "0", "--weight", "1,-1"), "--weight: needs 2 numbers"),
        (
            ("--logits", "1,2", "--label", "0", "--index", "1"),
            "--logits: cannot be combined with RUN",
        ),
        (("nothing", "--index", "1", "--weight", "1,2"), "--weight: is only for --logits"),
        (("--logits", "1,2", "--label", "0", "--mix", "1"), "--mix: is only for --index"),
        (("nothing", "no.png", "--mix", "1"), "--mix: is only for --index"),
        (("nothing", "--index", "1", "--mix", "1=2"), "--mix: needs an image's number and its weight from 0 to 1"),
        (("nothing", "--index", "1", "--mix", "x"), "--mix: needs an image's number and its weight from 0 to 1"),
        (("nothing", "--index", "1"), "nothing: there is no such run folder or checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_2(
    explain: Explain, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no run of the reader's own is under runs/ here
    done = explain(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_mistake_is_answered_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from importlib.metadata import entry_points; from typer.testing import CliRunner\n"
        "app = next(iter(entry_points(group='console_scripts', name='softmaxce'))).load()\n"
        "done = CliRunner().invoke(app, ['explain', '--logits', '1,2', '--label', '7'])\n"
        "print(done.exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


def test_probabilities_of_several_classes_are_a_soft_label(explain: Explain) -> None:
    answer = json.loads(explain(*EXAMPLE[:2], "--label", "cat=0.7,bird=0.3", *EXAMPLE[4:], "--json").stdout)
    assert answer["true_class"] == "cat"
    expected = -(np.array([0.7, 0, 0.3]) * log_softmax([2.0, 1.0, 0.1])).sum()
    assert answer["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("more", "minimum"),
    [
        # Q = [0.7, 0.6, 0] sums to 1.3: -0.7 log(7/13) - 0.6 log(6/13) = 0.8972
        (
            ("--label", "a=0.7,b=0.3", "--weight", "1,2,1"),
            "0.8972, reached when S equals the weighted label Q / sum(Q) (a: 0.5385, b: 0.4615, c: 0)",
        ),
        # Q = [0.8, 0.2, 0.1] sums to 1.1: -0.8 log(8/11) - 0.2 log(2/11) - 0.1 log(1/11) = 0.8355
        (
            ("--label", "a", "--label-smoothing", "0.3", "--weight", "1,2,1"),
            "0.8355, reached when S equals the weighted label Q / sum(Q) (a: 0.7273, b: 0.1818, c: 0.0909)",
        ),
        # -0.7 log 0.7 - 0.3 log 0.3 = 0.6109
        (("--label", "a=0.7,b=0.3"), "0.6109, reached when S equals the label"),
        # -0.8 log 0.8 - 0.2 log 0.1 = 0.6390
        (("--label", "a", "--label-smoothing", "0.3"), "0.6390, reached when S equals the smoothed label"),
    ],
)
def test_the_loss_is_said_to_be_least_where_it_is(explain: Explain, more: tuple[str, ...], minimum: str) -> None:
    text = " ".join(explain("--logits", "2,1,0.1", "--classes", "a,b,c", *more).stdout.split())
    assert f"Its minimum is {minimum}." in text


def test_a_loss_that_is_0_at_any_probabilities_has_no_minimum_named(explain: Explain) -> None:
    text = " ".join(explain("--logits", "2,1", "--label", "0", "--weight", "0,1").stdout.split())
    assert "All Q are 0, so it is 0 whatever S is." in text
    assert "Its minimum" not in text


@pytest.mark.parametrize("logits", [[20.0, 0.0], [2.0, 1.0, 0.1], [0.0, 12.0, -20.0]])
def test_the_formula_that_is_printed_gives_the_stable_loss_that_is_printed(
    explain: Explain, logits: list[float]
) -> None:
    text = explain("--logits", ",".join(map(str, logits)), "--label", "0").stdout
    assert "log(sum) - (z_y - largest), with log(sum) computed as log1p(rest + expm1(z_y - largest)), where y is" in (
        " ".join(text.split())
    )
    (printed,) = re.findall(r"^   float32 +\S+ +(\S+) .*e[-+]", text, re.MULTILINE)
    z = np.float32(logits)
    rest, behind = np.exp(z - z.max())[1:].sum(), z[0] - z.max()
    assert float(printed) == pytest.approx(float(np.log1p(rest + np.expm1(behind)) - behind), rel=3e-7)


@pytest.mark.parametrize("more", [("--label", "0=0.7,1=0.3"), ("--label", "0", "--weight", "2,1,1")])
def test_the_formula_that_is_printed_is_the_general_one_where_the_loss_is_a_weighted_sum(
    explain: Explain, more: tuple[str, ...]
) -> None:
    text = " ".join(explain("--logits", "2,1,0.1", *more).stdout.split())
    q = "Q" if "--weight" in more else "L"
    assert f"as softmaxce computes it: sum({q}) log(sum) - the sum of {q} (z - largest), with log(sum)" in text


def test_a_loss_that_a_format_rounds_to_0_is_0_and_named(explain: Explain) -> None:
    text = explain("--logits", "20,0", "--label", "0").stdout  # the loss is 2.06e-09; float16 ends at 6e-08
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if re.match("   b?float.*(e-|round)", line)}
    assert rows["float64"][3:] == []
    assert rows["float32"] == ["0", "2.0611537e-09", "2.1e-09", "naive:", "rounded", "to", "0"]
    assert rows["float16"] == ["0", "0", "0", "both", "rounded", "to", "0"]
    assert "-0.0" not in text


def test_a_loss_that_is_0_in_truth_is_not_said_to_be_rounded(explain: Explain) -> None:
    assert "rounded to 0" not in explain("--logits", "20,0", "--label", "0", "--weight", "0,1").stdout


def test_a_logit_of_minus_0_is_printed_as_0(explain: Explain) -> None:
    assert "-0.0000" not in explain("--logits", "-0.0,-1", "--label", "0").stdout


@pytest.mark.parametrize(
    ("logits", "change"),
    [
        # log(1 + e^-5) = 0.00671535; both logits move by S(1) = 0.00669285: log(1 + e^-5.0133857) = 0.00662635
        ("5,0", "falls by 8.900e-05: 0.0067 -> 0.0066"),
        # to first order the loss falls by the squared norm of the gradient, 2 e^-40 = 8.497e-18
        ("20,0", "falls by 8.497e-18: 2.061e-09 -> 2.061e-09"),
    ],
)
def test_the_loss_falls_by_a_number_that_has_digits(explain: Explain, logits: str, change: str) -> None:
    assert f"The loss {change}." in explain("--logits", logits, "--label", "0").stdout


def test_at_the_minimum_the_loss_does_not_change(explain: Explain) -> None:
    text = explain("--logits", "1,1", "--label", "0=0.5,1=0.5").stdout
    assert "The loss does not change: 0.6931 -> 0.6931." in text


@pytest.mark.parametrize(
    ("classes", "label", "name"), [("3,4,5", "5", "class 5"), ("class 0,class 1,class 2", "class 2", "class 2")]
)
def test_a_class_that_is_named_by_a_number_is_called_class_once(
    explain: Explain, classes: str, label: str, name: str
) -> None:
    done = explain("--logits", "2,1,0.1", "--label", label, "--classes", classes)
    text = " ".join(done.stdout.split())
    assert f"The label is {name}. As a vector" in text
    assert f"only the term of {name} remains" in text
    assert f"-log S({name}) = " in text
    assert "class class" not in text


def test_json_holds_every_value_of_the_steps(explain: Explain) -> None:
    answer = json.loads(explain(*EXAMPLE, "--json").stdout)
    for name in ("logits", "shifted", "exponentials", "probabilities", "targets", "terms", "gradient"):
        assert len(answer[name]) == 3
    assert answer["step"]["loss"] < answer["loss"]
    assert [entry["limit"]["naive"] for entry in answer["formats"]] == ["inf"] * 4


# -- of a run ---------------------------------------------------------------------------------------------------------


def column(text: str, heading: str, which: int) -> list[float]:
    """A column of numbers of the table under a heading, a row a class."""
    section = re.split(r"^ ?\d+ ", text.split(heading)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^   \d  .*$", section, re.MULTILINE)
    return [float(row.split()[which]) for row in rows]


def test_the_numbers_printed_for_a_real_mnist_image_are_scipys(explain: Explain, mnist_run: Path) -> None:
    done = explain(str(mnist_run), "--index", "18", "--digits", "10")
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert "the label is class 3" in text
    z = np.array(column(text, "weighted sums", 1))
    run = TrainedModel.open(mnist_run, device="cpu")
    with torch.no_grad():
        image, label = trained.split_image(run, "test", 18)
        pixels = (image.float() / 255 - run.preprocessing.mean[0]) / run.preprocessing.std[0]
        np.testing.assert_allclose(z, run.model(pixels.unsqueeze(0))[0].numpy(), rtol=1e-4, atol=1e-5)
    assert label == 3
    one_hot = np.eye(10)[3]
    np.testing.assert_allclose(column(text, "Softmax: ", 1), softmax(z), rtol=1e-6)
    np.testing.assert_allclose(column(text, "exp of each", 1), np.exp(z - z.max()), rtol=1e-6)
    np.testing.assert_allclose(column(text, "Cross-entropy: ", 2), log_softmax(z), rtol=1e-6)
    np.testing.assert_allclose(column(text, "Cross-entropy: ", 3), -one_hot * log_softmax(z), rtol=1e-6)
    np.testing.assert_allclose(column(text, "The gradient: ", 3), softmax(z) - one_hot, rtol=1e-6, atol=1e-10)
    (loss,) = re.findall(r"-log S\(class 3\) = ([\d.e-]+)", text)
    np.testing.assert_allclose(float(loss), -log_softmax(z)[3], rtol=1e-6)


def test_smoothing_and_weights_of_the_run_are_in_the_steps(explain: Explain, linear_run: Path) -> None:
    answer = json.loads(explain(str(linear_run), "--index", "1", "--json").stdout)
    label = int(answer["true_class"])
    q = (0.9 * np.eye(10)[label] + 0.01) * [1, 2, 1, 1, 1, 1, 1, 1, 1, 0.5]
    s = softmax(answer["raw_logits"])
    np.testing.assert_allclose(answer["targets"], q, rtol=1e-6)
    np.testing.assert_allclose(answer["loss"], -(q * np.log(s)).sum(), rtol=1e-6)
    np.testing.assert_allclose(answer["gradient"], q.sum() * s - q, rtol=1e-6)
    text = explain(str(linear_run), "--index", "1").stdout
    assert "Label smoothing distributes 0.1000" in text
    assert "every class contributes a term" in " ".join(text.split())


def test_a_mixed_image_is_torchvisions_mixup(explain: Explain, linear_run: Path) -> None:
    answer = json.loads(explain(str(linear_run), "--index", "1", "--mix", "2=0.25", "--json").stdout)
    run = TrainedModel.open(linear_run, device="cpu")
    source = load_source(run.config)
    assert isinstance(source.test, InMemory)
    images, labels = source.test.images[[1, 2]].float(), source.test.labels[[1, 2]]
    mixup, options = v2.MixUp(num_classes=10), {"labels": labels, "batch_size": 2, "lam": 0.75}
    mixed, soft_labels = mixup.transform(images, options), mixup.transform(labels, options)
    np.testing.assert_allclose(np.array(answer["image"]), mixed[0].numpy(), atol=0.51)
    np.testing.assert_allclose(answer["label"], soft_labels[0].numpy(), rtol=1e-6)
    leaf = torch.tensor([answer["raw_logits"]], dtype=torch.float64)
    weight = torch.tensor([1, 2, 1, 1, 1, 1, 1, 1, 1, 0.5], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(leaf, soft_labels[:1].double(), weight, label_smoothing=0.1)
    assert answer["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_the_pixels_contributions_and_the_bias_add_up_to_the_logits(explain: Explain, linear_run: Path) -> None:
    answer = json.loads(explain(str(linear_run), "--index", "1", "--json").stdout)
    pixels = np.array(answer["contributions"]["pixels"])
    assert pixels.shape == (10, 8, 8)
    total = pixels.sum((1, 2)) + answer["contributions"]["bias"]
    np.testing.assert_allclose(total, answer["raw_logits"], rtol=1e-4, atol=1e-5)


def test_an_index_is_the_image_of_that_split(explain: Explain, linear_run: Path) -> None:
    answer = json.loads(explain(str(linear_run), "--index", "7", "--json").stdout)
    pixels, labels = load_digits(return_X_y=True)
    assert answer["true_class"] == str(labels[35])  # the test set is every fifth image
    np.testing.assert_allclose(np.array(answer["image"]).reshape(-1), pixels[35] * 255 / 16, atol=0.5)
    done = explain(str(linear_run), "--index", "360")
    assert done.exit_code == 2
    assert "image 360: the test split has the images 0 to 359" in done.stderr


def test_a_file_is_explained_as_the_same_image_of_the_split(explain: Explain, linear_run: Path, tmp_path: Path) -> None:
    source = load_source(TrainedModel.open(linear_run, device="cpu").config)
    assert isinstance(source.test, InMemory)
    image, label = source.test.images[3], int(source.test.labels[3])
    Image.fromarray(image[0].numpy()).save(tmp_path / "digit.png")
    of_split = json.loads(explain(str(linear_run), "--index", "3", "--json").stdout)
    of_file = json.loads(explain(str(linear_run), str(tmp_path / "digit.png"), "--label", str(label), "--json").stdout)
    assert {**of_file, "title": ""} == {**of_split, "title": ""}
    unlabelled = explain(str(linear_run), str(tmp_path / "digit.png"))
    assert "the predicted class is taken as the label" in " ".join(unlabelled.stdout.split())
    missing = explain(str(linear_run), "no.png")
    assert missing.exit_code == 2
    assert missing.stderr == "error: no.png: there is no such file\n"


def test_another_loss_is_named_with_its_value_beside_cross_entropy(
    app: typer.Typer, explain: Explain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_of_it.py").write_text(
        "import torch\ndef half(logits, targets):\n    return torch.nn.functional.cross_entropy(logits, targets) / 2\n"
    )
    run = trained_run(app, tmp_path, SMALL + "loss: half_of_it.py:half\n")
    refused = explain(str(run), "--index", "0")
    assert refused.exit_code == 2
    assert "--trust-code" in refused.stderr
    answer = json.loads(explain(str(run), "--index", "0", "--json", "--trust-code").stdout)
    assert answer["own_loss"]["name"] == "half_of_it.py:half"
    assert answer["own_loss"]["loss"] == pytest.approx(answer["loss"] / 2, rel=1e-5)
    np.testing.assert_allclose(answer["own_loss"]["gradient"], np.array(answer["gradient"]) / 2, rtol=1e-4, atol=1e-7)
    text = explain(str(run), "--index", "0", "--trust-code").stdout
    first = " ".join(text.split("\n 1 ")[0].split())
    assert "trained with another loss, half_of_it.py:half" in first  # before the first step
    file = tmp_path / "page.html"
    assert explain(str(run), "--index", "0", "--trust-code", "--html", str(file)).exit_code == 0
    assert "trained with another loss, half_of_it.py:half" in file.read_text(encoding="utf-8").split("<noscript>")[0]


def test_a_calibrated_run_is_explained_at_its_temperature_unless_another_is_given(
    app: typer.Typer, explain: Explain, linear_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(linear_run, run)
    done = CliRunner().invoke(app, ["calibrate", str(run), "--json"])
    fitted = json.loads(done.stdout)["temperature"]
    assert fitted != 1
    answer = json.loads(explain(str(run), "--index", "0", "--json").stdout)
    assert answer["temperature"] == fitted
    np.testing.assert_allclose(answer["probabilities"], softmax(np.array(answer["raw_logits"]) / fitted), rtol=1e-9)
    assert json.loads(explain(str(run), "--index", "0", "--json", "--temperature", "1").stdout)["temperature"] == 1


def test_a_class_that_the_loss_ignores_is_refused_with_its_name(linear_run: Path) -> None:
    run = TrainedModel.open(linear_run, device="cpu")
    image, label = trained.split_image(run, "test", 0)
    loss = replace(run.config.loss, arguments={"ignore_index": label})
    ignoring = replace(run, config=replace(run.config, loss=loss))
    with pytest.raises(DataError, match=f"ignores the class {label}"):
        trained.explain_image(ignoring, image, label, title="an image")
    trained.explain_image(ignoring, image, (label + 1) % 10, title="an image")


def test_where_several_views_are_averaged_the_missing_pixels_are_accounted_for(linear_run: Path) -> None:
    single, several = (TrainedModel.open(linear_run, device="cpu", tta=tta) for tta in ("none", "crops"))
    image, target = trained.split_image(single, "test", 0)
    assert trained.explain_image(single, image, target, title="").contributions is not None
    explained = trained.explain_image(several, image, target, title="")
    assert explained.contributions is None
    assert any("contributions of the pixels are not shown" in note for note in explained.notes)


def test_contributions_of_pixels_are_not_mentioned_where_none_are_shown(linear_run: Path) -> None:
    run = replace(TrainedModel.open(linear_run, device="cpu", tta="crops"), temperature=2.0)
    image, target = trained.split_image(run, "test", 0)
    explained = trained.explain_image(run, image, target, title="")
    (note,) = [note for note in explained.notes if "undivided" in note]
    assert "The first table shows the undivided logits." in note
    assert "pixels" not in note


def test_a_run_with_mixup_says_how_a_mixed_image_is_explained(linear_run: Path) -> None:
    run = TrainedModel.open(linear_run, device="cpu")
    image, label = trained.split_image(run, "test", 0)
    mixing = replace(run, config=replace(run.config, mixup_alpha=0.2))
    assert "--mix 5=0.3" in trained.explain_image(mixing, image, label, title="an image").notes[0]


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_half_blocks_hold_two_rows_of_pixels_each() -> None:
    image = torch.arange(24 * 26 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(3, 26, 24)
    lines = terminal_art.picture(image, color=True)
    assert len(lines) == 13
    for row, line in enumerate(lines):
        assert line.plain == "▀" * 24
        for column_, span in enumerate(line.spans):
            above, below = (",".join(map(str, image[:, 2 * row + k, column_].tolist())) for k in (0, 1))
            assert span.style == f"rgb({above}) on rgb({below})"


def test_a_large_image_is_made_to_fit() -> None:
    lines = terminal_art.picture(torch.full((1, 300, 600), 255, dtype=torch.uint8), color=False)
    assert [line.plain for line in lines] == ["@" * 56] * 14


def test_a_bar_is_as_long_as_its_number() -> None:
    assert terminal_art.bar(1.0, 0.0, 1.0, 8) == "█" * 8
    assert terminal_art.bar(0.5625, 0.0, 1.0, 8) == "████▌"
    assert terminal_art.bar(-1.0, -1.0, 1.0, 8) == "████│"
    assert terminal_art.bar(-0.625, -1.0, 1.0, 8) == " ▐██│"
    assert terminal_art.bar(1.0, -1.0, 1.0, 8) == "    │████"


def test_the_curve_marks_the_probability() -> None:
    lines = [line.plain for line in terminal_art.curve(0.5, 0.6931, "S", "bold", width=40)]
    assert lines[-1].index("▲") == 3 + 20
    heights = [
        sum(line[3 + column_] not in " " for line in lines[:7] if len(line) > 3 + column_) for column_ in range(40)
    ]
    assert heights == sorted(heights, reverse=True)
    assert "outside the plot" in terminal_art.curve(0.0, 90.0, "S", "bold")[-1].plain


def test_with_a_temperature_it_says_which_numbers_are_of_the_undivided_logits(
    explain: Explain, linear_run: Path
) -> None:
    plain, divided = (
        json.loads(explain(str(linear_run), "--index", "0", *more, "--json").stdout)
        for more in ((), ("--temperature", "2"))
    )
    assert divided["raw_logits"] == plain["raw_logits"]
    assert divided["loss"] != plain["loss"]
    (note,) = [note for note in divided["notes"] if "undivided" in note]
    assert f"Training minimizes and eval reports the loss of these: {plain['loss']:.4f} nats." in note
    assert "The first table and the contributions of the pixels show the undivided logits." in note
    assert not [note for note in plain["notes"] if "undivided" in note]
