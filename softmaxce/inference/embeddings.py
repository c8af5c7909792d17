"""Embeddings: what a model's last layer makes its logits of, by which similar images are near each other."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.arrays import Pixels
from ..data.splits import InMemory
from ..errors import RunError
from ..training.evaluation import predict
from .predict import Predictor
from .trained_model import TrainedModel
from .tta import TestTimeAugmentation, with_tta


class FeaturesAndLogits(nn.Module):
    """A model that gives the features before its last layer beside its logits.

    Args:
        model: images [B, C, H, W] -> logits [B, K], by an nn.Linear with K outputs.
        num_classes: K.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self._last: Tensor | None = None
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == num_classes:
                module.register_forward_pre_hook(self._keep)  # of several, the one called last is kept

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> features and logits [B, D + K] float32. Raises: RunError if there is no such layer."""
        logits = self.model(images)
        if self._last is None:
            raise RunError("there are no embeddings: this model's last layer is no nn.Linear with one output per class")
        features, self._last = self._last.flatten(1), None
        return torch.cat([features.float(), logits.float()], 1)


def embedding_predictor(model: TrainedModel, write: Callable[[NDArray[np.float32]], None]) -> Predictor:
    """Makes the model's predictions, and calls `write` with the features [N, D] of each batch before.

    With test-time augmentation they are the mean over the views, with the weights of its logits, so that the last layer
    makes the mean logits of them. It is computed in one pass; the model must not be used otherwise meanwhile.
    """
    inner = model.model.model if isinstance(model.model, TestTimeAugmentation) else model.model
    both = with_tta(FeaturesAndLogits(inner, len(model.classes)).eval(), model.tta)

    def probabilities(images: Pixels) -> NDArray[np.float64]:
        split = InMemory(torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64))
        outputs = predict(both, model.batches(split), model.precision)[0]
        features, logits = outputs.split([outputs.shape[1] - len(model.classes), len(model.classes)], 1)
        write(features.cpu().numpy())
        return model.probabilities_of(logits).numpy()

    return Predictor(probabilities, model.classes, model.config.data.eval_batch_size)
