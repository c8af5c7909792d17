"""Explanations of images by a trained model: its logits, and the label smoothing and class weights of its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..argument_types import AttributionMethod
from ..data.prefetch import decode_to
from ..data.splits import InMemory, Split
from ..errors import ConfigError, DataError, Problem, RunError, in_one_line, ran_out_of_memory
from ..inference.trained_model import TrainedModel
from ..inference.tta import TestTimeAugmentation
from ..losses.cross_entropy import SoftmaxCrossEntropy
from .attribution import Attribution, Score, attribute, last_feature_map, logit_of, negative_loss
from .explanation import Contributions, Explanation, OwnLoss
from .numerics import compare_formats
from .steps import Steps, take_steps

NO_LABEL = "No label was given, so the predicted class is taken as the label; give the true one with --label."


@dataclass(frozen=True)
class Attributions:
    """Which maps an explanation has.

    Attributes:
        methods: None for Grad-CAM, if the model has a convolution for it.
        of: what is attributed: the logits of the label and of the other class with the largest logit, or the loss.
        layer: of Grad-CAM; None for the last feature map of its convolutions.
    """

    methods: tuple[AttributionMethod, ...] | None = None
    of: Literal["logit", "loss"] = "logit"
    layer: str | None = None


GRAD_CAM = Attributions()


def read_image(model: TrainedModel, file: Path) -> Tensor:
    """A file's image in the model's shape, [C, H, W]. Raises: DataError."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    return decode_to(model.preprocessing.shape, model.preprocessing.resizing)(str(file))


def split_image(model: TrainedModel, split: str, index: int) -> tuple[Tensor, int]:
    """An image [C, H, W] of a split of the run's data, and its class id.

    Raises: DataError; RunError if the split's images are not those of the training.
    """
    return _image_at(model.split(split), split, index)


def mixed_image(model: TrainedModel, split: str, index: int, other: int, weight: float) -> tuple[Tensor, Tensor]:
    """Two images of a split mixed, as mixup does in training: (1 - weight) of the first, `weight` of the other.

    Returns: the image [C, H, W] (rounded to whole levels, unless it is floating-point), and its soft label [K].
    Raises: as split_image.

    Zhang et al. 2018, "mixup: Beyond empirical risk minimization", section 2.
    """
    images = model.split(split)
    (first, label), (second, other_label) = _image_at(images, split, index), _image_at(images, split, other)
    mixed = (1 - weight) * first.double() + weight * second.double()
    image = (mixed if first.is_floating_point() else mixed.round()).to(first.dtype)
    labels = torch.zeros(len(model.classes), dtype=torch.float64)
    labels[label] += 1 - weight
    labels[other_label] += weight
    return image, labels


def _image_at(images: Split, split: str, index: int) -> tuple[Tensor, int]:
    if not 0 <= index < len(images):
        raise DataError(f"image {index}: the {split} split has the images 0 to {len(images) - 1}")
    one = images.take(torch.tensor([index]))
    image = one.images[0] if isinstance(one, InMemory) else one.decode(one.files[0])
    return image, int(one.labels[0])


def explain_image(
    model: TrainedModel,
    image: Tensor,
    target: int | Tensor | None,
    *,
    title: str,
    attributions: Attributions = GRAD_CAM,
) -> Explanation:
    """Explain a model's loss on one image, at the model's temperature.

    Args:
        model: from TrainedModel.open.
        image: [C, H, W], in the shape and depth that the model was trained on.
        target: the class id, or [K] probabilities; None for the predicted class.
        title: what is explained, for the first line.
        attributions: which maps are shown.
    Raises: RunError if the model's logits are not finite; DataError if the image has another shape or its label is
        one that the loss ignores; ConfigError if an attribution cannot be made.
    """
    images = InMemory(image.unsqueeze(0), torch.zeros(1, dtype=torch.int64))
    logits = model.logits(images)[0][0]  # [K]
    if not logits.isfinite().all():
        raise RunError(f"{title}: the model's logits are not finite: {logits.tolist()}")
    notes = []
    if target is None:
        target = int(logits.argmax())
        notes.append(NO_LABEL)
    weight, label_smoothing, own_loss = None, 0.0, None
    if type(model.loss) in (SoftmaxCrossEntropy, nn.CrossEntropyLoss):
        weight, label_smoothing = _cross_entropy_arguments(model, target, title)
    else:
        value = _own_loss(model.config.loss.name, model.loss, logits, target)
        if isinstance(value, str):
            notes.append(value)
        else:
            own_loss = value
    steps = take_steps(logits, target, weight=weight, label_smoothing=label_smoothing, temperature=model.temperature)
    normalized = _normalized(model, image)
    contributions = _contributions(model.model, normalized[0])
    maps, reason = _attributions(model.model, normalized, steps, attributions)
    notes += _special(model, with_maps=bool(maps)) + reason
    if model.temperature != 1:
        undivided = take_steps(logits, target, weight=weight, label_smoothing=label_smoothing)
        notes.append(_undivided(model, undivided.loss, own_loss, with_pixels=contributions is not None))
    return Explanation(
        title=title,
        classes=model.classes,
        steps=steps,
        formats=compare_formats(steps),
        image=image,
        contributions=contributions,
        attributions=maps,
        own_loss=own_loss,
        notes=tuple(notes),
    )


def _cross_entropy_arguments(model: TrainedModel, target: int | Tensor, title: str) -> tuple[Tensor | None, float]:
    """The class weights and the label smoothing of the run's loss. Raises: DataError if it ignores this class."""
    loss = model.loss
    assert isinstance(loss, nn.CrossEntropyLoss)
    if isinstance(target, int) and target == loss.ignore_index:
        raise DataError(
            f"{title}: this run's loss ignores the class {model.classes[target]} (ignore_index), so there is "
            "nothing to explain; choose another image, or another --label"
        )
    return loss.weight, loss.label_smoothing


