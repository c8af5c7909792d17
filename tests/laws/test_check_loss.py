"""`softmaxce check-loss` in real processes: output, exit status and errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from softmaxce import check_loss
from softmaxce.config import registry
from softmaxce.errors import ConfigError

from ..helpers import Softmaxce

OWN = """
import torch
from torch import nn
from torch.nn import functional

def naive(logits, targets):
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -p.gather(1, targets[:, None]).log().mean()

def scaled(logits, targets, scale=1.0):
    return functional.cross_entropy(scale * logits, targets)

def smoothed(logits, targets, gamma=2.0, smoothing=0.0):
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return (-torch.expm1(-losses)) ** gamma * losses
smoothed.not_claimed = {"soft_targets": "class ids only"}

def in_place(logits, targets):
    return functional.cross_entropy(logits.sub_(1), targets)

def reverse(targets, logits):
    return functional.nll_loss(logits.log_softmax(1), targets)

def counts_classes(logits, targets):
    return -(functional.one_hot(targets, int(targets.max()) + 1) * logits.log_softmax(1)).sum(1).mean()

class Only3(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 0.5]))
    def forward(self, logits, targets):
        return functional.cross_entropy(logits, targets, self.weight)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_the_exit_status_for_a_sound_loss_is_0_and_every_law_has_a_line(softmaxce: Softmaxce, tmp_path: Path) -> None:
    done = softmaxce("check-loss", "softmax_cross_entropy", "--reference", "torch_cross_entropy", "--skip", "compile")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows if row and row[0] in registry.LAWS] == list(registry.LAWS)
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "softmax_cross_entropy obeys all 18 laws checked",
        "not checked: compile (skipped by --skip)",
    ]
    assert list(tmp_path.iterdir()) == []  # no file is left behind


def test_the_exit_status_for_a_failed_law_is_1_and_its_smallest_input_and_a_hint_are_printed(
    softmaxce: Softmaxce, own: Path
) -> None:
    done = softmaxce("check-loss", "own.py:naive", "--only", "finite", "--only", "shift")
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    start = lines.index("finite: in float32 the value is inf")
    assert lines[start + 1].split(None, 1) == ["with", "logits = torch.tensor([[0., 10000.]])"]
    assert lines[start + 2] == "targets = torch.tensor([0])"
    assert "subtract each row's largest logit before exp" in lines[start + 3]
    assert lines[-2:] == ["own.py:naive violates 1 of 2 laws checked: finite", "not checked: 17 other laws (--only)"]


@pytest.mark.parametrize("mistake", ["twice", "no_minus", "epsilon"])
def test_common_mistakes_are_detected_without_a_reference(softmaxce: Softmaxce, tmp_path: Path, mistake: str) -> None:
    (tmp_path / "own.py").write_text("""
from torch.nn import functional

def twice(logits, targets):
    return functional.cross_entropy(logits.softmax(1), targets)

def no_minus(logits, targets):
    return -functional.cross_entropy(logits, targets)

def epsilon(logits, targets):
    return functional.nll_loss((logits.softmax(1) + 1e-9).log(), targets)
""")
    done = softmaxce(
        "check-loss", f"own.py:{mistake}", "--only", "monotonic", "--only", "minimum", "--only", "saturation"
    )
    assert done.returncode == 1, done.stdout


