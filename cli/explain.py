"""`softmaxce explain`: the loss of one image, step by step, with its real numbers."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmaxce.errors import ConfigError, Problem, RunError

from .options import AllowChangedData, SplitName, Temperature
from .trust import TrustCode

if TYPE_CHECKING:
    from softmaxce.explain.explanation import Explanation


def explain(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run folder or a checkpoint; with --index, the newest if left out."),
    ] = None,
    image: Annotated[Path | None, typer.Argument(metavar="[IMAGE]", help="An image file.")] = None,
    index: Annotated[int | None, typer.Option(min=0, help="In place of IMAGE: an image of the run's own data.")] = None,
    split: Annotated[SplitName, typer.Option(help="With --index: which of the run's splits.")] = SplitName.test,
    mix: Annotated[
        str | None,
        typer.Option(
            metavar="N[=SHARE]", help="With --index: blend in so much of image N, as mixup does; half, or 5=0.3."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The true class, by name or number; or shares, e.g. cat=0.7,dog=0.3."),
    ] = None,
    logits: Annotated[
        str | None, typer.Option(metavar="Z,Z,...", help="In place of RUN: these logits, e.g. 2.0,1.0,0.1.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,...", help="With --logits: what the classes are called.")
    ] = None,
    weight: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="With --logits: a weight for each class, as loss.weight.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=1, help="With --logits: as loss.label_smoothing.")
    ] = None,
    temperature: Temperature = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    digits: Annotated[int, typer.Option(min=2, max=12, help="Decimals of the numbers printed.")] = 4,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one HTML page where sliders move the logits, in place of printing."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every intermediate value as one JSON object.")] = False,
) -> None:
    """Show what the loss does with one image, step by step, from its logits to its gradient.

    softmaxce explain RUN IMAGE [--label NAME]; softmaxce explain RUN --index 123; or without a model: softmaxce explain
    --logits 2.0,1.0,0.1 --label 0 --classes cat,dog,bird
    """
    if logits is not None and mix is not None:
        raise _mistake("--mix", "goes with --index; shares of a label are written --label a=0.7,b=0.3")
    given = {"--classes": classes, "--weight": weight, "--label-smoothing": label_smoothing}
    if logits is not None:
        if run is not None or image is not None or index is not None:
            raise _mistake("--logits", "takes the place of RUN, IMAGE and --index; leave one or the other out")
        explanation = _of_logits(logits, label, classes, weight, label_smoothing or 0.0, temperature or 1.0)
    else:
        for option, value in given.items():
            if value is not None:
                raise _mistake(option, "goes with --logits; a run has its own")
        explanation = _of_run(run, image, index, split, mix, label, temperature, trust_code, allow_changed_data)
    if html is not None:
        from softmaxce.report.html.explanation_page import write_page

        write_page(explanation, html)
        typer.echo(f"page: {html}", err=json)
    if json:
        import json as jsonlib

        typer.echo(jsonlib.dumps(explanation.to_dict(), allow_nan=False))
    if json or html is not None:
        return
    from softmaxce.report import console
    from softmaxce.report.explanation import print_explanation

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an encoding without bars and arrows shows ? for them
    print_explanation(explanation, console.stdout(), digits)


def _of_logits(
    logits: str, label: str | None, classes: str | None, weight: str | None, label_smoothing: float, temperature: float
) -> "Explanation":
    from . import explain_arguments

    row = explain_arguments.logits(logits)
    names = explain_arguments.class_names(classes, len(row))
    if label is None:
        raise _mistake("--label", "is needed with --logits: the true class, by name or number")
    target = explain_arguments.label(label, names)
    factors = None if weight is None else explain_arguments.weights(weight, len(row))

    import torch

    from softmaxce.explain.explanation import explain_logits

    def tensor(numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    return explain_logits(
        tensor(row),
        target if isinstance(target, int) else tensor(target),
        names,
        weight=None if factors is None else tensor(factors),
        label_smoothing=label_smoothing,
        temperature=temperature,
    )


def _of_run(
    run: Path | None,
    image: Path | None,
    index: int | None,
    split: SplitName,
    mix: str | None,
    label: str | None,
    temperature: float | None,
    trust_code: bool,
    allow_changed_data: bool,
) -> "Explanation":
    if (image is None) == (index is None):
        what = "either IMAGE or --index, not both" if image is not None else "an image: IMAGE, or --index N"
        raise _mistake("explain", f"needs {what}; or --logits 2.0,1.0,0.1 --label 0, which needs no run")
    if mix is not None and index is None:
        raise _mistake("--mix", "goes with --index: it blends two images of a split")
    from softmaxce.runs.folder import newest

    from . import explain_arguments

    blend = None if mix is None else explain_arguments.mix(mix)

    chosen = run if run is not None else newest()
    if chosen is None:
        raise RunError("there is no run under runs/ here; train one, or name a run folder: softmaxce explain RUN")

    import torch

    from softmaxce.explain import trained
    from softmaxce.inference.calibration import temperature_of

    opened = trained.open_run(chosen, trust_code=trust_code)
    if temperature is None:
        temperature = temperature_of(chosen)
    target: int | torch.Tensor | None = None
    if index is not None:
        title = f"{split.value} image {index} of {opened.config.source.name}"
        if blend is None:
            pixels, target = trained.pick(opened, split.value, index, allow_changed_data=allow_changed_data)
        else:
            other, share = blend
            pixels, target = trained.blend(
                opened, split.value, index, other, share, allow_changed_data=allow_changed_data
            )
            title += f" blended with {share:g} of image {other}"
        title += f", by {chosen}"
    else:
        assert image is not None
        pixels, title = trained.read_image(opened, image), f"{image}, by {chosen}"
    if label is not None:
        found = explain_arguments.label(label, opened.classes)
        target = found if isinstance(found, int) else torch.tensor(found, dtype=torch.float64)
    return trained.explain_image(opened, pixels, target, title=title, temperature=temperature)


def _mistake(option: str, message: str) -> ConfigError:
    return ConfigError([Problem(option, message)])
