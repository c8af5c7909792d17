"""Maps of what a prediction depends on: what each is and is not, laid over the image, and as a step in a terminal."""

from collections.abc import Sequence
from itertools import groupby

import torch
from rich.text import Text
from torch import Tensor

from ..data.pictures import as_picture
from ..explain.attribution import NOISE, SAMPLES, Attribution
from ..explain.explanation import Explanation
from ..streams import escaped
from . import terminal_art
from .explanation_tables import ExplanationPrinter

HEADING = "Attribution: where did the model look?"
CAUTION = (
    "A map is no proof of a reason. It can look right and hardly depend on what the model learned. Gradients and "
    "Grad-CAM do depend on the weights (Adebayo et al. 2018, sanity checks), which is necessary and not sufficient."
)
TITLES = {
    "grad_cam": "Grad-CAM",
    "input_gradient": "Input gradient",
    "smooth_grad": "SmoothGrad",
    "occlusion": "Occlusion",
}
GRADIENTS = ("input_gradient", "smooth_grad")
OUTLIERS = 0.01  # of the pixels of a gradient, which are drawn at full strength, as Smilkov et al. 2017 do
STRONGEST = 0.75  # of the color over the image


def meaning(attribution: Attribution) -> str:
    """What a map is and what it is not, in two sentences."""
    is_loss = attribution.class_id is None
    what, raises = ("loss", "lowers the loss") if is_loss else ("logit", "raises the logit")
    match attribution.method:
        case "grad_cam":
            assert attribution.cells is not None
            height, width = attribution.cells
            return (
                f"It is where the output of layer {attribution.layer} ({height} x {width} cells), its channels "
                f"weighted by their mean gradients, {raises} (Selvaraju et al. 2017). It is not the outline of an "
                "object: it is as coarse as these cells, and what has the opposite effect is left out."
            )
        case "input_gradient":
            return (
                f"It is how strongly the {what} reacts to a small change of each pixel (Simonyan et al. 2014). It is "
                "not the pixel's share: it is noisy, and a pixel that matters can have a small gradient."
            )
        case "smooth_grad":
            return (
                f"It is the mean input gradient of {SAMPLES} copies of the image with {NOISE:.0%} noise (Smilkov et "
                "al. 2017). It is not truer than the gradient, only smoother."
            )
    assert attribution.window is not None
    height, width = attribution.window
    fall = "rises" if is_loss else "falls"
    return (
        f"It is how much the {what} {fall} when a square of {height} x {width} pixels is covered with the mean of the "
        "normalization (Zeiler & Fergus 2014); negative is the opposite. It is not exact to the pixel, and a covered "
        "image is one that the model was never trained on."
    )


def name_of(explanation: Explanation, attribution: Attribution) -> str:
    """What a map is of: a class, and whether it is the label or predicted; or the loss."""
    index = attribution.class_id
    if index is None:
        return "the loss"
    roles = [("label", explanation.steps.main), ("predicted", explanation.predicted)]
    shown = " and ".join(role for role, class_id in roles if class_id == index)
    return escaped(explanation.classes[index]) + (f" ({shown})" if shown else "")


def by_method(attributions: Sequence[Attribution]) -> list[list[Attribution]]:
    """The maps of each method, which share a scale."""
    return [list(group) for _, group in groupby(attributions, lambda attribution: attribution.method)]


def scale(maps: Sequence[Attribution]) -> float:
    """The absolute value that is drawn at full strength in maps of one method; 0 if all are 0."""
    values = torch.cat([attribution.values.abs().flatten() for attribution in maps]).double()
    if maps[0].method in GRADIENTS:
        return float(values.sort().values[round((1 - OUTLIERS) * (len(values) - 1))]) or float(values.max())
    return float(values.max())


def overlay(image: Tensor, values: Tensor, largest: float) -> Tensor:
    """A map [H, W] over an image [C, H, W] in gray: positive red, negative blue; [3, H, W] uint8."""
    pixels = as_picture(image).expand(3, -1, -1)
    gray = (pixels.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(0)
    gray = 48 + gray * (160 / 255)  # neither black nor white, so that both colors are visible everywhere
    strength = STRONGEST * (values.double().abs() / max(largest, 1e-300)).clamp(0, 1)
    colors = torch.tensor([[230.0, 30, 40], [20, 110, 240]], dtype=torch.float64)[(values < 0).long()].permute(2, 0, 1)
    return (gray * (1 - strength) + colors * strength).round().to(torch.uint8)


def print_attributions(to: ExplanationPrinter) -> None:
    """Print the maps of an explanation, if it has any, as one step."""
    image, attributions = to.explanation.image, to.explanation.attributions
    if image is None or not attributions:
        return
    to.heading(HEADING)
    signs = "Red is positive, blue is negative" if to.has_color else "A map goes from blank, which is 0, to @"
    if not to.has_color and attributions[-1].method == "occlusion":
        signs += "; in occlusion's + and # are positive, - and = negative"
    to.text(f"{CAUTION} {signs}. The maps of a method have one scale.")
    for maps in by_method(attributions):
        largest = scale(maps)
        to.console.print()
        to.text(f"{TITLES[maps[0].method]}. {meaning(maps[0])}")
        if largest == 0:
            to.text("Here it is 0 everywhere.")
            continue
        names = [Text(name_of(to.explanation, one)) for one in maps]
        to.draw_pair(names, [_drawn(to, image, one, largest) for one in maps])


def _drawn(to: ExplanationPrinter, image: Tensor, one: Attribution, largest: float) -> list[Text]:
    """In color laid over the image; else from blank to @, or, where it has a sign, + and # or - and =."""
    if to.has_color:
        return terminal_art.picture(overlay(image, one.values, largest), color=True, widest=to.half_width)
    if one.method == "occlusion":
        return terminal_art.signed_map(one.values.double().numpy(), largest, False, to.half_width)
    shades = (255 * one.values.double() / largest).clamp(0, 255).to(torch.uint8)
    return terminal_art.picture(shades[None], color=False, widest=to.half_width)
