"""The summary that `train --dry-run` prints: the layers, the parameters, and the memory of a training step."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from .. import streams
from ..data.progressive_resizing import sizes_by_epoch
from ..errors import MemoryRanOutError
from ..training.dry_run import dry_run
from ..training.memory import smaller_steps
from ..training.run import Run
from . import console
from .json_values import dumps
from .training import introduction

MiB = 1 << 20


def print_summary(run: Run, *, as_json: bool) -> None:
    """Do the dry run and print it."""
    try:
        result = dry_run(run)
    except MemoryRanOutError as error:
        raise MemoryRanOutError(f"{error}; {smaller_steps(run)}") from None
    if as_json:
        sizes = [asdict(span) for span in sizes_by_epoch(run.config, run.preprocessing.shape)]
        decided: dict[str, Any] = {"resolved": run.config.resolved} if run.config.resolved else {}
        decided |= {"sizes": sizes} if len(sizes) > 1 else {}
        streams.json_text(dumps({"event": "dry_run", **result, **decided}))
        return
    out = console.stdout()
    for line in introduction(run, None):
        out.print(line)
    out.print()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("layer", "type"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("output", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in result["layers"]:
        shape = "x".join(map(str, layer["output"]))
        table.add_row(layer["name"], layer["type"], shape, f"{layer['parameters']:,}" if layer["parameters"] else "")
    console.print_table(table, out)
    out.print()
    _print_groups(run, result["groups"])
    frozen = result["num_parameters"] - result["num_trained"]
    out.print(f"parameters: {result['num_parameters']:,}" + (f" ({frozen:,} frozen)" if frozen else ""))
    if result["num_trained_of_loss"]:
        out.print(f"parameters of the loss: {result['num_trained_of_loss']:,}")
    memory = result["memory"]
    parts = ", ".join(f"{name} {size / MiB:.1f}" for name, size in memory.items())
    out.print(f"memory of a step: {sum(memory.values()) / MiB:.1f} MiB ({parts})")
    out.print(f"loss of the first batch {result['batch']}: {result['loss']:.4f}; nothing was trained or written")


def _print_groups(run: Run, groups: list[dict[str, Any]]) -> None:
    """The optimizer's parameter groups where there are several, and how long the backbone is frozen."""
    out = console.stdout()
    if len(groups) > 1:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("parameter group", overflow="ellipsis", no_wrap=True)
        for name in ("tensors", "parameters", "learning rate", "weight decay"):
            table.add_column(name, justify="right", no_wrap=True)
        for group in groups:
            names, decay = group["parameters"], group["weight_decay"]
            span = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
            cells = [str(len(names)), f"{group['num_parameters']:,}", f"{group['learning_rate']:.3g}"]
            table.add_row(span, *cells, "" if decay is None else f"{decay:g}")
        console.print_table(table, out)
        out.print()
    tuning = run.config.fine_tuning
    if tuning is not None and tuning.freeze == "backbone":
        until = "in every epoch" if tuning.unfreeze_epoch is None else f"before epoch {tuning.unfreeze_epoch}"
        out.print(f"the last layer alone is trained {until}")
