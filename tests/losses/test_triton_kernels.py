"""The Triton kernels without a GPU: their results in Triton's interpreter, and their compilation."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from softmaxce.losses import cuda

ROOT = Path(__file__).parents[2]
triton = pytest.importorskip("triton", minversion="3.3", reason="Triton 3.3 or later is not installed")


def test_the_kernels_pass_their_tests_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/losses/test_cuda.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 80


POINTERS = {"labels": "i64", "weight": "fp32", "losses": "fp32", "sums": "fp32", "saved": "fp32", "invalid": "i64"}
POINTERS |= {"upstream": "fp32", "divisor": "fp32", "result": "fp32"}
FLOATS = {"uniform_mass", "target_mass"}


def assembly(kernel: Any, logits: str, warps: int, constants: dict[str, Any], gpu: int) -> str:
    """The kernel as PTX for a compute capability, for rows whose length is a multiple of 16, as it usually is."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, known, divisible = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], known[(position,)] = "constexpr", constants[name]
        elif name in ("logits", "gradient") or name in POINTERS:
            signature[name] = f"*{POINTERS.get(name, logits)}"
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if name in ("logits", "gradient", "stride", "num_classes", "saved"):
            divisible[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", gpu, 32), options={"num_warps": warps})
    return str(compiled.asm["ptx"])


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is interpreting, not compiling")
@pytest.mark.parametrize("gpu", [80, 90])  # A100, H100
@pytest.mark.parametrize(("logits", "shape"), [("fp32", (8192, 32000)), ("bf16", (65536, 1000))])
def test_the_compiled_kernels_spill_no_registers_and_move_16_bytes_at_a_time(
    logits: str, shape: tuple[int, int], gpu: int
) -> None:
    from softmaxce.kernels import triton_cross_entropy as kernels

    plan = cuda.launch_plan(*shape)
    constants = {"KIND": 0, "WEIGHTED": False, "EXACT": logits == "fp32", "REDUCED": True, "weight": None}
    constants |= {"ROWS": plan.rows, "BLOCK": plan.block, "losses": None}
    forward = assembly(kernels.forward, logits, plan.warps, constants, gpu)
    backward = assembly(kernels.backward, logits, plan.warps, constants, gpu)
    for text in (forward, backward):
        assert not re.search(r"(ld|st)\.local", text)
        assert re.search(r"ld\.global\S*\.v4\.b32", text)
        assert "ex2.approx" in text
    stores = re.findall(r"st\.global\S*", backward)
    assert stores
    assert all(".v4.b32" in store for store in stores)
    assert "lg2.approx" not in forward  # near 1 no digit of its result is correct
    reduce = assembly(kernels.reduce, logits, 4, {"MEAN": True, "BLOCK": 1024}, gpu)
    assert "st.global" in reduce


class H100:
    """A driver that answers what Triton's compiler asks of it. It cannot launch anything."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel that is compiled for the arguments of a launch, but not launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.times = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            assert self.kernel.warmup(*args, grid=grid, **kwargs) is not None
            self.times += 1

        return launch


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is interpreting, not compiling")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, test_cuda.py launches the kernels")
@pytest.mark.parametrize(("dtype", "soft"), [(torch.float32, False), (torch.bfloat16, True)])
def test_the_kernels_compile_for_the_arguments_of_every_launch_also_when_repeated(
    dtype: torch.dtype, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import driver

    from softmaxce.kernels import triton_cross_entropy as kernels

    compiled = {name: Compiled(getattr(kernels, name)) for name in ("forward", "reduce", "backward")}
    for name, kernel in compiled.items():
        monkeypatch.setattr(kernels, name, kernel)
    if not hasattr(driver, "_active"):
        pytest.skip("this version of Triton stores its driver elsewhere")
    monkeypatch.setattr(driver, "_active", H100())
    for reduction, weight in (("mean", None), ("none", torch.rand(10))):
        for _ in range(2):
            logits = torch.randn(8, 10).to(dtype).requires_grad_()
            target = torch.rand(8, 10) if soft else torch.arange(8)
            loss = cuda.fused_cross_entropy(logits, target, weight, -100, reduction, 0.1 * soft, dtype)
            loss.sum().backward()
    assert [kernel.times for kernel in compiled.values()] == [4, 2, 4]


def test_kernels_that_cannot_run_on_a_device_are_reported_without_an_error() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert cuda._work(torch.device("cuda"), dtype) == torch.cuda.is_available()
        assert not cuda._work(torch.device("meta"), dtype)
