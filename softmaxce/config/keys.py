"""The keys of a config and their defaults."""

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, doc
from pydantic import Field

from ..argument_types import Fraction, Metric, NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Seed
from ..files import expanded
from .components import Component
from .signatures import REQUIRED, Argument, Signature

CheckpointInterval = Annotated[
    str,
    Field(pattern=r"^0*[1-9][0-9]* steps?$|^(0*[1-9][0-9]*|[0-9]+\.[0-9]*[1-9]0*) minutes?$"),
    doc("'N steps' or 'N minutes'"),
]
NEEDS_VALIDATION = "early_stopping needs a validation split; set data.validation, to 0.1 for example"


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the best validation metric has not improved for some epochs.

    Attributes:
        patience: epochs without improvement after which to stop.
        min_delta: the smallest change that counts as an improvement, in the unit of `best_metric`.
    """

    patience: PositiveInt
    min_delta: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class FineTuning:
    """How a pretrained model is trained further. Its last layer, the head, is treated differently from the rest.

    Attributes:
        freeze: backbone trains the head alone: the other layers keep their weights and are in evaluation mode, with the
            statistics of their batch normalization and without dropout.
        unfreeze_epoch: the first epoch, counted from 1, in which all layers are trained again; null never.
        head_lr: the learning rate of the head; null is that of the optimizer. The schedule applies to both.
        layer_decay: each block has the learning rate of the next one times this; the head has the optimizer's. 0.65 to
            0.9 is usual.
    """

    freeze: Literal["none", "backbone"] = "none"
    unfreeze_epoch: Annotated[int, Ge(2)] | None = None
    head_lr: PositiveFloat | None = None
    layer_decay: Annotated[float, Gt(0), Le(1)] | None = None


@dataclass(frozen=True)
class WeightAveraging:
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at the ends of the last epochs.

    Attributes:
        start_epoch: the first epoch, counted from 1, whose last weights are in the mean. Before it the weights
            themselves are evaluated.
        every: epochs from one to the next.
        lr_factor: the factor on the learning rate from start_epoch on, in place of the schedule's; null leaves the
            schedule.
    """

    start_epoch: PositiveInt
    every: PositiveInt = 1
    lr_factor: PositiveFloat | None = None


@dataclass(frozen=True)
class ProgressiveResizing:
    """Train on smaller images first, which takes less time. The rule and its defaults are those of MosaicML's Composer.

    Attributes:
        initial_scale: the height and width of the first epochs' images, as a fraction of data.size.
        delay_fraction: the fraction of the epochs in which images keep that size; then it grows linearly.
        finetune_fraction: the fraction of the epochs, the last ones, in which images have data.size; the last epoch is
            among them in any case.
        size_increment: sizes below data.size are multiples of this, in pixels.
    """

    initial_scale: Annotated[float, Gt(0), Lt(1)] = 0.5
    delay_fraction: Probability = 0.5
    finetune_fraction: Probability = 0.2
    size_increment: PositiveInt = 4


@dataclass(frozen=True)
class Distillation:
    """Train towards the probabilities of another model, the teacher (Hinton et al. 2015).

    Attributes:
        teacher: its run folder or checkpoint; with the same classes, image shape and normalization.
        temperature: T, which divides the logits of both before softmax.
        weight: w; the loss is (1 - w) times the config's, and w T^2 times the cross-entropy with the teacher's
            probabilities.
    """

    teacher: str
    temperature: PositiveFloat = 4.0
    weight: Probability = 0.9


@dataclass(frozen=True)
class Normalize:
    """Fixed normalization: (pixel in [0, 1] - mean) / std, one number per channel."""

    mean: list[float]
    std: list[PositiveFloat]


@dataclass(frozen=True)
class Sampler:
    """A class of m training images has a share of each epoch in proportion to m^(1 - power); 1 is balanced."""

    power: Probability


