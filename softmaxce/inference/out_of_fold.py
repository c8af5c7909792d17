"""Out-of-fold predictions: what each run of a cross-validation says of the images that it was not trained on."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..build import FEWER_IMAGES, load_source
from ..data.held_out import folds_of
from ..errors import within_memory
from .evaluate import ImagePredictions, evaluate
from .trained_model import TrainedModel


def out_of_fold_predictions(folders: Sequence[Path]) -> tuple[ImagePredictions, tuple[str, ...]]:
    """The predictions of all images, each by the run whose fold it is in, in the order of the data set.

    Args:
        folders: the run folder of each fold, in order.
    Returns: the predictions, and the class names.
    Raises: RunError, ConfigError, DataError as inference.evaluate.
    """
    model = TrainedModel.open(folders[0], trust_code=True)  # as the code has just been trained with
    with within_memory("reading the data set", FEWER_IMAGES):
        source = load_source(model.config)
    folds = folds_of(source, model.config.data)
    labels, paths = source.train.labels, source.train.files
    del source
    probabilities = torch.zeros(len(folds), len(model.classes), dtype=torch.float64)
    losses = torch.zeros(len(folds), dtype=torch.float64)
    for number, folder in enumerate(folders, 1):
        part = evaluate(folder, "test", trust_code=True).images
        probabilities[folds == number], losses[folds == number] = part.probabilities, part.losses
    return ImagePredictions(probabilities, losses, labels, paths, folds), model.classes
