"""Several processes in `bench gpu`: NCCL with one process that acts as a group, and two processes on one card."""

import os
import socket
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..build import build_run
from ..config import reader as configs
from ..config import yamlfile
from ..runtime.process_group import SINGLE, ProcessGroup
from ..training.loop import fit
from .gpu import Report
from .gpu_training import train_events

TOLERANCE = 1e-4  # of a loss; rounding differs with the number of processes, and grows from step to step


class GroupOfOne(ProcessGroup):
    """A single process that takes part in every collective, as if there were others."""

    @property
    def is_single(self) -> bool:
        """False."""
        return False


def compare(report: Report, device: str, counts: Sequence[int], images: int, epochs: int) -> None:
    """Train LeNet on synthetic images in an ordinary process, in a group of one, and in two. A row for each.

    `processes`; `backend`, None for an ordinary process; `losses`, the mean training loss of each epoch, in nats;
    `difference`, the largest from the first row's; `equal`, whether all are the same to the last digit; `seconds`.

    Args:
        report: where the results go.
        device: cuda, or cpu to try the program.
        counts: the numbers of processes: 1, a group of one, or 2.
        images: per epoch.
        epochs: of each training.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # products in full float32, in the processes started here too
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = {
        "device": device,
        "precision": "float32",
        "deterministic": True,
        "cuda_graph": False,  # for a single process only
        "epochs": epochs,
        "data": {"name": "synthetic", "size": 28, "train": images, "test": 64, "batch_size": 64},
        "model": "lenet",
        "optimizer": {"name": "adam", "lr": 0.001},
        "schedule": "constant",
    }
    report.note("LeNet, float32 without TF32, deterministic: true; the losses of one process are the reference")
    began = time.monotonic()
    reference = _losses(config, SINGLE)
    report.row(processes=1, backend=None, losses=reference, difference=0.0, equal=True, seconds=_since(began))
    for processes in counts:
        began = time.monotonic()
        name = "nccl" if device == "cuda" and processes == 1 else "gloo"
        train = _in_group_of_one if processes == 1 else _in_two_processes
        what = f"{name}, {processes} process{'es' * (processes > 1)}"
        with report.errors_of(what):
            losses = train(config)
            difference = max(abs(a - b) for a, b in zip(losses, reference, strict=True))
            report.row(
                processes=processes,
                backend=name,
                losses=losses,
                difference=difference,
                equal=losses == reference,
                seconds=_since(began),
            )
            if not difference <= TOLERANCE:
                report.failed(f"{what}: the losses differ by {difference:.1e}")


def _losses(config: dict[str, Any], group: ProcessGroup) -> list[float]:
    return [epoch.train.loss for epoch in fit(build_run(configs.from_dict(config), group=group))]


def _in_group_of_one(config: dict[str, Any]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if config["device"] == "cuda" else "gloo",
            init_method=f"file://{folder}/store",
            rank=0,
            world_size=1,
            timeout=timedelta(seconds=60),
        )
        group = GroupOfOne()
        try:
            return _losses(config, group)
        finally:
            group.close()


def _in_two_processes(config: dict[str, Any]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(yamlfile.dump(config), encoding="utf-8")
        events = train_events(str(file), "--nproc", "2")
    return [event["train"]["loss"] for event in events if event["event"] == "epoch"]


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)
