"""The keys of a config and their defaults: what a config file can say."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ..argument_types import Fraction, Moments, NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from ..errors import RunError
from . import registry
from .components import Component
from .signatures import REQUIRED, Argument, Signature

# What softmaxce passes to a component that takes it, so that a file never has to.
SUPPLIED = {
    "model": ("in_channels", "num_classes", "image_size"),
    "loss": ("num_classes", "class_counts"),
    "data": ("root", "download", "seed"),
    "optimizer": ("params", "model"),
    "schedule": ("step", "steps", "steps_per_epoch"),
    "augment": (),
}
CALLED_WITH = {"loss": 2}  # a plain function loss(logits, targets) may stand there itself
COMPONENTS: dict[str, Mapping[str, str]] = {
    "model": registry.MODELS,
    "loss": registry.LOSSES,
    "optimizer": registry.OPTIMIZERS,
    "schedule": registry.SCHEDULES,
}
NEEDS_VALIDATION = "early_stopping needs a validation split; set data.validation, to 0.1 for example"


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the best validation figure has not improved for some epochs.

    Attributes:
        patience: how many epochs without improvement to wait.
        min_delta: what counts as one, in the unit of `best_metric`.
    """

    patience: PositiveInt
    min_delta: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Normalize:
    """Fixed normalisation: (pixel in [0, 1] - mean) / std, one number a channel."""

    mean: list[float]
    std: list[PositiveFloat]


@dataclass(frozen=True)
class Data:
    """The `data` section. What it does not name here goes to the source as its arguments.

    Attributes:
        name: the source, a name on the menu or module:Name.
        root: the folder with the data; None means $SOFTMAXCE_DATA, else a folder in the user's cache.
        download: fetch what is missing.
        batch_size: images a training step.
        eval_batch_size: images at once in evaluation; it does not change a figure.
        augment: what is done to training images, in this order.
        normalize: auto (the training images' own mean and deviation), imagenet, none, or {mean: [..], std: [..]}.
        validation: how much of the training images to hold out, a count (100) or a fraction (0.1); stratified, by the
            seed.
        train_limit: use only this many training images; stratified, by the seed.
    """

    name: str
    root: str | None = None
    download: bool = False
    batch_size: PositiveInt = 128
    eval_batch_size: PositiveInt = 256
    augment: list[Any] = field(default_factory=list)
    normalize: Literal["auto", "imagenet", "none"] | dict[str, Any] = "auto"
    validation: PositiveInt | Fraction | None = None
    train_limit: PositiveInt | None = None


