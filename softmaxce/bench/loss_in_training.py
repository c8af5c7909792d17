"""The effect of the loss on the time of a training step: one model, trained alternately with either loss."""

from dataclasses import dataclass
from functools import partial

import torch

from ..build import build_loss, build_run
from ..config import reader
from ..training.loop import train_epoch
from .clock import Timed, clock_for, race

STEPS = 32  # of training in one block, before it is the other loss's turn
LOSSES = {"torch": "torch_cross_entropy", "ours": "softmax_cross_entropy"}


@dataclass(frozen=True)
class Training:
    """The times of one model at one batch size.

    Attributes:
        model: its name in the config.
        batch_size: images per step.
        threads: of PyTorch on the CPU.
        step: the time of one training step with each loss; the first is PyTorch's.
    """

    model: str
    batch_size: int
    threads: int
    step: dict[str, Timed]


def compare(model: str, batch_size: int, threads: int, device: torch.device, rounds: int) -> Training:
    """Train alternately with PyTorch's loss and with ours, through the loop of `softmaxce train`.

    The images are synthetic, 28 x 28 and gray: their content does not change the time. Model, optimizer, batches and
    memory are the same objects for both losses; only the loss is exchanged, every 32 steps.

    Args:
        model: a model's name in the config, or module:Name.
        batch_size: images per step.
        threads: of PyTorch on the CPU.
        device: where to train.
        rounds: the number of blocks for each loss, at least 2.
    Raises: ConfigError if there is no such model, or it does not accept these images.
    """
    config = {
        "device": str(device),
        "epochs": 1,
        "data": {"name": "synthetic", "size": 28, "train": STEPS * batch_size, "test": 10, "batch_size": batch_size},
        "model": model,
        "optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.9},
    }
    settings = reader.from_dict(config, "--train")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = build_run(settings)
        losses = {}
        for name, config_name in LOSSES.items():
            named = reader.from_dict({**config, "loss": config_name}, "--train")
            losses[name] = build_loss(named, run.class_counts, run.device)

        def epoch_with(name: str) -> None:
            run.loss = losses[name]
            train_epoch(run, 1)  # it reads its metrics from the device, and so waits for all of its steps

        epochs = {name: partial(epoch_with, name) for name in losses}
        taken = race(epochs, rounds, clock=clock_for(run.device, threads))
    finally:
        torch.set_num_threads(before)
    return Training(model, batch_size, threads, {name: timed.per(STEPS) for name, timed in taken.items()})
