"""`softmaxce bench gpu`: its parts on the CPU with small sizes, and what ends a part."""

import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from softmaxce.bench import gpu
from softmaxce.bench.gpu_loss import _differs, _exact
from softmaxce.bench.gpu_part import PARTS
from softmaxce.bench.gpu_training import _airbench_runs
from softmaxce.report import bench_gpu, console
from softmaxce.runtime.random_state import set_deterministic

from ..helpers import Softmaxce

CARD = {"name": "a card", "memory_bytes": 2**34, "compute_capability": "9.0", "driver": None, "date": "2026-11-30"}
CARD |= {"triton": None, "liger_kernel": None}
TESTS = """\
import pytest

pytestmark = pytest.mark.gpu

def test_passes(): ...
def test_fails(): assert False
def test_skips(): pytest.skip("no")
"""
SLOW = """\
import pathlib, pytest, time

pytestmark = pytest.mark.gpu

def test_first(): ...
def test_slow():
    pathlib.Path("begun").touch()
    time.sleep(60)
"""
AIRBENCH = """\
import pathlib, sys, time
assert pathlib.Path("cifar10/cifar-10-batches-py").is_symlink()
for accuracy in (0.1, 0.9421):
    print("|         |      1  |     0.8125  |     0.7012  |               |          0.5121  |")
    print("|         |   eval  |     0.9125  |     0.9312  |       %.4f  |          2.5121  |" % accuracy)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, gpu.Part]:
    """Every part on the CPU: the tests in a process of their own, the others in this one."""
    checkout = tmp_path_factory.mktemp("checkout")
    checkout.joinpath("tests").mkdir()
    checkout.joinpath("pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    checkout.joinpath("tests", "test_some.py").write_text(TESTS)
    airbench = checkout / "airbench94_muon.py"
    airbench.write_text(AIRBENCH)
    quick = ["model=linear", "epochs=1", "data.train_limit=256", "device=cpu"]
    here = [*quick, f"data.root={checkout}"]
    stand_in = ["data.size=28", "data.train=512", "data.validation=64"]
    arguments: dict[str, dict[str, Any]] = {
        gpu.TESTS: {"root": str(checkout)},
        gpu.LOSS: {"device": "cpu", "shapes": [(64, 10)], "dtypes": ["bfloat16", "float32"], "rounds": 2},
        gpu.TRAINING: {
            "recipes": {"mnist_fast": {"overrides": here, "stand_in": stand_in}},
            "rounds": 2,
            "plain_batches": 1,
        },
        gpu.CIFAR10: {"recipe": "digits", "overrides": quick, "target": 0.2, "runs": 1, "airbench": str(airbench)},
        gpu.PROCESSES: {"device": "cpu", "counts": [1], "images": 128, "epochs": 2},
    }
    assert arguments.keys() == gpu.arguments().keys()
    for name, full in gpu.arguments().items():
        assert arguments[name].keys() == full.keys()
    measured = {gpu.TESTS: next(gpu.measure({gpu.TESTS: arguments.pop(gpu.TESTS)}, lambda name: None))}
    arguments[gpu.CIFAR10]["deadline"] = time.time() + 600
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")  # which takes half a minute
        patch.setenv("NVIDIA_TF32_OVERRIDE", "")
        for name, options in arguments.items():
            stream = io.StringIO()
            PARTS[name](gpu.Report(stream), **options)
            measured[name] = gpu.part_of(name, stream.getvalue(), 0.0)
    set_deterministic(False)
    return measured


def test_the_tests_marked_gpu_are_counted_and_those_that_fail_named(parts: dict[str, gpu.Part]) -> None:
    part = parts[gpu.TESTS]
    assert part.status == gpu.FAILED
    counts = bench_gpu.to_dict(CARD, [part])["parts"][gpu.TESTS]
    assert [counts[name] for name in ("passed", "failed", "skipped")] == [1, 1, 1]
    assert counts["failed_tests"] == ["tests/test_some.py::test_fails"]


def test_each_loss_has_a_time_and_a_share_of_the_copying_speed(parts: dict[str, gpu.Part]) -> None:
    part = parts[gpu.LOSS]
    assert part.status == gpu.DONE, part.failures
    assert [(row["shape"], row["dtype"]) for row in part.rows] == [([64, 10], "bfloat16"), ([64, 10], "float32")]
    for row in part.rows:
        assert {"torch", "ours"} <= row["losses"].keys()
        assert row["losses"]["torch"]["ratio"] == 1.0
        for result in row["losses"].values():
            speed = 2 * 64 * 10 * (2 if row["dtype"] == "bfloat16" else 4) / result["seconds"] / result["of_copy_speed"]
            assert speed / 1e9 == pytest.approx(float(part.notes[0].split()[1]), abs=0.5)  # "copying 12 GB/s ..."


def test_a_recipe_whose_images_are_not_here_is_trained_on_synthetic_ones(parts: dict[str, gpu.Part]) -> None:
    part = parts[gpu.TRAINING]
    assert part.status == gpu.DONE, part.failures
    (row,) = part.rows
    assert (row["recipe"], row["images"], row["cuda_graph"]) == ("mnist_fast", "synthetic", False)
    assert "synthetic images of the same shape, as the data set is not in " in part.notes[0]
    assert all(row[name]["images_per_second"] > 0 for name in ("ceiling", "softmaxce", "plain"))


def test_the_time_to_an_accuracy_is_that_of_the_command_and_of_the_public_program(parts: dict[str, gpu.Part]) -> None:
    part = parts[gpu.CIFAR10]
    assert part.status == gpu.DONE, part.failures
    ours, public = part.rows
    assert ours["program"] == "softmaxce digits"
    assert 0 < ours["training_seconds"] < ours["process_seconds"]
    assert ours["reached"] == (ours["accuracy"] >= 0.2)
    assert (public["program"], public["accuracy"], public["training_seconds"]) == ("airbench94_muon", 0.9421, 2.5121)


def test_one_process_that_acts_as_a_group_gives_the_bits_of_an_ordinary_one(parts: dict[str, gpu.Part]) -> None:
    part = parts[gpu.PROCESSES]
    assert part.status == gpu.DONE, part.failures
    ordinary, group = part.rows
    assert [(row["processes"], row["backend"]) for row in part.rows] == [(1, None), (1, "gloo")]
    assert len(group["losses"]) == 2
    assert group["losses"] == ordinary["losses"]
    assert group["equal"]


def test_all_results_are_printed_and_are_json(parts: dict[str, gpu.Part], capsys: pytest.CaptureFixture[str]) -> None:
    bench_gpu.print_parts(CARD, list(parts.values()), console.stdout())
    printed = capsys.readouterr().out
    for text in ("1 passed, 1 failed, 1 skipped", "64x10", "mnist_fast", "airbench94_muon", "failed: tests failed"):
        assert text in printed
    assert json.loads(json.dumps(bench_gpu.to_dict(CARD, list(parts.values())), allow_nan=False))["gpu"] == CARD


def test_a_part_that_takes_too_long_or_is_interrupted_ends_and_what_it_has_measured_counts(tmp_path: Path) -> None:
    tmp_path.joinpath("tests").mkdir()
    tmp_path.joinpath("pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    tmp_path.joinpath("tests", "test_slow.py").write_text(SLOW)
    arguments: dict[str, dict[str, Any]] = {gpu.TESTS: {"root": str(tmp_path)}}
    began = time.monotonic()
    (late,) = gpu.measure(arguments, lambda name: None, {gpu.TESTS: 1.0})
    (broken,) = gpu.measure({gpu.TESTS: {"unknown": 1}}, lambda name: None)
    assert time.monotonic() - began < 40
    assert late.status == gpu.FAILED
    assert "ended after 1 s" in late.failures[0]
    assert (broken.status, broken.rows) == (gpu.FAILED, ())
    assert "unknown" in broken.failures[0]

    def interrupt() -> None:
        while not tmp_path.joinpath("begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    tmp_path.joinpath("begun").unlink(missing_ok=True)
    threading.Thread(target=interrupt, daemon=True).start()
    running = gpu.measure(arguments, lambda name: None)
    part = next(running)
    assert part.status == gpu.INTERRUPTED
    assert part.rows == ({"test": "tests/test_slow.py::test_first", "outcome": "passed"},)
    with pytest.raises(KeyboardInterrupt):
        next(running)


def test_a_gradient_that_is_wrong_beside_the_target_only_is_noticed() -> None:
    logits = torch.randn(16, 50_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(16)
    exact = _exact(logits, targets)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, targets), logits)
    assert not _differs(gradient.double(), exact)
    assert not _differs(gradient.bfloat16().double(), exact)
    gradient[:, 25_000:] = 0  # less than 2 % of the norm
    assert _differs(gradient.double(), exact)


def test_the_first_run_of_airbench_is_a_warm_up(tmp_path: Path) -> None:
    file = tmp_path / "stdout"
    file.write_text("|     0.9125  |\n" + "|   1  |   eval  |  0.9  |  0.93  |    0.94  |    2.5  |\n" * 3)
    assert _airbench_runs(file) == [(0.94, 2.5)] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "bench gpu needs an NVIDIA GPU, and "),
        (("--json",), "bench gpu needs an NVIDIA GPU, and "),
        (("--airbench", "nowhere.py"), "--airbench: nowhere.py: there is no such file"),
    ],
)
def test_without_a_gpu_it_is_one_line_and_status_2(softmaxce: Softmaxce, options: tuple[str, ...], line: str) -> None:
    done = softmaxce("bench", "gpu", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