def _special(model: TrainedModel, *, with_maps: bool) -> list[str]:
    """Sentences on what the run does besides its model and its loss."""
    notes = []
    if model.config.mixup_alpha or model.config.cutmix_alpha:
        notes.append(
            "In training, this run mixes images and their labels (mixup, CutMix). --index 1 --mix 5=0.3 explains a "
            "mixed image."
        )
    if model.config.tta != "none":
        pixels = ""
        if _linear_layer(_single_view(model.model)) is not None:
            pixels = " The contributions of the pixels are not shown, because they are known for a single view only."
        if with_maps:
            pixels += " The maps of the attribution are of a single view, the image as it is."
        notes.append(f"The logits are the mean over several views of the image (tta: {model.config.tta}).{pixels}")
    return notes


def _normalized(model: TrainedModel, image: Tensor) -> Tensor:
    """An image [C, H, W] as the model takes it, [1, C, H, W] on its device. Raises: DataError."""
    pixels: Tensor = next(model.batches(InMemory(image.unsqueeze(0), torch.zeros(1, dtype=torch.int64))).epoch(0))[0]
    return pixels


def _single_view(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, TestTimeAugmentation) else model


def _undivided(model: TrainedModel, loss: float, own_loss: OwnLoss | None, *, with_pixels: bool) -> str:
    """Which numbers are of the logits as the model gives them, in a sentence."""
    loss_of_training = f"{loss:.4f} nats" if own_loss is None else f"{own_loss.name}, {own_loss.loss:.4f} nats"
    shown = "The first table and the contributions of the pixels show" if with_pixels else "The first table shows"
    return (
        "The probabilities, the loss and the gradient are computed from the logits divided by the temperature, "
        f"{model.temperature:.4f}. {shown} the undivided logits. Training minimizes and "
        f"eval reports the loss of these: {loss_of_training}."
    )


def _contributions(model: nn.Module, image: Tensor) -> Contributions | None:
    """Each pixel's part in each logit, if the model is linear; `image` is [C, H, W], normalized."""
    linear = _linear_layer(model)
    if linear is None:
        return None
    products = linear.weight.detach().cpu().view(-1, *image.shape) * image.cpu()  # [K, C, H, W]
    bias = torch.zeros(len(products)) if linear.bias is None else linear.bias.detach().cpu()
    return Contributions(products.sum(1), bias)


def grad_cams(
    model: TrainedModel, images: Sequence[Tensor], classes: Sequence[Sequence[int]]
) -> list[list[Attribution]] | str:
    """Grad-CAM of images [C, H, W], for some classes each; or why there is none."""
    if not images:
        return []
    inner = _single_view(model.model)
    try:
        layer = last_feature_map(inner, _normalized(model, images[0]))
        return [
            [attribute(inner, _normalized(model, image), "grad_cam", logit_of(index), index, layer) for index in ids]
            for image, ids in zip(images, classes, strict=True)
        ]
    except Exception as error:  # the model may be a user's code
        if ran_out_of_memory(error):
            raise
        return in_one_line(error)


def _attributions(
    model: nn.Module, image: Tensor, steps: Steps, wanted: Attributions
) -> tuple[tuple[Attribution, ...], list[str]]:
    """The maps of an image [1, C, H, W], normalized; if there are none by default, a sentence that says why.

    Raises: ConfigError if maps that were asked for cannot be made.
    """
    model, layer = _single_view(model), wanted.layer or ""
    methods: tuple[AttributionMethod, ...] = ("grad_cam",) if wanted.methods is None else wanted.methods
    scores: dict[int | None, Score]
    if wanted.of == "loss":
        scores = {None: negative_loss(torch.tensor(steps.targets, dtype=torch.float64), steps.temperature)}
    else:
        others = [index for index in range(len(steps.logits)) if index != steps.main]
        strongest = max(others, key=lambda index: steps.logits[index])
        scores = {index: logit_of(index) for index in (steps.main, strongest)}
    try:
        if "grad_cam" in methods and not layer:
            layer = last_feature_map(model, image)
        maps = [
            attribute(model, image, method, score, index, layer)
            for method in methods
            for index, score in scores.items()
        ]
    except Exception as error:  # the model may be a user's code, without a backward pass for example
        if ran_out_of_memory(error):
            raise
        reason = in_one_line(error)
    else:
        return tuple(maps), []
    if wanted.methods is not None:
        raise ConfigError([Problem("--layer" if wanted.layer else "--attribution", reason)])
    return (), [] if _linear_layer(model) is not None else [f"Grad-CAM is not shown: {reason}."]


def _linear_layer(model: nn.Module) -> nn.Linear | None:
    """The only layer of a model that is linear in its pixels."""
    match list(model.children()) if isinstance(model, nn.Sequential) else []:
        case [nn.Flatten(), nn.Linear() as linear]:
            return linear
    return None


def _own_loss(
    name: str, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: int | Tensor
) -> OwnLoss | str:
    """The value and gradient of a loss other than cross-entropy; a note if it cannot take this label."""
    leaf = logits.clone().unsqueeze(0).requires_grad_()
    targets = (torch.tensor([target]) if isinstance(target, int) else target.float().unsqueeze(0)).to(leaf.device)
    try:
        value = loss(leaf, targets).mean()
        (gradient,) = torch.autograd.grad(value, leaf)
    except Exception as error:  # it may be a user's code, and it may take class ids alone
        if ran_out_of_memory(error):
            raise
        return f"The value of {name} is left out: {in_one_line(error)}."
    return OwnLoss(name, value.item(), tuple(gradient[0].tolist()))
