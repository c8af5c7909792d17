"""Knowledge distillation: a loss towards the probabilities of a teacher (Hinton et al. 2015, arXiv:1503.02531)."""

import torch
from torch import Tensor, nn

from ..losses.cross_entropy import cross_entropy


class Teacher:
    """A trained model whose probabilities another one learns.

    It is no nn.Module, so that nothing trains, saves or puts it into training mode.

    Args:
        model: images [B, C, H, W], preprocessed as the student's -> logits [B, K]. It is put into evaluation mode.
        temperature: T, above 0.
        weight: w, in [0, 1].
    """

    def __init__(self, model: nn.Module, temperature: float, weight: float) -> None:
        self.model = model.eval().requires_grad_(False)
        self.temperature, self.weight = temperature, weight

    def probabilities(self, images: Tensor) -> Tensor:
        """softmax(v / T) of the teacher's logits v: [B, K] float32, without a gradient."""
        with torch.no_grad():
            logits: Tensor = self.model(images)
            return torch.softmax(logits.float() / self.temperature, 1)

    def mixed(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 - w) loss + w T^2 CE(softmax(v / T), z / T), with the student's logits z and the teacher's v.

        T^2 makes up for the gradient of the second term, which is about 1 / T^2 as large (section 2 there). With soft
        targets the cross-entropy has the gradient of the Kullback-Leibler divergence, and is larger by their entropy.

        Args:
            loss: of the student on the targets, a mean over the images [], nats.
            logits: the student's, [B, K].
            images: that both saw, augmented and mixed, [B, C, H, W].
        Returns: [].
        """
        soft = cross_entropy(logits.float() / self.temperature, self.probabilities(images))
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * soft