@dataclass(frozen=True)
class Config:
    """A complete config. Every field is a key of the file; the defaults are the file's.

    Attributes:
        seed: of the weights, the shuffling, the augmentation and the validation split.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: float32, or bf16 or fp16 (autocast; the weights stay float32); auto: bf16 where the device has
            instructions for it, else float32.
        compile: have torch.compile make one program of the model; seconds to minutes at first. On the CPU slower.
        cuda_graph: on CUDA, replay forward and backward pass of full batches as one CUDA graph: auto, where the run
            allows it, and else it says why not; true, or stop; false.
        keep_memory: keep freed memory in the process for the next batch (CPU, glibc); it changes no figure.
            Under ulimit -v or strict overcommit memory is given back all the same: what is kept would count.
        deterministic: refuse operations whose result is not the same to the last bit each time; slower on a GPU.
        epochs: how many times every training image is seen.
        data: where the images come from and how they are batched.
        model: the network.
        loss: what is minimised.
        optimizer: torch's own, with torch's argument names, or muon.
        schedule: the learning rate's course, step by step.
        clip_grad_norm: scale the gradient down to this norm where it is larger.
        grad_accum_steps: batches whose gradients are averaged before one step.
        mixup_alpha: mixup's Beta parameter (Zhang et al. 2018); 0 is off.
        cutmix_alpha: CutMix's Beta parameter (Yun et al. 2019); 0 is off. With both, each batch draws one of the two.
        model_ema_decay: evaluate an exponential moving average of the weights with this decay.
        model_ema_steps: steps between two updates of that average.
        tta: test-time augmentation in final figures, eval and predict, not in the epochs' table: none; flip, an image
            and its mirror image; crops, an image and two shifted by a pixel; flip_crops. Logits are averaged.
        early_stopping: {patience, min_delta}; it needs a validation split.
        best_metric: what decides the best epoch, on the validation split.
        checkpoint_every: save within an epoch too, every '500 steps' or '10 minutes'; it changes no figure.
        on_nonfinite: what to do about a loss or gradient that is not finite: stop, skip that step, or restore the last
            checkpoint's weights and go on after that batch.
        max_nonfinite: how many of them a run may skip or restore after before it stops.
    """

    epochs: PositiveInt
    data: Data
    model: Component
    optimizer: Component
    loss: Component
    schedule: Component
    source: Component
    augment: tuple[Component, ...] = ()
    seed: Seed = 0
    device: str = "auto"
    precision: Literal["float32", "bf16", "fp16", "auto"] = "float32"
    deterministic: bool = False
    compile: bool = False
    cuda_graph: Literal["auto"] | bool = "auto"
    keep_memory: bool = True
    clip_grad_norm: PositiveFloat | None = None
    grad_accum_steps: PositiveInt = 1
    mixup_alpha: NonNegativeFloat = 0.0
    cutmix_alpha: NonNegativeFloat = 0.0
    model_ema_decay: Fraction | None = None
    model_ema_steps: PositiveInt = 1
    tta: Literal["none", "flip", "crops", "flip_crops"] = "none"
    early_stopping: EarlyStopping | None = None
    best_metric: Literal["accuracy", "loss"] = "accuracy"
    checkpoint_every: Moments | None = None
    on_nonfinite: Literal["stop", "skip", "restore"] = "stop"
    max_nonfinite: PositiveInt = 10
    recipe: str = "run"

    @property
    def root(self) -> Path:
        """The folder with the data."""
        return Path(self.data.root).expanduser() if self.data.root else default_root()

    def to_dict(self) -> dict[str, Any]:
        """As a file writes it, every default spelt out."""
        result: dict[str, Any] = {}
        for name in KEYS:
            value = getattr(self, name)
            if isinstance(value, Component):
                value = value.to_dict()
            elif isinstance(value, EarlyStopping):
                value = vars(value)
            elif isinstance(value, Data):
                value = {**self.source.to_dict(), **{k: v for k, v in vars(value).items() if k != "name"}}
                value["augment"] = [component.to_dict() for component in self.augment]
            result[name] = value
        return result


def users_code(config: Config) -> list[str]:
    """What a config names that is code outside softmaxce, `mylab.losses:Tilted`."""
    components = (config.model, config.loss, config.optimizer, config.schedule, config.source, *config.augment)
    named = [component.name for component in components if ":" in component.name and not component.implied]
    return list(dict.fromkeys(named))


def refuse_users_code(config: Config, place: str) -> None:
    """Refuse a config that came with a run, not from the user's hand, if it names code outside softmaxce.

    Args:
        config: what the run was trained with.
        place: the checkpoint or run folder that it lay in.
    Raises: RunError, with the way to trust it.
    """
    if named := users_code(config):
        raise RunError(
            f"{place}: its config names code of the user's, {', '.join(named)}, which would be run; "
            "if you trust the folder it came from and that code, add --trust-code"
        )


# The keys of a file, in the order in which a person reads them.
KEYS = (
    *("seed", "device", "precision", "deterministic", "compile", "cuda_graph", "keep_memory", "epochs"),
    *("data", "model", "loss", "optimizer", "schedule"),
    *("clip_grad_norm", "grad_accum_steps", "mixup_alpha", "cutmix_alpha", "model_ema_decay", "model_ema_steps"),
    *("tta", "early_stopping", "best_metric", "checkpoint_every", "on_nonfinite", "max_nonfinite"),
)
DEFAULT_COMPONENTS = {"loss": "softmax_cross_entropy", "schedule": "constant"}


def signature_of_section(section: type, names: Sequence[str] | None = None) -> Signature:
    """A section's dataclass in the form in which components are checked."""
    hints = get_type_hints(section, include_extras=True)
    arguments = []
    for entry in fields(section):
        if names is None or entry.name in names:
            default = entry.default if entry.default is not MISSING else REQUIRED
            if entry.default_factory is not MISSING:
                default = entry.default_factory()
            type_ = Any if hints[entry.name] in (Component, Data, EarlyStopping | None) else hints[entry.name]
            if entry.name in DEFAULT_COMPONENTS:
                default = DEFAULT_COMPONENTS[entry.name]
            arguments.append(Argument(entry.name, type_, default))
    return Signature(tuple(arguments), section.__doc__ or "")


def default_root() -> Path:
    """Where data sets are looked for: $SOFTMAXCE_DATA, else a folder in the user's cache."""
    if named := os.environ.get("SOFTMAXCE_DATA"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("softmaxce"))
