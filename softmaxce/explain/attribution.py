"""Attribution: which regions or pixels of an image a logit, or the loss, depends on.

Each function takes a model, one normalized image [1, C, H, W] on its device, and a score, whose rise is attributed. The
model's parameters, buffers, modes and hooks, and the state of all random generators, are as before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..losses.interface import unchanged

Score = Callable[[Tensor], Tensor]  # logits [B, K] -> [B]

SAMPLES, NOISE = 50, 0.15  # of SmoothGrad: Smilkov et al. 2017, section 3.2: 50, and 10% to 20% of the image's range
SEED = 0
WINDOWS = 7  # of occlusion, along the image's side; they overlap by half
CHUNK = 16  # images at once


OTHERS = "of --attribution, input_gradient, smooth_grad and occlusion work without one"


@dataclass(frozen=True)
class Attribution:
    """One map of an image.

    Attributes:
        method: grad_cam, input_gradient, smooth_grad or occlusion.
        class_id: the class whose logit is attributed; None for the loss.
        values: [H, W] float32, at the image's size. A positive value raises the logit or lowers the loss; those of
            input_gradient and smooth_grad are absolute values.
        layer: of grad_cam: the layer's name.
        cells: of grad_cam: the height and width of the layer's output.
        window: of occlusion: the height and width of the square, in pixels.
    """

    method: str
    class_id: int | None
    values: Tensor
    layer: str | None = None
    cells: tuple[int, int] | None = None
    window: tuple[int, int] | None = None


def attribute(
    model: nn.Module, image: Tensor, method: str, score: Score, class_id: int | None, layer: str
) -> Attribution:
    """One map by the name of its method; `layer` is for grad_cam alone. Raises: ValueError as grad_cam."""
    size = (image.shape[2], image.shape[3])
    if method == "grad_cam":
        cam = grad_cam(model, image, score, layer)
        values = functional.interpolate(cam[None, None].cpu(), size, mode="bilinear")[0, 0]
        return Attribution(method, class_id, values, layer=layer, cells=(cam.shape[0], cam.shape[1]))
    if method == "occlusion":
        window = (occluding_window(size[0]), occluding_window(size[1]))
        return Attribution(method, class_id, occlusion(model, image, score, window).cpu(), window=window)
    gradient = {"input_gradient": input_gradient, "smooth_grad": smooth_grad}[method]
    return Attribution(method, class_id, gradient(model, image, score).abs().amax(0).cpu())


def logit_of(class_id: int) -> Score:
    """The score that is a class's logit."""
    return lambda logits: logits[:, class_id]


def negative_loss(targets: Tensor, temperature: float) -> Score:
    """The score that is minus the cross-entropy, in nats: sum_k Q_k log S_k.

    Args:
        targets: [K] float64, Q: the label, smoothed and weighted as the loss does.
        temperature: what logits are divided by.
    """
    return lambda logits: (torch.log_softmax(logits.cpu().double() / temperature, 1) * targets).sum(1)


# -- Grad-CAM ---------------------------------------------------------------------------------------------------------


def grad_cam(model: nn.Module, image: Tensor, score: Score, layer: str) -> Tensor:
    """The class activation map of a layer, [h, w]: relu(sum_c a_c A_c), where a_c is the mean of d score / d A_c.

    Args:
        layer: the name of a module whose output A is [1, C, h, w].
    Raises: ValueError, with the reason, if there is no such layer, or its output is no map or has no gradient.

    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        names = [name for name, child in model.named_modules() if isinstance(child, nn.Conv2d)]
        shown = ", ".join(names if len(names) <= 6 else [*names[:2], "...", *names[-3:]])
        raise ValueError(
            f"the model has no layer {layer}" + (f"; its convolutions are {shown}" if names else "")
        ) from None
    with unchanged(model, evaluation=True), torch.enable_grad():
        logits, outputs = _run_with_outputs(model, image.clone().requires_grad_().clone(), {layer: module})
        activation = outputs[-1][1] if outputs else None
        if not isinstance(activation, Tensor) or activation.ndim != 4:
            shape = list(activation.shape) if isinstance(activation, Tensor) else "no tensor"
            raise ValueError(
                f"the output of {layer} is {shape}; Grad-CAM needs a map [1, C, H, W], as of a convolution"
            )
        if not activation.requires_grad:
            raise ValueError(f"the output of {layer} has no gradient: the model computes it under torch.no_grad")
        (gradient,) = torch.autograd.grad(score(logits).sum(), activation, materialize_grads=True)
    weights = gradient.mean((2, 3), keepdim=True)  # [1, C, 1, 1]
    return (weights * activation.detach()).sum(1)[0].float().relu()


def last_feature_map(model: nn.Module, image: Tensor) -> str:
    """The layer for grad_cam: the one that completes the last map of the last convolution's height and width.

    It is the last nn.Conv2d that runs and gives more than 1x1, together with the normalization, activation, branches
    and sum that follow it: relu5_3 of VGG-16 and layer4 of a ResNet, the layers of Selvaraju et al.'s own code.
    Raises: ValueError, with the reason, if there is none, or it does nothing but cut the image into patches.
    """
    layers = {name: module for name, module in model.named_modules() if name}
    if not any(isinstance(module, nn.Conv2d) for module in layers.values()):
        raise ValueError(f"the model has no convolution; {OTHERS}")
    with unchanged(model, evaluation=True), torch.no_grad():
        outputs = _run_with_outputs(model, image.clone(), layers)[1]
    sizes = [(name, output.shape[2:]) for name, output in outputs if isinstance(output, Tensor) and output.ndim == 4]
    convolutions = [(name, size) for name, size in sizes if isinstance(layers[name], nn.Conv2d) and size.numel() > 1]
    if not convolutions:
        raise ValueError(f"the model has no convolution whose output is larger than 1x1; {OTHERS}")
    name, last_size = convolutions[-1]
    stride, kernel = getattr(layers[name], "stride", None), getattr(layers[name], "kernel_size", None)
    if len(convolutions) == 1 and stride == kernel != (1, 1):
        raise ValueError(f"the model's only convolution, {name}, cuts the image into patches; {OTHERS}")
    after = sizes[len(sizes) - sizes[::-1].index((name, last_size)) :]
    return [name, *(other for other, size in after if size == last_size)][-1]


def _run_with_outputs(
    model: nn.Module, image: Tensor, layers: dict[str, nn.Module]
) -> tuple[Tensor, list[tuple[str, Any]]]:
    """The logits, and the layers' outputs in the order in which they ran."""
    outputs: list[tuple[str, Any]] = []

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            outputs.append((name, output))
            return output.clone() if isinstance(output, Tensor) else output  # the next layer may work in place

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        return model(image), outputs
    finally:
        for handle in handles:
            handle.remove()


