"""What a report tells of a run: read from its folder, and measured anew with its checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.keys import Config
from ..data.splits import Dataset, InMemory, Split
from ..runs import checkpoint
from ..runs import folder as runfolder
from ..runs.header import find_checkpoint
from ..runs.provenance import check_split
from ..runs.resume import recorded_images
from ..training.evaluation import loss_of, predict
from .calibration import fit_temperature, temperature_of
from .metrics import Metrics, ReliabilityBin, measure, reliability
from .trained_model import TrainedModel, build_evaluation, config_of, source_of, split_of

GALLERY = 24  # images
TOP = 3  # classes of each


@dataclass(frozen=True)
class Judgement:
    """The model's probabilities at one softmax temperature, judged.

    Attributes:
        temperature: what the logits were divided by.
        figures: what `softmaxce eval` tells.
        bins: the reliability diagram's.
        confidence: the mean of the largest probability, in [0, 1].
        deviation: by how much the accuracy of images that are right with these probabilities would miss their mean
            by chance (one standard deviation).
    """

    temperature: float
    figures: Metrics
    bins: tuple[ReliabilityBin, ...]
    confidence: float
    deviation: float


@dataclass(frozen=True)
class Mistake:
    """An image that the model is wrong about.

    Attributes:
        index: its place in the split.
        file: its file; None where the images are in memory.
        image: [C, H, W] uint8, as the model gets it.
        label: the class it is.
        top: (class, probability), the likeliest first.
        label_probability: the label's.
        loss: -log of it, in nats.
    """

    index: int
    file: str | None
    image: Tensor
    label: str
    top: tuple[tuple[str, float], ...]
    label_probability: float
    loss: float


@dataclass(frozen=True)
class Findings:
    """Everything a report shows.

    Attributes:
        folder: the run folder.
        record: its run.json.
        config: what it was trained with.
        epochs: its metrics.jsonl.
        checkpoint: whose weights were measured.
        epoch: the epoch they are of.
        num_parameters: of the model.
        split: what was measured on.
        judged: as trained (temperature 1), and, where there is one, at the temperature that fits.
        calibrated: whether the run predicts at that temperature; else it was fitted for this report alone.
        unfitted: why there is no such temperature; empty if there is one.
        losses: [N] float64, -log S_y of each image in nats, as trained.
        hits: [N] bool, whether the prediction is right.
        mistakes: the most confidently wrong first.
        evaluation: the model, as it was measured.
    """

    folder: Path
    record: dict[str, Any]
    config: Config
    epochs: list[dict[str, Any]]
    checkpoint: Path
    epoch: int
    num_parameters: int
    split: str
    judged: tuple[Judgement, ...]
    calibrated: bool
    unfitted: str
    losses: Tensor
    hits: Tensor
    mistakes: tuple[Mistake, ...]
    evaluation: TrainedModel

    @property
    def final(self) -> Judgement:
        """As the run predicts: at its temperature, if it is calibrated."""
        return self.judged[-1 if self.calibrated else 0]

    @property
    def classes(self) -> list[str]:
        """The class names."""
        return [row.name for row in self.judged[0].figures.classes]


def find(
    folder: Path,
    split: str | None = None,
    device: str | None = None,
    *,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Findings:
    """Read a run folder and measure its model.

    Args:
        folder: the run folder.
        split: test, validation or train; None for the first of these that the run has.
        device: where to compute; None for auto.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: use the run's splits although their images are others than at training.
    Raises: RunError if the folder holds no run or no checkpoint; DataError, ConfigError as `softmaxce eval`.
    """
    record = runfolder.read_record(folder)
    loaded = checkpoint.load(find_checkpoint(folder))
    config = config_of(loaded, {"device": device or "auto"}, trust_code=trust_code)
    evaluation = build_evaluation(loaded, config)
    source = source_of(evaluation)
    own = {} if allow_changed_data else recorded_images(record)  # a split that is gone is missed, not passed over
    name = split or next(name for name in ("test", "validation", "train") if getattr(source, name) or name in own)
    chosen = split_of(evaluation, name, source)
    check_split(loaded.file, name, chosen, allow_changed_data=allow_changed_data)
    logits, labels = predict(evaluation.model, evaluation.batches(chosen), evaluation.precision)
    temperature = temperature_of(folder)
    calibrated, unfitted = temperature != 1, ""
    if not calibrated:
        try:
            temperature = _fitting_temperature(evaluation, source, name, allow_changed_data=allow_changed_data)
        except ValueError as error:
            unfitted = str(error)
    judged = [_judge(logits, labels, evaluation, t) for t in dict.fromkeys([1.0, temperature])]
    logits, labels = logits.cpu().double(), labels.cpu()
    return Findings(
        folder=folder,
        record=record,
        config=config,
        epochs=runfolder.read_metrics(folder),
        checkpoint=loaded.file,
        epoch=loaded.header["epoch"],
        num_parameters=sum(p.numel() for p in evaluation.model.parameters()),
        split=name,
        judged=tuple(judged),
        calibrated=calibrated,
        unfitted=unfitted,
        losses=-torch.log_softmax(logits, 1).gather(1, labels.unsqueeze(1)).squeeze(1),
        hits=logits.argmax(1) == labels,
        mistakes=_mistakes(logits / (temperature if calibrated else 1), labels, chosen, evaluation.classes),
        evaluation=evaluation,
    )


def _fitting_temperature(
    evaluation: TrainedModel, source: Dataset, measured: str, *, allow_changed_data: bool
) -> float:
    """The temperature that fits the validation split. Raises: ValueError if there is none, or it would judge itself."""
    if source.validation is None:
        raise ValueError("the run held out no validation split to fit one on")
    if measured == "validation":
        raise ValueError("it would be fitted on the very images that it is judged by")
    check_split(evaluation.file, "validation", source.validation, allow_changed_data=allow_changed_data)
    logits, labels = predict(evaluation.model, evaluation.batches(source.validation), evaluation.precision)
    return fit_temperature(logits.cpu(), labels.cpu())


def _judge(logits: Tensor, labels: Tensor, evaluation: TrainedModel, temperature: float) -> Judgement:
    loss = loss_of(evaluation.loss, logits, labels)
    logits, labels = logits.cpu().double() / temperature, labels.cpu()
    probabilities = torch.softmax(logits, 1).numpy()
    figures = measure(logits, labels, loss, evaluation.classes)
    bins = tuple(reliability(probabilities, labels.numpy()))
    largest = probabilities.max(1)
    deviation = float((largest * (1 - largest)).sum() ** 0.5 / len(labels))
    return Judgement(temperature, figures, bins, float(largest.mean()), deviation)


def _mistakes(logits: Tensor, labels: Tensor, split: Split, names: tuple[str, ...]) -> tuple[Mistake, ...]:
    """The images predicted wrong, the surest first."""
    probabilities = torch.softmax(logits, 1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[torch.argsort(confidence[wrong], descending=True, stable=True)][:GALLERY]
    found = []
    for index in order.tolist():
        row, label = probabilities[index], int(labels[index])
        values, ids = row.topk(min(TOP, len(names)))
        image = split.images[index] if isinstance(split, InMemory) else split.decode(split.files[index])
        found.append(
            Mistake(
                index=index,
                file=None if isinstance(split, InMemory) else split.files[index],
                image=image,
                label=names[label],
                top=tuple((names[i], p) for i, p in zip(ids.tolist(), values.tolist(), strict=True)),
                label_probability=float(row[label]),
                loss=float(-torch.log_softmax(logits[index], 0)[label]),
            )
        )
    return tuple(found)
