"""The command `softmaxce bench loss`."""

import json

import pytest
import torch

from cli.bench import CLASSES, ROWS
from softmaxce.bench import candidates
from softmaxce.bench.accuracy import Errors
from softmaxce.bench.clock import Spread, Timed
from softmaxce.bench.loss import Case, Result, measure
from softmaxce.bench.loss_in_training import compare
from softmaxce.errors import ConfigError
from softmaxce.report import bench_loss, console

from ..helpers import Softmaxce

QUICK = ("bench", "loss", "--shapes", "16x4", "--rounds", "2")


def test_json_holds_every_cell_and_every_candidate(softmaxce: Softmaxce) -> None:
    without_compiling = {"TORCH_COMPILE_DISABLE": "1"}  # which takes half a minute
    done = softmaxce(*QUICK, "--dtypes", "bf16", "--json", **without_compiling)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    output = json.loads(done.stdout)
    cells = [(cell["shape"], cell["dtype"], cell["threads"]) for cell in output["cells"]]
    assert cells == [([16, 4], "bfloat16", 1)]
    compiled = not any("torch.compile" in note for note in output["notes"])
    for cell in output["cells"]:
        assert set(cell["losses"]) == {"torch", "ours", "naive"} | ({"compiled"} if compiled else set())
        for loss in cell["losses"].values():
            low, high = loss["forward_and_backward"]["seconds"]["quartiles"]
            assert 0 < low <= loss["forward_and_backward"]["seconds"]["median"] <= high < 1
            assert loss["peak_memory_per_logits"] >= 1
        assert cell["losses"]["torch"]["forward"]["ratio"] == {"median": 1.0, "quartiles": [1.0, 1.0]}
    assert output["geometric_mean_ratios"]["forward"]["torch"] == 1.0
    assert output["environment"]["torch"] == torch.__version__


def test_tables_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    losses = candidates.candidates(with_compiled=False)
    losses["compiled"] = losses["naive"]  # as wide, and compiled sooner
    cases = [Case(2, 128256, "bfloat16", torch.device("cpu"), 1), Case(32, 10, "bfloat16", torch.device("cpu"), 1)]
    results = [(case, measure(case, losses, 2)) for case in cases]
    bench_loss.print_loss(results, console.stdout())
    printed = capsys.readouterr().out
    assert max(map(len, printed.split("±:")[0].splitlines())) <= 80
    assert "…" not in printed
    assert printed.count("2x128256") == 4
    assert printed.count("geometric mean") == 2


def test_the_grid_is_a_table_per_dtype_whose_slow_cells_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (Timed(Spread(1e-4, 1e-4, 1e-4), Spread(ratio, ratio, ratio)) for ratio in (1.1, 1.04))
    cpu = torch.device("cpu")
    timed = {(64, 2): few, (64, 1000): many, (16384, 2): many, (16384, 1000): few}
    results = [
        (Case(*shape, dtype, cpu, 1), {"torch": _result(few), "ours": _result(both), "naive": _result(few)})
        for dtype in ("float32", "bfloat16")
        for shape, both in timed.items()
    ]
    bench_loss.print_grid(results, console.stdout())
    printed = capsys.readouterr().out
    assert max(map(len, printed.split("cells above")[0].splitlines())) <= 80
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["64"], ["16384"])]
    assert rows == [["64", "1.10", "1.04"], ["16384", "1.04", "1.10"]] * 2
    listed = printed[printed.index("cells above") :].splitlines()[0].partition(": ")[2]
    of_float32 = [
        "64x1000 float32, 1 thread 1.04",
        "16384x2 float32, 1 thread 1.04",
        "16384x1000 float32, 1 thread 1.10",
    ]
    assert listed.split("; ") == [*of_float32, *(cell.replace("float32", "bfloat16") for cell in of_float32)]


def _result(both: Timed) -> Result:
    return Result(both, both, 1.0, Errors(0.0, 0.0))


def test_the_grid_has_54_shapes() -> None:
    shapes = {(rows, classes) for rows in ROWS for classes in CLASSES}
    assert len(shapes) == 54
    assert {(64, 2), (4096, 32), (512, 100), (16384, 1000)} <= shapes


def test_training_steps_are_timed_with_either_loss(softmaxce: Softmaxce) -> None:
    done = softmaxce("bench", "loss", "--train", "linear", "--batch", "8,16", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["training"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [("linear", 8), ("linear", 16)]
    for row in rows:
        assert set(row["step"]) == {"torch", "ours"}
        assert all(1e-5 < timed["seconds"]["median"] < 1 for timed in row["step"].values())


def test_a_model_that_cannot_take_the_images_is_named() -> None:
    with pytest.raises(ConfigError, match="mlp"):
        compare("softmaxce.models.mlp:nothing", 8, 1, torch.device("cpu"), 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--shapes", "10"], "--shapes: write rows x classes, such as 128x10, got '10'"),
        (["--shapes", "0x10"], "--shapes: write rows x classes, such as 128x10, got '0x10'"),
        (["--dtypes", "float23"], "--dtypes: there is no 'float23'; did you mean 'float32'?"),
        (["--threads", "0"], "--threads: must be whole numbers, at least 1, got '0'"),
        (["--threads", "1,,2"], "--threads: write values separated by commas, got '1,,2'"),
        (["--train", "lenett"], "--train: there is no 'lenett' among the models; did you mean 'lenet'?"),
        (["--grid", "--shapes", "2x3"], "--grid: has its own shapes and measures losses alone; leave out --shapes"),
        (["--grid", "--train", "linear"], "--grid: has its own shapes and measures losses alone; leave out --train"),
        (["--device", "cuda:99"], "device: 'cuda:99' is not there"),
        (["softmax_crossentropy"], "did you mean 'softmax_cross_entropy'?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(softmaxce: Softmaxce, arguments: list[str], line: str) -> None:
    done = softmaxce("bench", "loss", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
