"""Explanations of images by a trained model: its logits, and the label smoothing and class weights of its loss."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.prefetch import decode_to
from ..data.splits import InMemory, Split
from ..errors import DataError, RunError, in_one_line, ran_out_of_memory
from ..inference.trained_model import TrainedModel
from ..inference.tta import TestTimeAugmentation
from ..losses.cross_entropy import SoftmaxCrossEntropy
from .explanation import Contributions, Explanation, OwnLoss
from .numerics import compare_formats
from .steps import take_steps

NO_LABEL = "No label was given, so the predicted class is taken as the label; give the true one with --label."


def read_image(model: TrainedModel, file: Path) -> Tensor:
    """A file's image in the model's shape, [C, H, W] uint8. Raises: DataError."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    return decode_to(model.preprocessing.shape, model.preprocessing.resizing)(str(file))


def split_image(model: TrainedModel, split: str, index: int) -> tuple[Tensor, int]:
    """An image [C, H, W] uint8 of a split of the run's data, and its class id.

    Raises: DataError; RunError if the split's images are not those of the training.
    """
    return _image_at(model.split(split), split, index)


def mixed_image(model: TrainedModel, split: str, index: int, other: int, weight: float) -> tuple[Tensor, Tensor]:
    """Two images of a split mixed, as mixup does in training: (1 - weight) of the first, `weight` of the other.

    Returns: the image [C, H, W] uint8 (rounded to whole levels), and its soft label [K].
    Raises: as split_image.

    Zhang et al. 2018, "mixup: Beyond empirical risk minimization", section 2.
    """
    images = model.split(split)
    (first, label), (second, other_label) = _image_at(images, split, index), _image_at(images, split, other)
    image = ((1 - weight) * first.double() + weight * second.double()).round().to(torch.uint8)
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


def explain_image(model: TrainedModel, image: Tensor, target: int | Tensor | None, *, title: str) -> Explanation:
    """Explain a model's loss on one image, at the model's temperature.

    Args:
        model: from TrainedModel.open.
        image: [C, H, W] uint8, in the shape that the model was trained on.
        target: the class id, or [K] probabilities; None for the predicted class.
        title: what is explained, for the first line.
    Raises: RunError if the model's logits are not finite; DataError if the image has another shape or its label is
        one that the loss ignores.
    """
    images = InMemory(image.unsqueeze(0), torch.zeros(1, dtype=torch.int64))
    logits = model.logits(images)[0][0].cpu()  # [K]
    if not logits.isfinite().all():
        raise RunError(f"{title}: the model's logits are not finite: {logits.tolist()}")
    notes = []
    if target is None:
        target = int(logits.argmax())
        notes.append(NO_LABEL)
    weight, label_smoothing, own_loss = None, 0.0, None
    loss = model.loss
    if type(loss) in (SoftmaxCrossEntropy, nn.CrossEntropyLoss):
        assert isinstance(loss, nn.CrossEntropyLoss)
        weight, label_smoothing = loss.weight, loss.label_smoothing
        if isinstance(target, int) and target == loss.ignore_index:
            raise DataError(
                f"{title}: this run's loss ignores the class {model.classes[target]} (ignore_index), so there is "
                "nothing to explain; choose another image, or another --label"
            )
    else:
        value = _own_loss(model.config.loss.name, loss, logits, target)
        if isinstance(value, str):
            notes.append(value)
        else:
            own_loss = value
    if model.config.mixup_alpha or model.config.cutmix_alpha:
        notes.append(
            "In training, this run mixes images and their labels (mixup, CutMix). --index 1 --mix 5=0.3 explains a "
            "mixed image."
        )
    if model.config.tta != "none":
        pixels = ""
        if isinstance(model.model, TestTimeAugmentation) and _linear_layer(model.model.model) is not None:
            pixels = " The contributions of the pixels are not shown, because they are known for a single view only."
        notes.append(f"The logits are the mean over several views of the image (tta: {model.config.tta}).{pixels}")
    steps = take_steps(logits, target, weight=weight, label_smoothing=label_smoothing, temperature=model.temperature)
    contributions = _contributions(model.model, next(model.batches(images).epoch(0))[0][0])
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
        own_loss=own_loss,
        notes=tuple(notes),
    )


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
    products = linear.weight.detach().view(-1, *image.shape) * image  # [K, C, H, W]
    bias = torch.zeros(len(products)) if linear.bias is None else linear.bias.detach()
    return Contributions(products.sum(1), bias)


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
    targets = torch.tensor([target]) if isinstance(target, int) else target.float().unsqueeze(0)
    try:
        value = loss(leaf, targets).mean()
        (gradient,) = torch.autograd.grad(value, leaf)
    except Exception as error:  # it may be a user's code, and it may take class ids alone
        if ran_out_of_memory(error):
            raise
        return f"The value of {name} is left out: {in_one_line(error)}."
    return OwnLoss(name, value.item(), tuple(gradient[0].tolist()))