def test_a_gradient_of_the_wrong_sign_is_not_called_vanishing() -> None:
    def no_minus(logits: Tensor, targets: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(logits, targets)

    def twice(logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.softmax(1), targets)

    (sign,), (vanishing,) = (check_loss(loss, only=["saturation"]) for loss in (no_minus, twice))
    assert sign.detail.startswith("the gradient with respect to the label's logit has the wrong sign: it is 1 where ")
    assert "vanish" not in sign.detail
    assert sign.look_at.startswith("the sign, ")
    assert vanishing.detail.startswith("the gradient with respect to the label's logit vanishes: ")


def test_a_loss_that_vmap_refuses_has_pytorchs_reason_in_one_sentence_and_its_own_line(
    softmaxce: Softmaxce, own: Path
) -> None:
    done = softmaxce("check-loss", "own.py:counts_classes", "--only", "vmap", "--json")
    (law,) = json.loads(done.stdout)["laws"]
    assert law["detail"] == "it raises vmap: It looks like you're calling .item() on a Tensor (own.py:25)"
    assert "F.one_hot without num_classes" in law["look_at"]


def test_the_last_line_names_the_option_that_compares_with_cross_entropy(softmaxce: Softmaxce, own: Path) -> None:
    option = "--reference softmax_cross_entropy"
    laws = ("--only", "value,gradient,finite")
    (line, *reversed_rest) = reversed(softmaxce("check-loss", "own.py:naive", *laws).stdout.splitlines())
    assert line == (
        "not checked: value, gradient (no --reference to compare with); 16 other laws (--only); "
        f"to compare with cross-entropy: {option}"
    )
    assert reversed_rest[0] == "own.py:naive violates 1 of 1 laws checked: finite"
    assert option not in softmaxce("check-loss", "own.py:naive", *laws, *option.split()).stdout


def test_json_has_every_law_with_its_smallest_input_and_the_cost(softmaxce: Softmaxce, own: Path) -> None:
    skipped = (option for law in registry.LAWS if law not in ("finite", "shift", "value") for option in ("--skip", law))
    done = softmaxce("check-loss", "own.py:naive", "--json", *skipped)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    laws = {line["law"]: line for line in report["laws"]}
    assert list(laws) == list(registry.LAWS)
    assert report["sound"] is False
    assert laws["finite"]["smallest_input"] == {"logits": [[0, 1e4]], "targets": [0]}
    assert laws["shift"]["verdict"] == "holds"
    assert laws["shift"]["examples"] >= 50
    assert laws["value"] | {"seconds": 0} == {
        "law": "value",
        "claim": "the value equals the reference's",
        "verdict": "not asked",
        "detail": "no --reference to compare with",
        "examples": 0,
        "seconds": 0,
    }
    small, large = report["cost"]["times"]
    assert (small["rows"], small["num_classes"], large["num_classes"]) == (128, 10, 1000)
    assert large["seconds"] > small["seconds"] > 0


def test_the_last_lines_say_which_arguments_the_reference_got_and_which_not(softmaxce: Softmaxce, own: Path) -> None:
    common = ("check-loss", "own.py:smoothed", "--reference", "focal", "--only", "value")
    done = softmaxce(*common)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-3] == "reference: focal(gamma=2.0); not given to it: smoothing"
    answer = json.loads(softmaxce(*common, "--set", "gamma=0.5", "--json").stdout)
    assert answer["reference"]["gamma"] == 0.5
    assert answer["not_given_to_reference"] == ["smoothing"]
    done = softmaxce("check-loss", "own.py:naive", "--reference", "softmax_cross_entropy", "--only", "value")
    assert done.stdout.splitlines()[-3] == "reference: softmax_cross_entropy()"


def test_what_a_function_does_not_claim_is_an_attribute_of_it_as_of_a_class(softmaxce: Softmaxce, own: Path) -> None:
    for arguments in ((), ("--set", "gamma=1.5")):
        done = softmaxce("check-loss", "own.py:smoothed", *arguments, "--only", "soft_targets", "--only", "shift")
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1].startswith("not checked: soft_targets (class ids only)")


def test_arguments_are_passed_to_the_loss_and_the_reference(softmaxce: Softmaxce, own: Path) -> None:
    value = ("--only", "value", "--reference", "softmax_cross_entropy")
    assert softmaxce("check-loss", "own.py:scaled", *value).returncode == 0
    assert softmaxce("check-loss", "own.py:scaled", "--set", "scale=1.01", *value).returncode == 1
    smoothed = ("--set", "label_smoothing=0.1", *value)
    assert softmaxce("check-loss", "torch.nn:CrossEntropyLoss", *smoothed).returncode == 0


