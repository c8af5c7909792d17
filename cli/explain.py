"""`softmaxce explain`: the loss of one image, step by step, with its numbers.

The command's function is long because each option is an argument.
"""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmaxce import streams
from softmaxce.errors import ConfigError, Problem
from softmaxce.files import check_page

from . import explain_arguments
from .options import (
    AllowChangedData,
    DataRoot,
    Force,
    RunOrCheckpoint,
    Split,
    SplitName,
    Temperature,
    TrustCode,
    run_and_paths,
    run_or_newest,
)
from .startup import fast_imports

if TYPE_CHECKING:
    import torch

    from softmaxce.explain.explanation import Explanation
    from softmaxce.inference.trained_model import TrainedModel


class Attributed(enum.StrEnum):
    """What an attribution is of."""

    logit = "logit"
    loss = "loss"


def explain(
    run: RunOrCheckpoint = None,
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE", help="An image file.")] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Instead of IMAGE: an image of the run's own data; default: 0.")
    ] = None,
    split: Split = SplitName.test,
    mix: Annotated[
        str | None,
        typer.Option(
            metavar="N[=W]", help="With --index: mix with image N at weight W, as mixup does; default 0.5, e.g. 5=0.3."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The true class, by name or number; or a soft label, e.g. cat=0.7,dog=0.3."),
    ] = None,
    logits: Annotated[
        str | None, typer.Option(metavar="Z,Z,...", help="Instead of RUN: these logits, e.g. 2.0,1.0,0.1.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,...", help="With --logits: the names of the classes.")
    ] = None,
    weight: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="With --logits: one weight per class, as loss.weight.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=1, help="With --logits: as loss.label_smoothing.")
    ] = None,
    attribution: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD,...",
            help="Which maps show where the model looked: some of grad_cam, input_gradient, smooth_grad and occlusion, "
            "or all, or none; default: grad_cam if the model has a convolution.",
        ),
    ] = None,
    of: Annotated[
        Attributed | None,
        typer.Option(help="What these maps explain: the logits of two classes (the default), or the loss."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The layer of grad_cam; default: the last feature map of the convolutions."),
    ] = None,
    data: DataRoot = None,
    temperature: Temperature = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    digits: Annotated[int, typer.Option(min=2, max=12, help="Decimal places of the printed numbers.")] = 4,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an HTML page with sliders for the logits, instead of printing."),
    ] = None,
    force: Force = False,
    json: Annotated[bool, typer.Option("--json", help="Print every intermediate value as one JSON object.")] = False,
) -> None:
    """Show how the loss of one image is computed, step by step, from its logits to its gradient.

    The image is a file or one of the run's own data; --logits needs no model.
    """
    if html is not None:
        check_page(html, "--html", force=force)
    if logits is not None and mix is not None:
        raise _mistake("--mix", "is only for --index; write a soft label as --label a=0.7,b=0.3")
    for_logits = {"--classes": classes, "--weight": weight, "--label-smoothing": label_smoothing}
    if logits is not None:
        if run is not None or image is not None or index is not None:
            raise _mistake("--logits", "cannot be combined with RUN, IMAGE or --index")
        for option, value in {"--attribution": attribution, "--of": of, "--layer": layer}.items():
            if value is not None:
                raise _mistake(option, "needs a model and an image, and cannot be combined with --logits")
        explanation = _of_logits(logits, label, classes, weight, label_smoothing or 0.0, temperature or 1.0)
    else:
        for option, number in for_logits.items():
            if number is not None:
                raise _mistake(option, "is only for --logits; a run has its own")
        maps = explain_arguments.attributions(attribution, of, layer)
        explanation = _of_run(
            run, image, index, split, mix, label, temperature, data, trust_code, allow_changed_data, maps
        )
    if html is not None:
        from softmaxce.report.html.explanation_page import write_page

        write_page(explanation, html)
        streams.line(f"page: {html}", err=json)
    if json:
        import json as jsonlib

        streams.json_text(jsonlib.dumps(explanation.to_dict(), allow_nan=False))
    if json or html is not None:
        return
    from softmaxce.report import console
    from softmaxce.report.explanation import print_explanation

    print_explanation(explanation, console.stdout(), digits)


def _of_logits(
    logits: str, label: str | None, classes: str | None, weight: str | None, label_smoothing: float, temperature: float
) -> "Explanation":
    row = explain_arguments.logits(logits)
    names = explain_arguments.class_names(classes, len(row))
    if label is None:
        raise _mistake("--label", "is required with --logits: the true class, by name or number")
    target = explain_arguments.label(label, names)
    factors = None if weight is None else explain_arguments.weights(weight, len(row))

    with fast_imports():
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
    data: Path | None,
    trust_code: bool,
    allow_changed_data: bool,
    maps: dict[str, Any],
) -> "Explanation":
    if image is not None and index is not None:
        raise _mistake("explain", "needs either IMAGE or --index, not both")
    first_alone = image is None and index is None
    if first_alone:
        index = 0
    if mix is not None and index is None:
        raise _mistake("--mix", "is only for --index: it mixes two images of a split")

    mixed = None if mix is None else explain_arguments.mix(mix)
    if run is not None and first_alone and run_and_paths([str(run)], "explain")[1]:  # explain photo.jpg
        run, image, index = None, run, None
    run = run_or_newest(run, "explain")
    if image is not None and not image.is_file():
        raise _mistake(str(image), "there is no such file")

    with fast_imports():
        import torch

        from softmaxce.explain import trained
        from softmaxce.inference.trained_model import TrainedModel

    model = TrainedModel.open(
        run,
        device="cpu",
        temperature=temperature,
        data_root=data,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    target: int | torch.Tensor | None = None
    if index is not None:
        pixels, target, title = _image_of_split(model, split.value, index, mixed)
    else:
        assert image is not None
        pixels, title = trained.read_image(model, image), str(image)
    if label is not None:
        parsed = explain_arguments.label(label, model.classes)
        target = parsed if isinstance(parsed, int) else torch.tensor(parsed, dtype=torch.float64)
    attributions = trained.Attributions(**maps)
    return trained.explain_image(
        model, pixels, target, title=f"{title}, classified by {run}", attributions=attributions
    )


def _image_of_split(
    model: "TrainedModel", split: str, index: int, mixed: tuple[int, float] | None
) -> tuple["torch.Tensor", "int | torch.Tensor", str]:
    """An image of a split, its label, and what it is; mixed with another image by (index, weight), if that is given."""
    from softmaxce.explain import trained

    title = f"{split} image {index} of {model.config.source.name}"
    pixels: torch.Tensor
    target: int | torch.Tensor
    if mixed is None:
        pixels, target = trained.split_image(model, split, index)
    else:
        other, mix_weight = mixed
        pixels, target = trained.mixed_image(model, split, index, other, mix_weight)
        title += f" mixed with image {other} (weight {mix_weight:g})"
    if (files := model.split(split).files) is not None:
        title += f" ({files[index]})"
    return pixels, target, title


def _mistake(option: str, message: str) -> ConfigError:
    return ConfigError([Problem(option, message)])
