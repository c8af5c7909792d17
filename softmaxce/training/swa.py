"""Stochastic weight averaging, and the statistics of batch normalization of averaged weights."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.batches import Batch
from ..errors import within_memory
from ..runtime.device import autocast
from ..runtime.process_group import ProcessGroup
from ..runtime.random_state import random_state, restore_random_state
from .run import Run


def average_epoch(run: Run, number: int) -> None:
    """At the end of an epoch, counted from 1, average in the weights as `swa` says (Izmailov et al. 2018, algorithm 1).

    Before `start_epoch` the average is the weights themselves. The running statistics of the layers that were trained
    are those of the averaged weights on the epoch's training batches, without mixup. Random numbers stay as they were.
    It may be called again for the same epoch, as where an evaluation was interrupted.
    """
    swa, average = run.config.swa, run.average
    if swa is None or average is None:
        return
    behind = number - swa.start_epoch
    if behind <= 0:
        average.n_averaged.zero_()  # the next update copies the weights, and the statistics with them
        average.update_parameters(run.model)
        return
    if behind % swa.every or average.n_averaged > behind // swa.every:
        return
    average.update_parameters(run.model)
    trained = {name for name, module in run.model.named_modules() if module.training}
    layers = [layer for name, layer in batch_norms(run.evaluated).items() if name in trained]
    before = random_state()
    try:
        with run.group.together(), within_memory("averaging the weights"):
            batches = recompute_statistics(run.evaluated, layers, run.train.epoch(number), run.precision)
    finally:
        restore_random_state(before)
    if not run.group.is_single:
        _average_over_processes(layers, batches if run.group.share(run.train.batch_size) else 0, run.group)


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """A model's batch-normalization layers with running statistics, by name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name: layer for name, layer in layers.items() if layer.track_running_stats}


@torch.no_grad()
def recompute_statistics(
    model: nn.Module, layers: Iterable[_BatchNorm], batches: Iterable[Batch], precision: str
) -> int:
    """Set running means and variances to their averages over batches, as torch.optim.swa_utils.update_bn.

    Unlike there, all other layers are in evaluation mode, so that nothing is dropped.

    Args:
        model: afterwards in the mode that it was in.
        layers: of the model, those to set; without any, nothing is computed.
        batches: images [B, C, H, W] and labels.
        precision: of the forward pass.
    Returns: the number of batches.
    """
    layers, count = list(layers), 0
    if not layers:
        return count
    modes, momenta = {module: module.training for module in model.modules()}, [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    try:
        with autocast(next(model.parameters()).device, precision):
            for images, _ in batches:
                model(images)
                count += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return count


@torch.no_grad()
def _average_over_processes(layers: list[_BatchNorm], batches: int, group: ProcessGroup) -> None:
    """Give all processes the mean of their statistics, weighted by the number of their batches."""
    for layer in layers:
        for statistic in (layer.running_mean, layer.running_var):
            assert statistic is not None
            weighted = torch.cat([statistic * batches, statistic.new_tensor([batches])])
            group.all_reduce(weighted)
            statistic.copy_(weighted[:-1] / weighted[-1])