@dataclass(frozen=True)
class Data:
    """The `data` section. Its other keys are passed to the data set as arguments.

    Attributes:
        name: the data set, a registered name or module:Name.
        root: the folder with the data; null means $SOFTMAXCE_DATA, else a folder in the user's cache.
        download: download missing files.
        batch_size: images per training batch. auto is the largest that a GPU's memory holds with a tenth to spare, up
            to 512 and a 32nd of the training images; without CUDA, up to 32. It is chosen once, when the run starts.
        eval_batch_size: images per evaluation batch; it changes metrics by rounding at most.
        augment: augmentations of the training images, applied in this order.
        normalize: model (mean and standard deviation that timm's or torchvision's model was made for), auto (those of
            the training images, or as model where weights are timm's or from a file), imagenet, none, or {mean: [..],
            std: [..]}.
        validation: the part of the training images to hold out, as a count (100) or a fraction (0.1); stratified,
            chosen by the seed.
        train_limit: use only this many training images; stratified, chosen by the seed.
        folds: divide the training images into so many folds for a cross-validation: each class in proportion, the
            images of a group in one fold, the same for every seed. Each run has one of them as its test split, and
            test_fraction is 0. `softmaxce train --folds N` trains all.
        fold: which of the folds is the test split, counted from 1.
        sampler: which training images an epoch consists of, in as many batches. none, each once; balanced, as many of
            each class; {power: 0.5}, between them: a class of m images in proportion to m^(1 - power). Images of rare
            classes come several times, each with other random augmentations, and some of frequent ones are left out.
    """

    name: str
    root: str | None = None
    download: bool = False
    batch_size: PositiveInt | Literal["auto"] = 128
    eval_batch_size: PositiveInt = 256
    augment: list[Any] = field(default_factory=list)
    normalize: Literal["auto", "model", "imagenet", "none"] | dict[str, Any] = "auto"
    validation: PositiveInt | Fraction | None = None
    train_limit: PositiveInt | None = None
    folds: Annotated[int, Ge(2), Le(1000)] | None = None
    fold: PositiveInt | None = None
    sampler: Literal["none", "balanced"] | dict[str, Any] = "none"

    @property
    def images_per_batch(self) -> int:
        """The batch size, once it is a number."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    @property
    def sampling_power(self) -> float:
        """0 where every image is drawn once, 1 where classes are balanced."""
        return float(self.sampler["power"]) if isinstance(self.sampler, dict) else float(self.sampler == "balanced")


@dataclass(frozen=True)
class Config:
    """A complete config. Every field is a key of the file, except weights_from (a key of `model`), source, augment,
    recipe, recorded, elsewhere, options (dotted key -> the option that set it, for messages) and resolved (dotted key
    -> what `auto` became, and why); the defaults are the file's.

    Attributes:
        seed: of the weights, the shuffling, the augmentation and the validation split.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: float32, or bf16 or fp16 (autocast; the weights stay float32); auto is bf16 where the device has
            instructions for it, else float32.
        compile: compile the model with torch.compile; this takes seconds to minutes at first, and on the CPU the
            compiled model is slower.
        cuda_graph: on CUDA, replay forward and backward pass of full batches as one CUDA graph. auto does so where the
            run allows it and reports why not elsewhere; true stops with an error instead; false never does.
        keep_memory: keep freed memory in the process for the next batch (CPU, glibc); it changes no metric. Where
            images are read from files in each epoch, only pieces of up to 1 MiB. Ignored under ulimit -v or strict
            overcommit, where the kept memory would count against the limit.
        deterministic: refuse operations whose result can differ in the last bit from run to run; slower on a GPU.
        epochs: the number of passes over the training images.
        data: the data set and how it is batched.
        model: the network. `weights_from: RUN` beside its arguments starts with the weights of another run.
        loss: the objective that is minimized.
        optimizer: one of torch's, with torch's argument names, or muon.
        schedule: the learning-rate schedule, applied at every step.
        fine_tuning: {freeze, unfreeze_epoch, head_lr, layer_decay}, for a model with pretrained weights.
        no_decay: auto applies no weight decay to biases and normalization layers; none decays all parameters alike.
        clip_grad_norm: clip the gradient to this norm.
        grad_accum_steps: batches per optimizer step; the gradient is that of one large batch: each batch is
            weighted by what the loss's mean divides by.
        mixup_alpha: mixup's Beta parameter (Zhang et al. 2018); 0 is off.
        cutmix_alpha: CutMix's Beta parameter (Yun et al. 2019); 0 is off. With both, each batch draws one of the two.
        model_ema_decay: evaluate an exponential moving average of the weights with this decay.
        model_ema_steps: steps between two updates of that average.
        swa: {start_epoch, every, lr_factor}, stochastic weight averaging: evaluate the mean of the weights at the ends
            of the epochs from start_epoch on. The statistics of batch normalization are computed anew, in one more pass
            over the training images after each of these epochs.
        distillation: {teacher, temperature, weight}, to train towards the probabilities of another run's model too.
        progressive_resizing: {initial_scale, delay_fraction, finetune_fraction, size_increment}, to train on smaller
            images first: each batch is resized on the device, after augmentation and mixing. Evaluation is always at
            full size. The model must accept images of any size.
        tta: test-time augmentation in the final metrics, eval and predict, not in the table of epochs. none; flip, an
            image and its mirror image; crops, an image and two shifted by a pixel; flip_crops, both. The logits are
            averaged.
        sync_batchnorm: where several processes train together on CUDA, normalize by the whole batch's statistics, not
            by those of each process's share.
        early_stopping: {patience, min_delta}; it needs a validation split.
        best_metric: the metric on the validation split that decides which epoch is the best, and early stopping. The
            smallest loss, nll, brier or ece is the best, and the largest of any other.
        metrics: metrics to compute after each epoch beside loss and accuracy, such as [macro_f1]; they are shown with
            the epochs and the final result. best_metric, and the metric of reduce_on_plateau, are among them anyway.
        checkpoint_every: save a checkpoint within an epoch too, every '500 steps' or '10 minutes'; it changes no
            metric.
        on_nonfinite: what to do if a loss or gradient is not finite. stop; skip that step; or restore the weights of
            the last checkpoint and continue after that batch.
        max_nonfinite: how many such steps a run may skip or restore from before it stops.
    """

    epochs: PositiveInt
    data: Data
    model: Component
    optimizer: Component
    loss: Component
    schedule: Component
    source: Component
    augment: tuple[Component, ...] = ()
    weights_from: str | None = None
    seed: Seed = 0
    device: str = "auto"
    precision: Literal["float32", "bf16", "fp16", "auto"] = "float32"
    deterministic: bool = False
    compile: bool = False
    cuda_graph: Literal["auto"] | bool = "auto"
    keep_memory: bool = True
    fine_tuning: FineTuning | None = None
    no_decay: Literal["none", "auto"] = "none"
    clip_grad_norm: PositiveFloat | None = None
    grad_accum_steps: PositiveInt = 1
    mixup_alpha: NonNegativeFloat = 0.0
    cutmix_alpha: NonNegativeFloat = 0.0
    model_ema_decay: Fraction | None = None
    model_ema_steps: PositiveInt = 1
    swa: WeightAveraging | None = None
    distillation: Distillation | None = None
    progressive_resizing: ProgressiveResizing | None = None
    tta: Literal["none", "flip", "crops", "flip_crops"] = "none"
    sync_batchnorm: bool = False
    early_stopping: EarlyStopping | None = None
    best_metric: Metric = "accuracy"
    metrics: list[Metric] = field(default_factory=list)
    checkpoint_every: CheckpointInterval | None = None
    on_nonfinite: Literal["stop", "skip", "restore"] = "stop"
    max_nonfinite: PositiveInt = 10
    recipe: str = "run"
    recorded: bool = field(
        default=False, compare=False
    )  # read from a run folder or a checkpoint, which may be anyone's
    options: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    elsewhere: tuple[Path, ...] = field(default=(), compare=False)  # where the data is looked for after `data.root`
    resolved: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders in which the data is looked for, in this order."""
        first = expanded(self.data.root) if self.data.root else default_root()
        return tuple(dict.fromkeys((first, *self.elsewhere)))

    @property
    def root(self) -> Path:
        """The folder with the data: the first of `roots` that holds it, else the first."""
        roots = self.roots
        if len(roots) == 1:
            return roots[0]
        return next((root for root in roots if self.is_in(root)), roots[0])

    def is_in(self, root: Path) -> bool:
        """Whether a folder holds the data set, by the existence of its files; of others than ours, of the folder."""
        is_list = self.source.name == "image_list"
        name = expanded(self.source.arguments["file"]) if is_list else FILES.get(self.source.name, "")
        return os.path.exists(root / name)  # noqa: PTH110 - False for a name too long

    @property
    def epoch_metrics(self) -> tuple[str, ...]:
        """The metrics beside loss and accuracy that are computed after each epoch."""
        observed = self.schedule.arguments.get("metric") if self.schedule.name == "reduce_on_plateau" else "loss"
        names = dict.fromkeys([*self.metrics, self.best_metric, str(observed)])
        return tuple(name for name in names if name not in ("loss", "accuracy"))

    def to_dict(self) -> dict[str, Any]:
        """As a file writes it, with every default written out."""
        result: dict[str, Any] = {}
        for name in KEYS:
            value = getattr(self, name)
            if isinstance(value, Component):
                value = value.to_dict()
                if name == "model" and self.weights_from is not None:
                    value["weights_from"] = self.weights_from
            elif isinstance(value, tuple(SECTIONS.values())):
                value = vars(value)
            elif isinstance(value, Data):
                value = {**self.source.to_dict(), **{k: v for k, v in vars(value).items() if k != "name"}}
                value["augment"] = [component.to_dict() for component in self.augment]
            result[name] = value
        return result


