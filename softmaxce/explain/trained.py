"""Explanations by a trained run: its model's logits of an image, its loss's label smoothing and class weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.decode import Decode
from ..data.splits import InMemory, Split
from ..errors import DataError, RunError, in_one_line, ran_out_of_memory
from ..inference.trained_model import TrainedModel, build_evaluation, config_of, split_of
from ..losses.cross_entropy import SoftmaxCrossEntropy
from ..runs import checkpoint
from ..runs.header import find_checkpoint
from ..runs.provenance import check_split
from ..training.evaluation import predict
from .explanation import Contributions, Explanation, OwnLoss
from .numerics import compare_formats
from .steps import take_steps

NO_LABEL = "No label was given, so the network's own answer stands in for it; with --label you can say what is true."


def open_run(path: Path, *, trust_code: bool = False) -> TrainedModel:
    """The model, the loss and the preprocessing of a run folder (its best checkpoint) or a checkpoint, on the CPU.

    Args:
        path: the folder or the checkpoint.
        trust_code: run the user's code that the run's config names.
    Raises: RunError, ConfigError.
    """
    loaded = checkpoint.load(find_checkpoint(path))
    return build_evaluation(loaded, config_of(loaded, {"device": "cpu"}, trust_code=trust_code))


def read_image(run: TrainedModel, file: Path) -> Tensor:
    """A file's image as the run's model takes it, [C, H, W] uint8. Raises: DataError."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    channels, height, width = run.preprocessing.shape
    return Decode(channels, (height, width))(str(file))


def pick(run: TrainedModel, split: str, index: int, *, allow_changed_data: bool = False) -> tuple[Tensor, int]:
    """An image [C, H, W] uint8 of a split of the run's data, and its class id.

    Raises: DataError; RunError if the split's images are others than at training and that is not allowed.
    """
    return _take(_own_split(run, split, allow_changed_data=allow_changed_data), split, index)


def blend(
    run: TrainedModel, split: str, index: int, other: int, share: float, *, allow_changed_data: bool = False
) -> tuple[Tensor, Tensor]:
    """Two images of a split as one, as mixup makes them in training: (1 - share) of the first, `share` of the other.

    Returns: the image [C, H, W] uint8 (rounded to whole levels), and its soft label [K].
    Raises: as pick.

    Zhang et al. 2018, "mixup: Beyond empirical risk minimization", section 2.
    """
    chosen = _own_split(run, split, allow_changed_data=allow_changed_data)
    (first, label), (second, other_label) = _take(chosen, split, index), _take(chosen, split, other)
    image = ((1 - share) * first.double() + share * second.double()).round().to(torch.uint8)
    labels = torch.zeros(len(run.classes), dtype=torch.float64)
    labels[label] += 1 - share
    labels[other_label] += share
    return image, labels


def _own_split(run: TrainedModel, name: str, *, allow_changed_data: bool) -> Split:
    split = split_of(run, name)
    check_split(run.file, name, split, allow_changed_data=allow_changed_data)
    return split


def _take(chosen: Split, split: str, index: int) -> tuple[Tensor, int]:
    if not 0 <= index < len(chosen):
        raise DataError(f"image {index}: the {split} split has the images 0 to {len(chosen) - 1}")
    one = chosen.take(torch.tensor([index]))
    image = one.images[0] if isinstance(one, InMemory) else one.decode(one.files[0])
    return image, int(one.labels[0])


def explain_image(
    run: TrainedModel, image: Tensor, target: int | Tensor | None, *, title: str, temperature: float = 1.0
) -> Explanation:
    """Explain what a run's model and loss make of one image.

    Args:
        run: from open_run.
        image: [C, H, W] uint8, in the shape that the model was trained on.
        target: the class id, or [K] shares of it; None to let the model's own answer stand for it.
        title: what is explained, for the first line.
        temperature: what the logits are divided by; calibration.temperature_of(path) is the run's own.
    Raises: RunError if the model's logits are not finite; DataError if the image has another shape or its label is
        one that the loss ignores.
    """
    batches = run.batches(InMemory(image.unsqueeze(0), torch.zeros(1, dtype=torch.int64)))
    logits = predict(run.model, batches, run.precision)[0][0].cpu()  # [K]
    if not logits.isfinite().all():
        raise RunError(f"{title}: the model's logits are not finite: {logits.tolist()}")
    notes = []
    if target is None:
        target = int(logits.argmax())
        notes.append(NO_LABEL)
    weight, label_smoothing, own_loss = None, 0.0, None
    loss = run.loss
    if type(loss) in (SoftmaxCrossEntropy, nn.CrossEntropyLoss):
        assert isinstance(loss, nn.CrossEntropyLoss)
        weight, label_smoothing = loss.weight, loss.label_smoothing
        if isinstance(target, int) and target == loss.ignore_index:
            raise DataError(
                f"{title}: this run's loss leaves the class {run.classes[target]} out of account (ignore_index), so "
                "that there is nothing to explain; choose another image, or another --label"
            )
    else:
        found = _own_loss(run.config.loss.name, loss, logits, target)
        if isinstance(found, str):
            notes.append(found)
        else:
            own_loss = found
    if run.config.mixup_alpha or run.config.cutmix_alpha:
        notes.append(
            "In training, this run blends images and their labels (mixup, CutMix). --index 1 --mix 5=0.3 explains such "
            "a blend."
        )
    if run.config.tta != "none":
        notes.append(f"The logits are the mean over several views of the image (tta: {run.config.tta}).")
    steps = take_steps(logits, target, weight=weight, label_smoothing=label_smoothing, temperature=temperature)
    normalised = next(batches.epoch(0))[0][0]
    return Explanation(
        title=title,
        classes=run.classes,
        steps=steps,
        formats=compare_formats(steps),
        image=image,
        contributions=_contributions(run.model, normalised),
        own_loss=own_loss,
        notes=tuple(notes),
    )


def _contributions(model: nn.Module, image: Tensor) -> Contributions | None:
    """Each pixel's part in each logit, if the model is one weighted sum a class; `image` is [C, H, W], normalised."""
    match list(model.children()) if isinstance(model, nn.Sequential) else []:
        case [nn.Flatten(), nn.Linear() as sums]:
            products = sums.weight.detach().view(-1, *image.shape) * image  # [K, C, H, W]
            bias = torch.zeros(len(products)) if sums.bias is None else sums.bias.detach()
            return Contributions(products.sum(1), bias)
    return None


def _own_loss(
    name: str, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: int | Tensor
) -> OwnLoss | str:
    """What another loss says of the logits; a note if it cannot take this label."""
    leaf = logits.clone().unsqueeze(0).requires_grad_()
    targets = torch.tensor([target]) if isinstance(target, int) else target.float().unsqueeze(0)
    try:
        value = loss(leaf, targets).mean()
        (gradient,) = torch.autograd.grad(value, leaf)
    except Exception as error:  # it is somebody else's code, and it may take class ids alone
        if ran_out_of_memory(error):
            raise
        return f"What {name} says is left out: {in_one_line(error)}."
    return OwnLoss(name, value.item(), tuple(gradient[0].tolist()))
