"""Names that torch does not promise: where a version lacks one, the loss is the same."""

import subprocess
import sys

import pytest
import torch

from softmaxce.kernels import tensor_memory

WITHOUT = """
import torch
from torch.autograd import forward_ad
from torch.nn import functional
del {name}
from softmaxce import SoftmaxCrossEntropy
from softmaxce.kernels import numba_runtime, tracing
for shape in ((8, 10), (4000, 40)):
    logits = torch.randn(*shape, requires_grad=True)
    ids = torch.arange(len(logits)) % 10
    results = []
    for loss in (SoftmaxCrossEntropy(), functional.cross_entropy):
        value = loss(logits, ids)
        results.append((value, *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(*results)
print(tracing.is_watched(), numba_runtime._openmp_parallel() is None)
"""


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("torch._C._are_functorch_transforms_active", "True"),
        ("torch._C._len_torch_dispatch_stack", "True"),
        ("forward_ad._current_level", "True"),
        ("torch._C.__file__", "False True"),
    ],
)
def test_without_a_private_name_of_torch_the_loss_is_the_same(name: str, answers: str) -> None:
    call = [sys.executable, "-c", WITHOUT.format(name=name)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(answers)


def test_a_zero_tensor_that_is_not_recognised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch._efficientzerotensor(3, 4)
    assert tensor_memory.address(tensor_memory.dense(zeros), torch.float32, 12)
    monkeypatch.setattr(tensor_memory, "_is_zero_tensor", tensor_memory._no_zero_tensors)
    with pytest.raises(ValueError, match="memory"):
        tensor_memory.address(tensor_memory.dense(zeros), torch.float32, 12)
