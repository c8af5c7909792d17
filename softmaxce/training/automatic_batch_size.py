"""`data.batch_size: auto`: the largest batch that a GPU's memory holds and that is still a small part of the images.

The largest that fits is not always a good one: Keskar et al. 2017 (arXiv:1609.04836) call 32 to 512 images a small
batch, and measure worse test accuracy with a tenth of the training images. So an epoch has at least STEPS steps, and a
step at most LARGEST images. On a CPU a larger batch is hardly faster and means fewer steps, so that the limit is ON_CPU
(Masters & Luschi 2018, arXiv:1804.07612, find 32 or fewer best).

On a GPU real steps are taken, doubling the batch and then bisecting, as the batch-size finders of PyTorch Lightning and
Hugging Face do; the run that takes them is thrown away.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from ..config.automatic import AUTO
from ..config.keys import Config
from ..errors import ConfigError, MemoryRanOutError, Problem, as_training_error
from ..runtime.process_group import ProcessGroup
from ..runtime.random_state import random_state, restore_random_state
from .freezing import prepare_epoch
from .memory import find_fitting_batch_size, fits
from .run import Run
from .step import TrainingStep

LARGEST, ON_CPU = 512, 32  # images of a step
STEPS = 32  # of an epoch, at least
MULTIPLE = 8  # of which a batch size is one
MARGIN = 0.9  # of the images that fit


def useful_batch_size(images: int, accumulated: int = 1, most: int = LARGEST) -> int:
    """The largest batch for so many training images: a multiple of MULTIPLE, but for MULTIPLE images or fewer.

    Args:
        images: of an epoch.
        accumulated: batches of a step.
        most: images of a step.
    """
    size = min(most, images // STEPS) // accumulated
    return max(size // MULTIPLE * MULTIPLE, min(MULTIPLE, images))


def with_batch_size(
    config: Config, images: int, device: torch.device, group: ProcessGroup, build: Callable[[Config], Run]
) -> Config:
    """The config with a number for `data.batch_size: auto`, the same in all processes of a group.

    Args:
        config: with a number already, it is returned as it is.
        images: for training.
        device: of the training.
        group: the processes that train together; they have shares of the batch.
        build: builds a run for trial steps.
    Raises: ConfigError if there are steps whose memory is not known; as largest_batch_size.
    """
    if config.data.batch_size != AUTO:
        return config
    limit, why = LARGEST, "which fits; larger batches often generalize worse"
    if device.type != "cuda":
        limit, why = ON_CPU, "as a larger batch is hardly faster without CUDA"
    most = useful_batch_size(images, config.grad_accum_steps, limit)
    if images < STEPS * limit:
        why = f"as there are {images:,} training images"
    if device.type != "cuda":
        return with_number(config, most, f"{most}, {why}")
    if config.distillation is not None:
        message = "auto does not know how much memory the teacher of distillation takes; give a number"
        raise ConfigError([Problem(config.options.get("data.batch_size", "data.batch_size"), message)])
    sharing = -(-group.local_world_size // torch.cuda.device_count())  # processes on one GPU
    gpus = group.world_size // sharing
    each = max(1, most // gpus)
    size = group.from_rank_0(lambda: try_batch_sizes(config, each, build, reduced=not group.is_single))
    if size < each:
        why = "the largest that fits into the GPU's memory with a tenth to spare"
        if config.cuda_graph == "auto":
            config = replace(config, cuda_graph=False)  # whose memory is not free for a batch that is not full
    return with_number(config, size * gpus, f"{size * gpus}, {why}")


def try_batch_sizes(config: Config, most: int, build: Callable[[Config], Run], *, reduced: bool = False) -> int:
    """The largest batch of one process, up to `most`, that fits. Global random numbers are as before.

    Args:
        config: with `auto`.
        most: images.
        build: builds a run for trial steps, which is thrown away.
        reduced: there are several processes, which need a buffer for the sums of their gradients.
    Raises: as largest_batch_size.
    """
    before = random_state()
    run = build(replace(with_number(config, most, ""), compile=False, cuda_graph=config.cuda_graph is True))
    size = largest_batch_size(run, most, spare=sum(p.nbytes for p in run.parameters) if reduced else 0)
    del run
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    restore_random_state(before)
    return size


def with_number(config: Config, size: int, text: str) -> Config:
    """The config with this batch size, and the text that says why."""
    data = replace(config.data, batch_size=size)
    return replace(config, data=data, resolved={**config.resolved, "data.batch_size": text})


def largest_batch_size(run: Run, most: int, *, spare: int = 0) -> int:
    """The largest batch, up to `most`, whose training step fits into memory with a margin. The run cannot be used then.

    Args:
        run: as build.build_run made it.
        most: as useful_batch_size gives it.
        spare: bytes that must stay free beside the step.
    Raises: MemoryRanOutError if not even one image fits; TrainingError if a step fails for another reason.
    """
    run.scaler = torch.amp.GradScaler(run.device.type, enabled=False)  # it may leave out the first step, and its memory
    factor = 2 if run.config.cuda_graph is True else 1  # a graph's memory is not free for a batch that is not full

    def attempt(size: int) -> None:
        held = torch.empty(spare, dtype=torch.uint8, device=run.device)
        _take_steps(run, math.ceil(factor * size / MARGIN))
        del held

    with as_training_error(lambda: "data.batch_size: auto, trying a step"):
        size = _search(most, lambda size: fits(size, attempt))
        size = size or find_fitting_batch_size(min(MULTIPLE, most), attempt) or 0
    if not size:
        message = "not even one image fits; use a smaller model or smaller images, or a GPU with more memory"
        raise MemoryRanOutError(f"data.batch_size: auto: {message}")
    return size


def _search(most: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of MULTIPLE that fits, or `most`; 0 if there is none. Doubles the size, then bisects."""
    fitting, failing = 0, None
    size = min(MULTIPLE, most)
    while size > fitting:
        if fits(size):
            fitting, size = size, min(2 * size, most)
        else:
            failing = size
        if failing is not None:
            size = (fitting + failing) // 2 // MULTIPLE * MULTIPLE
    return fitting


def _take_steps(run: Run, size: int) -> None:
    """Take two steps on black images; the second has the optimizer's state beside its activations."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    run.optimizer.zero_grad()
    prepare_epoch(run, run.config.epochs)  # in which the most is trained
    step = TrainingStep(run)
    pixels = torch.zeros(size, *run.preprocessing.shape, dtype=torch.uint8, device=run.device)
    labels = torch.zeros(size, dtype=torch.int64, device=run.device)
    for _ in range(2):
        for _ in range(min(2, run.config.grad_accum_steps)):  # the second has gradients beside its activations
            images, targets = run.train.prepared(pixels), labels
            if run.mix is not None:
                images, targets = run.mix(images, labels)
            step.backward(step.forward(images, targets)[1])
        step.apply()