def test_a_loss_for_a_fixed_number_of_classes_is_tested_with_that_number(softmaxce: Softmaxce, own: Path) -> None:
    done = softmaxce("check-loss", "own.py:Only3", "--classes", "3", "--only", "permutation", "--only", "rows")
    assert done.returncode == 0, done.stdout
    refused = softmaxce("check-loss", "own.py:Only3", "--classes", "5")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: own.py:Only3 cannot take logits [B, K] and class ids [B]: weight tensor")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("focl",), "there is no 'focl' among the losses"),
        (
            ("own.py",),
            "'own.py' is a file, not a name in it; write own.py:naive or own.py:scaled or own.py:smoothed or",
        ),
        (("nowhere.py",), "'nowhere.py' is a file, not a name in it; there is no file 'nowhere.py'"),
        (("own.py:reverse",), "(own.py:22) (a loss is called with logits, then targets)"),
        (("own.py:naiv",), "own.py defines no 'naiv'; did you mean 'naive'?"),
        (("nowhere.py:loss",), "there is no file 'nowhere.py'"),
        (("own.py:scaled", "--set", "scal=2"), "--set scal=2: own.py:scaled takes no 'scal'; did you mean 'scale'?"),
        (("own.py:scaled", "--set", "scale"), "--set scale: write it as key=value"),
        (("own.py:naive", "--reference", "softmaxcross"), "--reference: there is no 'softmaxcross' among the losses"),
        (("softmax_cross_entropy", "--set", "label_smoothing=2"), "label_smoothing must be a number in [0, 1], got 2"),
        (("softmax_cross_entropy", "--skip", "shfit"), "--skip shfit: there is no such law; did you mean 'shift'?"),
        (
            ("own.py:naive", "--only", "value", "--only", "gradient"),
            "no --reference to compare with); add --reference softmax_cross_entropy",
        ),
        (
            ("own.py:naive", "--only", "shift", "--skip", "shift"),
            "--only shift: no law was checked (skipped by --skip); choose other laws",
        ),
        (("own.py:in_place",), "own.py:in_place cannot take logits [B, K] and class ids [B]: a leaf Variable"),
        (("softmax_cross_entropy", "--device", "cuda:99"), "'cuda:99' is not there"),
    ],
)
def test_the_exit_status_for_a_mistake_is_2_and_the_message_one_line(
    arguments: tuple[str, ...], message: str, softmaxce: Softmaxce, own: Path
) -> None:
    done = softmaxce("check-loss", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_mistake_is_reported_without_importing_torch(tmp_path: Path) -> None:
    program = """
import sys
from importlib.metadata import entry_points
from typer.testing import CliRunner
app = next(iter(entry_points(group="console_scripts", name="softmaxce"))).load()
for arguments in (["focl"], ["softmax_cross_entropy", "--set", "x=1"], ["--help"]):
    CliRunner().invoke(app, ["check-loss", *arguments])
print({"torch", "hypothesis", "mpmath"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- from Python ------------------------------------------------------------------------------------------------------


def naive(logits: Tensor, targets: Tensor) -> Tensor:
    """Overflows at logits of 1e4."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -p.gather(1, targets[:, None]).log().mean()


def test_python_and_the_command_give_the_same_result_for_each_law(softmaxce: Softmaxce, own: Path) -> None:
    done = softmaxce("check-loss", "own.py:naive", "--only", "finite,shift", "--json")
    reported = [{**law, "seconds": 0} for law in json.loads(done.stdout)["laws"]]
    for loss in (naive, f"{own}/own.py:naive"):
        results = check_loss(loss, only=["finite", "shift"])
        assert [result.status for result in results] == ["passed", "failed"]
        assert [{**result.to_dict(), "seconds": 0} for result in results] == reported


def test_an_object_is_checked_as_it_is_and_never_rebuilt() -> None:
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]))
    results = check_loss(weighted, reference=nn.CrossEntropyLoss(), num_classes=3, only=["value", "rows", "reductions"])
    assert {result.law: result.status for result in results} == {
        "value": "failed",
        "rows": "passed",
        "reductions": "not applicable",
    }
    assert weighted.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": naive, "only": ["shfit"]}, "shfit: there is no such law; did you mean 'shift'?"),
        ({"loss": "softmax_cros_entropy"}, "did you mean 'softmax_cross_entropy'?"),
        ({"loss": "softmax_cross_entropy", "arguments": {"smoothing": 0.1}}, "did you mean 'label_smoothing'?"),
        ({"loss": nn.CrossEntropyLoss}, "loss: must be a name, or an object"),
        ({"loss": naive, "arguments": {"scale": 2.0}}, "arguments: are only for a loss that is given by its name"),
        ({"loss": naive, "reference": "own.py"}, "reference: "),
        ({"loss": lambda logits, targets: logits}, "must return a scalar or one loss per image"),
    ],
)
def test_a_mistake_in_a_call_of_check_loss_names_the_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_loss(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)
