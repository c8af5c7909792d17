"""What is tried before a run is trained: each part is called once, so that an unsuitable one is refused in time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import grad

from .. import streams
from ..config.components import Component
from ..config.keys import Config
from ..data.batches import Batches
from ..data.progressive_resizing import sizes_by_epoch
from ..errors import ConfigError, Problem, in_one_line, in_users_code, ran_out_of_memory
from ..losses.interface import Loss, unchanged
from ..runtime.random_state import random_state, restore_random_state


def try_augmentations(train: Batches) -> None:
    """Refuse augmentations that cannot be trained with; warn about strange values. The random numbers are as before.

    Raises: ConfigError, with the augmentation, if one raises anything or its result is unsuitable.
    """
    if not train.augment and train.view is None:
        return
    before = random_state()
    for warning in train.try_augmentations():
        streams.warning(warning)
    restore_random_state(before)


def refuse_single_images(model: nn.Module, config: Config, train: Batches) -> None:
    """Refuse a model that cannot be trained on one image, batch normalization for example, where batches have one.

    The model, in training mode, is called once and then restored. Raises: ConfigError.
    """
    if min(train.batch_size, train.images_per_epoch) > 1:
        return
    before = random_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running statistics
    try:
        with torch.no_grad():
            model(train.prepared(torch.zeros(1, *train.split.shape, dtype=torch.uint8, device=train.device)))
    except Exception as error:  # the user's model may raise anything
        if ran_out_of_memory(error):
            raise
        key = "data.batch_size" if train.batch_size == 1 else "data"
        remedy = "take batches of 2 or more" if train.batch_size == 1 else "there is only one training image"
        message = f"{config.model.name} cannot be trained on batches of one image ({in_one_line(error)}); {remedy}"
        raise ConfigError([Problem(key, message)]) from error
    finally:
        for buffer, values in buffers:
            buffer.copy_(values)
    restore_random_state(before)


def refuse_fixed_size(model: nn.Module, config: Config, train: Batches, num_classes: int) -> None:
    """Refuse a model that does not take the smaller images of progressive resizing. Raises: ConfigError.

    Args:
        model: in training mode; it is called in evaluation mode, and then restored.
        config: of the run.
        train: the training images, of full size.
        num_classes: K.
    """
    if config.progressive_resizing is None:
        return
    before = random_state()
    for span in sizes_by_epoch(config, train.split.shape)[:-1]:
        why = ""
        try:
            with torch.no_grad():
                logits = model.eval()(torch.zeros(2, train.split.shape[0], *span.size, device=train.device))
            if logits.shape != (2, num_classes):
                why = f"it gives {list(logits.shape)}, not [2, {num_classes}]"
        except Exception as error:  # the user's model may raise anything
            if ran_out_of_memory(error):
                raise
            why = in_one_line(error)
        finally:
            model.train()
        if why:
            message = f"{config.model.name} does not take images of {span} ({why}); it needs one with global pooling"
            raise ConfigError([Problem("progressive_resizing", message)])
    restore_random_state(before)


def refuse_undefined_metrics(config: Config, num_classes: int, labels: Tensor | None) -> None:
    """Refuse a metric that the epochs' evaluation cannot have.

    Args:
        config: it names the metrics.
        num_classes: K.
        labels: [N] of the split that each epoch is evaluated on; None without one.
    Raises: ConfigError.
    """
    named: dict[str, Sequence[str]] = {"best_metric": [config.best_metric], "metrics": config.metrics}
    named["schedule.metric"] = config.epoch_metrics  # last: those that no other key names
    for key, names in named.items():
        for name in names:
            if name == "top5_accuracy" and num_classes <= 5:
                raise ConfigError([Problem(key, f"with {num_classes} classes there is no top-5 accuracy")])
            if name in ("macro_roc_auc", "macro_average_precision") and labels is not None and len(labels.unique()) < 2:
                message = f"{name} needs images of two classes or more to validate on; there are images of one"
                raise ConfigError([Problem(key, message)])


def refuse_absent_classes(config: Config, classes: Sequence[str], class_counts: list[int]) -> None:
    """Refuse weights made of counts where a class has no training image. Raises: ConfigError, with its name."""
    absent = [name for name, count in zip(classes, class_counts, strict=True) if not count]
    weight = config.loss.arguments.get("weight")
    if isinstance(weight, str) and absent:
        message = f"weight: {weight} needs training images of every class; there are none of {', '.join(absent)}"
        raise ConfigError([Problem(config.loss.location, message)])


def refuse_unfit(loss: Loss, component: Component, num_classes: int, device: torch.device, soft: bool = False) -> None:
    """Call the loss once, so that an unsuitable one is reported before training.

    Args:
        loss: what make_loss returned for `component`.
        num_classes: K.
        device: of the logits and targets.
        soft: the targets will be probabilities [B, K], not class ids [B].
    Raises: ConfigError if it raises anything, returns another shape than [] or [B], or has no gradient.
    """
    logits = torch.zeros(2, num_classes, device=device, requires_grad=True)
    targets = torch.zeros(2, dtype=torch.int64, device=device)
    if soft:
        targets = nn.functional.one_hot(targets, num_classes).float()
    try:
        with unchanged(loss):
            value = loss(logits, targets)
            gradient = None
            if isinstance(value, Tensor) and value.requires_grad:
                (gradient,) = grad(value.sum(), logits, allow_unused=True)
    except Exception as error:  # the user's loss may raise anything
        if ran_out_of_memory(error) or (isinstance(error, OSError) and not in_users_code(error)):
            raise
        kind = "probabilities [B, K] (as mixup makes them)" if soft else "class ids [B]"
        message = f"{component.name} cannot take logits [B, K] and {kind}: {in_one_line(error)}"
        if _is_called_in_reverse(loss, logits, targets):
            message += " (a loss is called with logits, then targets)"
        raise ConfigError([Problem(component.location, message)]) from error
    if not isinstance(value, Tensor) or value.shape not in ((), (2,)):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        message = f"{component.name} must return a scalar or one loss per image [B]; for B = 2 it gave {got}"
        raise ConfigError([Problem(component.location, message)])
    if gradient is None:
        message = f"{component.name} has no gradient: it must be computed from the logits, without detach()"
        raise ConfigError([Problem(component.location, message)])


def _is_called_in_reverse(loss: Loss, logits: Tensor, targets: Tensor) -> bool:
    """Whether a loss that failed accepts the targets as its first argument: it was written as loss(targets, logits)."""
    try:
        with unchanged(loss):
            value = loss(targets, logits)
    except Exception as error:  # it fails for another reason, which the caller reports
        if ran_out_of_memory(error):
            raise
        return False
    return isinstance(value, Tensor) and value.shape in ((), (len(targets),))