# The keys of a file, in the order in which they are written.
KEYS = (
    *("seed", "device", "precision", "deterministic", "compile", "cuda_graph", "keep_memory", "epochs"),
    *("data", "model", "loss", "optimizer", "schedule", "fine_tuning", "no_decay"),
    *("clip_grad_norm", "grad_accum_steps", "mixup_alpha", "cutmix_alpha", "model_ema_decay", "model_ema_steps"),
    *(
        "swa",
        "distillation",
        "progressive_resizing",
        "tta",
        "sync_batchnorm",
        "early_stopping",
        "best_metric",
        "metrics",
        "checkpoint_every",
        "on_nonfinite",
    ),
    "max_nonfinite",
)
# The keys that a config may leave out and whose values are mappings.
SECTIONS: dict[str, type] = {
    "early_stopping": EarlyStopping,
    "fine_tuning": FineTuning,
    "swa": WeightAveraging,
    "distillation": Distillation,
    "progressive_resizing": ProgressiveResizing,
}
# What a data set has in its root.
FILES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "train_32x32.mat",
}
DEFAULT_COMPONENTS = {"loss": "softmax_cross_entropy", "schedule": "constant"}


def signature_of_section(section: type, names: Sequence[str] | None = None) -> Signature:
    """The signature of a section's dataclass, in the form in which the arguments of components are checked."""
    hints = get_type_hints(section, include_extras=True)
    arguments = []
    for entry in fields(section):
        if names is None or entry.name in names:
            default = entry.default if entry.default is not MISSING else REQUIRED
            if entry.default_factory is not MISSING:
                default = entry.default_factory()
            is_mapping = hints[entry.name] in (Component, Data) or entry.name in SECTIONS
            type_ = Any if is_mapping else hints[entry.name]
            if entry.name in DEFAULT_COMPONENTS:
                default = DEFAULT_COMPONENTS[entry.name]
            arguments.append(Argument(entry.name, type_, default))
    return Signature(tuple(arguments), section.__doc__ or "")


def default_root() -> Path:
    """Where data sets are looked for: $SOFTMAXCE_DATA, else a folder in the user's cache."""
    if folder := os.environ.get("SOFTMAXCE_DATA"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("softmaxce"))
