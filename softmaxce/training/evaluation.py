"""A model's loss and accuracy, or its logits, over a split."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..errors import MemoryRanOutError, within_memory
from ..losses.cuda import check_class_ids
from ..losses.interface import reduction_of, to_scalar, unchanged
from ..runtime.device import autocast
from ..runtime.process_group import SINGLE, ProcessGroup
from .cuda_graph import report_no_graph
from .memory import find_fitting_batch_size
from .metrics import Predictions, compute
from .run import Run
from .tally import Scores


def evaluate_epoch(run: Run, batches: Batches, should_abort: Callable[[], bool] = lambda: False) -> Scores | None:
    """The loss and the config's metrics of the run's model on a split, in the run's precision; None if aborted.

    If memory runs out, the run's CUDA graph is given up and the evaluation repeated.
    """
    try:
        outputs = predict_until(should_abort, run.evaluated, batches, run.precision, run.group)
    except MemoryRanOutError:
        if run.static_step is None or run.config.cuda_graph is True:
            raise
        run.static_step, run.use_graph = None, False
        report_no_graph("an evaluation needs its memory")
        return evaluate_epoch(run, batches, should_abort)
    if outputs is None:
        return None
    logits, labels = outputs

    def score() -> Scores:
        num_correct = (logits.max(1).indices == labels).sum().item()  # as argmax, twice as fast
        others = compute(names, Predictions(logits, labels)) if (names := run.config.epoch_metrics) else {}
        return Scores(loss_of(run.loss, logits, labels), num_correct / len(labels), len(labels), others)

    return run.group.from_rank_0(score)


def predict(
    model: nn.Module, batches: Batches, precision: str = "float32", group: ProcessGroup = SINGLE
) -> tuple[Tensor, Tensor]:
    """Logits [N, K] float32 and labels [N] of a whole split, in its order, on the batches' device.

    Of several processes each computes some of the batches, which are cut as for one, and gets the logits of all.
    """
    outputs = predict_until(lambda: False, model, batches, precision, group)
    assert outputs is not None
    return outputs


def predict_until(
    should_abort: Callable[[], bool],
    model: nn.Module,
    batches: Batches,
    precision: str,
    group: ProcessGroup = SINGLE,
) -> tuple[Tensor, Tensor] | None:
    """As `predict`; None if `should_abort`, called after each batch, returns True.

    Raises: MemoryRanOutError, with the batch size that fits.
    """
    if not group.is_single:
        return _predict_together(should_abort, model, batches, precision, group)
    evaluate = within_memory("evaluating")(_predict_until)
    try:
        return evaluate(should_abort, model, batches, precision)
    except MemoryRanOutError as error:
        size = min(batches.batch_size, batches.num_images)
        fits = find_fitting_batch_size(size, lambda smaller: _try_batch(model, batches, precision, smaller))
        remedy = "no smaller batch fits either; use a machine with more memory"
        if fits is not None:
            remedy = f"{fits} images at once, tried just now, fit: set data.eval_batch_size: {fits}"
            remedy += f", or --batch-size {fits} with eval and predict"
        raise MemoryRanOutError(f"{error}; {remedy}") from None


@torch.inference_mode()
def _predict_until(
    should_abort: Callable[[], bool], model: nn.Module, batches: Batches, precision: str
) -> tuple[Tensor, Tensor] | None:
    was_training = model.training
    model.eval()
    labels: list[Tensor] = []
    with autocast(batches.device, precision):
        for images, ids in batches.epoch(0):
            batch_logits = model(images)  # [B, K]
            del images  # so that the next ones are written to the same memory, which is in the cache
            if not labels:  # allocated once: small tensors between the batches would fragment memory
                logits = torch.empty(batches.num_images, batch_logits.shape[1], device=batches.device)
                slots = iter(logits.split(batches.batch_size))
            next(slots).copy_(batch_logits)
            labels.append(ids)
            if should_abort():
                break
    model.train(was_training)
    return None if should_abort() else (logits[: sum(map(len, labels))], torch.cat(labels))


def _predict_together(
    should_abort: Callable[[], bool], model: nn.Module, batches: Batches, precision: str, group: ProcessGroup
) -> tuple[Tensor, Tensor] | None:
    """This process's logits of every world_size-th batch, and those of the other processes for the rest."""
    slots: dict[int, Tensor] = {}
    aborted = False
    with group.together(), within_memory("evaluating", "set a smaller data.eval_batch_size"):
        was_training = model.training
        model.eval()
        with torch.inference_mode(), autocast(batches.device, precision):
            own = batches.epoch(0, group.rank, group.world_size)
            for index, (images, _) in zip(range(group.rank, len(batches), group.world_size), own, strict=True):
                slots[index] = model(images)  # [B, K]
                if aborted := should_abort():
                    break
        model.train(was_training)
    widths = group.gather((aborted, next(iter(slots.values())).shape[1] if slots else 0))
    if any(aborted for aborted, _ in widths):
        return None
    logits = torch.zeros(batches.num_images, max(width for _, width in widths), device=batches.device)
    for index, part in slots.items():
        logits[index * batches.batch_size :][: len(part)] = part
    group.all_reduce(logits)  # a sum with zeros, which changes no number
    return logits, batches.labels


@torch.inference_mode()
def _try_batch(model: nn.Module, batches: Batches, precision: str, size: int) -> None:
    if batches.device.type == "cuda":
        torch.cuda.empty_cache()
    with autocast(batches.device, precision):
        model(batches.prepared(torch.zeros(size, *batches.split.shape, dtype=torch.uint8, device=batches.device)))


@torch.inference_mode()
def loss_of(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """A loss over a whole split at once, so that it does not depend on the batch size.

    A loss with `reduction: sum` is divided by the number of images. A module is in evaluation mode, and not changed.
    """
    with unchanged(loss, evaluation=True):
        value = loss(logits, labels)
    if reduction_of(loss) == "sum":
        value = value / len(labels)
    number = to_scalar(value).item()
    check_class_ids()
    return number