# -- gradients with respect to the pixels -----------------------------------------------------------------------------


def input_gradient(model: nn.Module, image: Tensor, score: Score) -> Tensor:
    """The gradient of the score with respect to the normalized pixels, [C, H, W].

    Simonyan et al. 2014, "Deep inside convolutional networks", section 3.1; the map shown there is the largest absolute
    value over the channels.
    """
    return _gradients(model, image, score)[0]


def smooth_grad(model: nn.Module, image: Tensor, score: Score, samples: int = SAMPLES, noise: float = NOISE) -> Tensor:
    """The mean of the input gradients of copies of the image with Gaussian noise, [C, H, W].

    Args:
        samples: how many copies.
        noise: the standard deviation, as a fraction of the range of the normalized pixels.

    The noise is drawn on the CPU from a generator of its own: the same on every device, and each time.
    Smilkov et al. 2017, "SmoothGrad", section 3.
    """
    deviation = noise * (image.max() - image.min())
    generator = torch.Generator().manual_seed(SEED)
    total = torch.zeros_like(image[0])
    for start in range(0, samples, CHUNK):
        count = min(CHUNK, samples - start)
        draws = torch.randn(count, *image.shape[1:], generator=generator).to(image)
        total += _gradients(model, image + deviation * draws, score).sum(0)
    return total / samples


def _gradients(model: nn.Module, images: Tensor, score: Score) -> Tensor:
    """[B, C, H, W], each image's by itself."""
    with unchanged(model, evaluation=True), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        (gradients,) = torch.autograd.grad(score(model(leaf.clone())).sum(), leaf)  # a model may work in place
    return gradients.float()


# -- occlusion --------------------------------------------------------------------------------------------------------


def occluding_window(side: int) -> int:
    """The side of the square, in pixels, for an image's side."""
    return max(1, min(side, max(2, round(side / WINDOWS))))


@torch.no_grad()
def occlusion(model: nn.Module, image: Tensor, score: Score, window: tuple[int, int]) -> Tensor:
    """How much the score falls when a square is covered with 0, the mean of the normalization; [H, W].

    The square moves by half its side; a pixel's value is the mean over the squares that cover it.
    Args:
        window: the height and width of the square, in pixels.

    Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2.
    """
    corners = [(top, left) for top in _starts(image.shape[2], window[0]) for left in _starts(image.shape[3], window[1])]
    total, covered = torch.zeros_like(image[0, 0]), torch.zeros_like(image[0, 0])
    with unchanged(model, evaluation=True):
        before = score(model(image.clone()))
        for start in range(0, len(corners), CHUNK):
            part = corners[start : start + CHUNK]
            copies = image.repeat(len(part), 1, 1, 1)
            squares = [(slice(top, top + window[0]), slice(left, left + window[1])) for top, left in part]
            for copy, (rows, columns) in zip(copies, squares, strict=True):
                copy[:, rows, columns] = 0
            falls = (before - score(model(copies))).tolist()
            for fall, square in zip(falls, squares, strict=True):
                total[square] += fall
                covered[square] += 1
    return total / covered


def _starts(side: int, window: int) -> range:
    """Where the squares begin along a side; the last one may reach beyond the image."""
    stride = max(1, window // 2)
    return range(0, -(-(side - window) // stride) * stride + 1, stride)
