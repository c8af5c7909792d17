"""`softmaxce check-loss`: checks a loss, softmaxce's or your own, against the laws of a sound loss."""

from typing import TYPE_CHECKING, Annotated

import typer

from softmaxce import streams
from softmaxce.config import reader, registry
from softmaxce.errors import FAILED, ConfigError, Problem, suggestion

if TYPE_CHECKING:
    from softmaxce.laws.law import LawResult

from .options import between_commas, check_device
from .startup import fast_imports


def check_loss(
    target: Annotated[
        str, typer.Argument(help="A built-in loss, or your own: module:Name or file.py:Name, a class or a function.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the loss, e.g. label_smoothing=0.1."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="A loss with the correct values, e.g. softmax_cross_entropy; it gets the arguments that both take.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="LAW,...", help="Laws that the loss is exempt from.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="LAW,...", help="Test these laws only.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="The number of classes, if the loss supports only one; default: several.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search for an input that violates a law.")] = 0,
    device: Annotated[str, typer.Option(callback=check_device, help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Check a loss against the laws of a sound loss; show the smallest input that violates each, and its cost."""
    skipped, selected = _laws("--skip", skip), _laws("--only", only)
    component = reader.named("loss", target, [reader.parse_override(text) for text in set_ or []])
    named_reference = reader.named("loss", reference, option="--reference") if reference else None

    with fast_imports():
        from softmaxce.laws import cost
        from softmaxce.laws.examine import examine
        from softmaxce.laws.subject import Subject, referring
        from softmaxce.report import console, laws
        from softmaxce.runtime.device import choose_device

    torch_device = choose_device(device)
    known = Subject(referring(named_reference, component), torch_device, classes) if named_reference else None
    subject = Subject(component, torch_device, classes, known, seed)
    results = laws.with_progress(examine(subject, skipped, selected), len(selected or registry.LAWS))
    if not any(result.status in ("passed", "failed") for result in results):
        raise _no_law_tried(results, selected, reference)
    costs = None if selected else cost.measure(subject)
    if json:
        import json as jsonlib

        streams.json_text(jsonlib.dumps(laws.to_dict(subject, results, costs)))
    else:
        laws.print_results(subject, results, costs, console.stdout())
    if any(result.status == "failed" for result in results):
        raise typer.Exit(FAILED)


def _laws(option: str, texts: list[str] | None) -> list[str]:
    """The laws that an option names. Raises: ConfigError."""
    names = between_commas(texts)
    for name in names:
        if name not in registry.LAWS:
            hint = suggestion(name, registry.LAWS) or f"; the laws are {', '.join(registry.LAWS)}"
            raise ConfigError([Problem(f"{option} {name}", f"there is no such law{hint}")])
    return names


def _no_law_tried(results: "list[LawResult]", only: list[str], reference: str | None) -> ConfigError:
    reasons = list(dict.fromkeys(result.detail for result in results))
    remedy = "add --reference softmax_cross_entropy, or another loss with the correct values"
    if reference is not None or not any("--reference" in reason for reason in reasons):
        remedy = "choose other laws"
    location = " ".join(f"--only {law}" for law in only) or "check-loss"
    return ConfigError([Problem(location, f"no law was checked ({'; '.join(reasons)}); {remedy}")])
