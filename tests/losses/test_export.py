"""torch.export of the losses with a dynamic batch dimension, and torch.jit.script, which is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from softmaxce import LinearCrossEntropyLoss, SoftmaxCrossEntropy, cross_entropy
from softmaxce.losses.variants.focal import FocalLoss
from softmaxce.losses.variants.z_loss import ZLossCrossEntropy

IDS, PROBABILITIES = torch.arange(8) % 5, torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).softmax(1)


class Calling(nn.Module):
    """torch.export takes modules only."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.loss(logits, targets)


@pytest.mark.parametrize(
    ("loss", "targets", "strict"),
    [
        (SoftmaxCrossEntropy(), IDS, False),
        (SoftmaxCrossEntropy(), IDS, True),
        (SoftmaxCrossEntropy(label_smoothing=0.1), PROBABILITIES, False),
        (cross_entropy, IDS, True),
        (cross_entropy, PROBABILITIES, False),
    ],
)
def test_exported_with_a_dynamic_batch_the_loss_is_torchs_for_any_number_of_rows(
    loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor, strict: bool
) -> None:
    batch = torch.export.Dim("batch")
    example = torch.randn(8, 5), targets
    program = torch.export.export(Calling(loss), example, dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    smoothing = getattr(loss, "label_smoothing", 0.0)
    for rows in (1, 3, 8000):  # 40,000 logits, more than the fast path takes
        logits = torch.randn(rows, 5)
        chosen = targets[torch.arange(rows) % 8]
        expected = functional.cross_entropy(logits, chosen, label_smoothing=smoothing)
        torch.testing.assert_close(program.module()(logits, chosen), expected)


@pytest.mark.parametrize("loss", [FocalLoss(), ZLossCrossEntropy()], ids=lambda loss: type(loss).__name__)
def test_a_derived_loss_is_exported_with_a_dynamic_batch_of_probabilities(loss: nn.Module) -> None:
    batch = torch.export.Dim("batch")
    example = torch.randn(8, 5), PROBABILITIES
    program = torch.export.export(Calling(loss), example, dynamic_shapes=({0: batch}, {0: batch}), strict=False)
    logits = torch.randn(3, 5)
    torch.testing.assert_close(program.module()(logits, PROBABILITIES[:3]), loss(logits, PROBABILITIES[:3]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "loss", [SoftmaxCrossEntropy(), FocalLoss(), LinearCrossEntropyLoss(3, 5)], ids=lambda loss: type(loss).__name__
)
def test_torch_jit_script_says_what_to_use_instead(loss: nn.Module) -> None:
    for module in (loss, Calling(loss)):
        with pytest.raises(NotImplementedError, match=rf"^{type(loss).__name__} cannot .*; use torch.export.export or"):
            torch.jit.script(module)
