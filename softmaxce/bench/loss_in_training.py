"""What the loss is worth inside training: the same model, trained in turns with one loss and the other."""

from dataclasses import dataclass
from functools import partial

import torch

from ..build import build_loss, build_run
from ..config import reader
from ..training.loop import train_epoch
from .clock import Timed, clock_for, race

STEPS = 32  # of training in one block, before the other loss's turn
LOSSES = {"torch": "torch_cross_entropy", "ours": "softmax_cross_entropy"}


@dataclass(frozen=True)
class Training:
    """One model at one batch size.

    Attributes:
        model: its name on the menu.
        batch_size: images a step.
        threads: that PyTorch may use on the CPU.
        step: the time of one training step with each loss; the first is PyTorch's.
    """

    model: str
    batch_size: int
    threads: int
    step: dict[str, Timed]


def compare(model: str, batch_size: int, threads: int, device: torch.device, rounds: int) -> Training:
    """Train in turns with PyTorch's loss and with ours, through the same loop that `softmaxce train` runs.

    The images are made up, 28 x 28 and grey: their content does not change the time. Model, optimizer, batches and
    memory are the same objects for both losses, and only the loss is exchanged, every 32 steps.

    Args:
        model: a name on the menu, or module:Name.
        batch_size: images a step.
        threads: that PyTorch may use on the CPU.
        device: where to train.
        rounds: how many times each loss has its turn, at least 2.
    Raises: ConfigError if there is no such model, or it cannot take these images.
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
        for name, on_menu in LOSSES.items():
            named = reader.from_dict({**config, "loss": on_menu}, "--train")
            losses[name] = build_loss(named, run.class_counts, run.device)

        def epoch_with(name: str) -> None:
            run.loss = losses[name]
            train_epoch(run, 1)  # its figures are read off the device, so it waits for all of its steps

        epochs = {name: partial(epoch_with, name) for name in losses}
        taken = race(epochs, rounds, clock=clock_for(run.device, threads))
    finally:
        torch.set_num_threads(before)
    return Training(model, batch_size, threads, {name: timed.per(STEPS) for name, timed in taken.items()})
