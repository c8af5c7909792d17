"""`softmaxce check-loss`: whether a loss, softmaxce's or one's own, is what a loss has to be."""

import enum
import os
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from softmaxce.config import reader, registry
from softmaxce.errors import FAILED

LawName = enum.StrEnum("LawName", {name: name for name in registry.LAWS})  # type: ignore[misc]


def check_loss(
    target: Annotated[
        str, typer.Argument(help="A loss of the menu, or your own: module:Name or file.py:Name, a class or a function.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the loss, e.g. label_smoothing=0.1."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="A loss with the right values, e.g. softmax_cross_entropy; it gets the arguments that both take.",
        ),
    ] = None,
    skip: Annotated[list[LawName] | None, typer.Option(help="A law that the loss does not claim.")] = None,
    only: Annotated[list[LawName] | None, typer.Option(help="Try this law only.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="The number of classes, if the loss takes no other; else several.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search for an input that breaks a law.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Try a loss on the laws of a sound one; show the smallest input that breaks each, and what the loss costs."""
    component = reader.named("loss", target, [reader.parse_override(text) for text in set_ or []])
    named_reference = reader.named("loss", reference, option="--reference") if reference else None

    # hypothesis notes what it has read of one's code; not in the folder where one stands
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(platformdirs.user_cache_dir("softmaxce"), "laws")))
    from softmaxce.laws import cost
    from softmaxce.laws.examine import examine
    from softmaxce.laws.subject import Subject, referring
    from softmaxce.report import console, laws
    from softmaxce.runtime.device import choose_device

    where = choose_device(device)
    truth = Subject(referring(named_reference, component), where, classes) if named_reference else None
    subject = Subject(component, where, classes, truth, seed)
    verdicts = laws.watched(examine(subject, skip or (), only or ()), len(only or registry.LAWS))
    costs = None if only else cost.measure(subject)
    if json:
        import json as jsonlib

        typer.echo(jsonlib.dumps(laws.plain(subject, verdicts, costs)))
    else:
        laws.print_verdicts(subject, verdicts, costs, console.stdout())
    if any(verdict.answer == "broken" for verdict in verdicts):
        raise typer.Exit(FAILED)
