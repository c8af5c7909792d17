"""Config -> Run: the only file in which everything meets."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import yamlfile
from .config.components import build
from .config.reader import NEEDS_VALIDATION, Config, as_recorded, check, refuse_users_code
from .data.batches import IMAGENET_MEAN, IMAGENET_STD, STATISTICS_FROM, Batches, Preprocessing, mean_and_std, mixing
from .data.fingerprint import fingerprint
from .data.splits import InMemory, OnDisk, Side, Source, Split, split_by_name, stratified
from .errors import ConfigError, DataError, Problem, in_one_line, ran_out_of_memory, within_memory
from .inference.tta import with_views
from .losses.interface import Loss, make_loss, refuse_unfit
from .optim import unwrapped
from .runs.checkpoint import Checkpoint, load_weights
from .runs.validation import check_weights
from .runtime.device import (
    choose_device,
    choose_precision,
    keep_freed_memory,
    seed_everything,
    set_deterministic,
    share_processors,
)
from .training.ema import MovingAverage
from .training.loop import Run, steps_per_epoch, tell_no_graph

FEWER_IMAGES = "a folder's images need less with data.size, and can stay on the disk: data.in_memory: false"


def build_run(config: Config) -> Run:
    """Build everything that a config names.

    Raises:
        ConfigError: if a name cannot be imported, an argument is refused, or the parts do not fit together.
        DataError: if images are missing or cannot be used.
    """
    device = choose_device(config.device)
    share_processors()
    set_deterministic(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic  # all batches of an epoch but its last have one shape
    seed_everything(config.seed)
    with within_memory("reading the data set", FEWER_IMAGES):
        data_set = load_source(config)
        source = hold_out(data_set, config)
        whole = None if source.train is data_set.train else fingerprint(data_set.train)
        del data_set
        preprocessing = preprocessing_for(config, source.train)
    class_counts = torch.bincount(source.train.labels, minlength=len(source.classes)).tolist()
    model = build_model(config, preprocessing, len(source.classes), device)
    loss = build_loss(config, class_counts, device)
    refuse_unfit(loss, config.loss, len(source.classes), device, bool(config.mixup_alpha or config.cutmix_alpha))

    def batches(split: Split) -> Batches:
        return Batches(split, preprocessing, batch_size=config.data.eval_batch_size, device=device)

    train = Batches(
        source.train,
        preprocessing,
        batch_size=config.data.batch_size,
        device=device,
        augment=[build(component, {}) for component in config.augment],
        shuffle_seed=config.seed,
    )
    prepare_model(model, train)
    steps = steps_per_epoch(len(train), config.grad_accum_steps)
    schedule = build(config.schedule, {"steps": steps * config.epochs, "steps_per_epoch": steps})
    average = None
    if config.model_ema_decay is not None:
        average = MovingAverage(model, config.model_ema_decay)
    optimizer = build_optimizer(config, model)
    if config.compile:
        compile_model(model, device)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()  # now that the data set is read: what that took for a while goes back
    return Run(
        config=config,
        classes=source.classes,
        class_counts=class_counts,
        preprocessing=preprocessing,
        device=device,
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        train=train,
        validation=batches(source.validation) if source.validation is not None else None,
        test=batches(source.test) if source.test is not None else None,
        mix=mixing(config.mixup_alpha, config.cutmix_alpha, len(source.classes)),
        average=average,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        graph_wanted=wants_graph(config, train.num_images, device),
        all_train_images=whole,
    )


# -- data -------------------------------------------------------------------------------------------------------------


def load_source(config: Config) -> Source:
    """The data set that a config names, checked. Raises: DataError, ConfigError."""
    supplied = {"root": str(config.root), "download": config.data.download, "seed": config.seed}
    source = build(config.source, supplied)
    if not isinstance(source, Source):
        message = f"{config.source.name} must return a softmaxce.data.splits.Source, got {type(source).__name__}"
        raise ConfigError([Problem(config.source.place, message)])
    if len(source.classes) < 2:
        raise DataError(
            f"{config.source.name}: there is one class only, '{', '.join(source.classes)}', and nothing to tell it "
            "from; in a folder of images, each class has a folder of its own"
        )
    for name in ("train", "validation", "test"):
        split = getattr(source, name)
        if split is not None:
            _check_split(config.source.name, name, split, len(source.classes))
    return source


def _check_split(source: str, name: str, split: Split, num_classes: int) -> None:
    if not isinstance(split, InMemory | OnDisk):
        kinds = "softmaxce.data.splits.InMemory or OnDisk"
        raise DataError(f"{source}: the {name} split must be a {kinds}, got {type(split).__name__}")
    if split.labels.ndim != 1 or split.labels.dtype != torch.int64:
        got = f"{str(split.labels.dtype).removeprefix('torch.')} {list(split.labels.shape)}"
        raise DataError(f"{source}: the {name} split's labels must be int64 class ids [N], got {got}")
    if isinstance(split, InMemory) and (split.images.ndim != 4 or split.images.dtype != torch.uint8):
        got = f"{str(split.images.dtype).removeprefix('torch.')} {list(split.images.shape)}"
        raise DataError(f"{source}: the {name} split's images must be uint8 [N, C, H, W], got {got}")
    images = len(split.images) if isinstance(split, InMemory) else len(split.files)
    if images != len(split.labels):
        raise DataError(f"{source}: the {name} split has {images} images and {len(split.labels)} labels")
    if split.names is not None and len(split.names) != images:
        raise DataError(f"{source}: the {name} split has {images} images and {len(split.names)} names")
    if len(split) == 0:
        raise DataError(f"{source}: the {name} split has no images")
    low, high = split.labels.min().item(), split.labels.max().item()
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"{source}: the {name} split has the label {wrong}; with {num_classes} classes labels go from 0 to "
            f"{num_classes - 1}"
        )


def hold_out(source: Source, config: Config) -> Source:
    """The source with the config's validation split held out of its training images, and these cut to train_limit.

    Both are chosen by the seed and the images' names where they have some, else by the seed and their order. Neither
    leaves a class without a training image. Raises: ConfigError.
    """
    generator = torch.Generator().manual_seed(config.seed)
    by_shuffle = config.source.arguments.get("split_by") == "shuffle"  # as earlier versions, to the last image
    train, validation = source.train, source.validation
    if (asked := config.data.validation) is not None:
        size = asked if isinstance(asked, int) or train.names is not None else max(1, round(asked * len(train)))
        most = len(train) - len(train.labels.unique())
        if not by_shuffle and isinstance(size, int) and most < size < len(train):
            message = f"{size} of {len(train)} images would leave a class without training images; {most} is the most"
            raise ConfigError([Problem("data.validation", message)])
        keep: tuple[Side, ...] = ("rest", "chosen") if train.names is not None else ("rest",)
        rest, chosen = _cut(train, size, generator, config.seed, "data.validation", () if by_shuffle else keep)
        train, validation = train.take(rest), train.take(chosen)
    limit = config.data.train_limit
    if limit is not None and limit < len(train):
        _, chosen = _cut(train, limit, generator, config.seed, "data.train_limit", () if by_shuffle else ("chosen",))
        train = train.take(chosen)
    if config.early_stopping is not None and validation is None:
        raise ConfigError([Problem("", NEEDS_VALIDATION)])
    return replace(source, train=train, validation=validation)


def _cut(
    split: Split, size: float, generator: torch.Generator, seed: int, key: str, keep: tuple[Side, ...]
) -> tuple[Tensor, Tensor]:
    """The indices of a split's two parts; `size` is a count, or a fraction where the images have names."""
    try:
        if split.names is not None:
            return split_by_name(split.names, split.labels, size, f"{key} {seed}", keep)
        return stratified(split.labels, int(size), generator, keep)
    except ValueError as error:
        raise ConfigError([Problem(key, str(error))]) from None


def preprocessing_for(config: Config, train: Split) -> Preprocessing:
    """What images go through before the model: the config's normalisation, or the training images' own."""
    channels = train.shape[0]
    asked = config.data.normalize
    if isinstance(asked, dict):
        mean, std = tuple(map(float, asked["mean"])), tuple(map(float, asked["std"]))
    elif asked == "imagenet":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    elif asked == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = mean_and_std(train)
    if len(mean) != channels or len(std) != channels:
        message = f"needs one mean and one std for each of {channels} channels, got {len(mean)} and {len(std)}"
        raise ConfigError([Problem("data.normalize", message)])
    return Preprocessing(train.shape, mean, std)


# -- model, loss, optimizer -------------------------------------------------------------------------------------------


@within_memory("building the model", "take a smaller model or smaller images, or a machine with more memory")
def build_model(config: Config, preprocessing: Preprocessing, num_classes: int, device: torch.device) -> nn.Module:
    """The model a config names, on the device, its convolutions' weights in channels-last order (faster everywhere)."""
    channels, height, width = preprocessing.shape
    supplied = {"in_channels": channels, "image_size": (height, width), "num_classes": num_classes}
    model = build(config.model, supplied)
    if not isinstance(model, nn.Module):
        message = f"{config.model.name} must be a torch.nn.Module or return one, got {type(model).__name__}"
        raise ConfigError([Problem(config.model.place, message)])
    with torch.inference_mode(False), torch.no_grad():  # a first pass shapes lazy layers, before there is an optimizer
        images = torch.zeros(2, *preprocessing.shape)
        model.eval()
        try:
            logits = model(images)
        except Exception as error:  # the user's model; told with its line
            if ran_out_of_memory(error):
                raise
            message = f"{config.model.name} cannot take images {list(images.shape)}: {in_one_line(error)}"
            raise ConfigError([Problem(config.model.place, message)]) from error
        model.train()
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        message = (
            f"{config.model.name} must turn images [B, C, H, W] into logits [B, {num_classes}]; for B = 2 it gave {got}"
        )
        raise ConfigError([Problem(config.model.place, message)])
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Have torch.compile make one program of the model when it is first called; the module stays what it is.

    Raises: ConfigError if nothing can be compiled here.
    """
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
        model.compile()
    except Exception as error:  # torch.compile, on anybody's machine; told
        if ran_out_of_memory(error):
            raise
        message = f"torch.compile does not work here: {in_one_line(error)}"
        raise ConfigError([Problem("compile", message)]) from error


def prepare_model(model: nn.Module, train: Batches) -> None:
    """Show training images to a model that has a method `prepare(images)`, once, before training.

    It is given up to 5,000 of them, spread over the split: [N, C, H, W] float, normalised, not augmented. What it makes
    of them belongs in its state dict, so that a checkpoint brings it back without the images.
    """
    prepare = getattr(model, "prepare", None)
    if callable(prepare):
        prepare(train.sample(STATISTICS_FROM))


def build_loss(config: Config, class_counts: list[int], device: torch.device) -> Loss:
    """The loss a config names, on the device."""
    return make_loss(config.loss, class_counts, device)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a config names, over the parameters that train; fused where it can be and the config is silent."""
    component = config.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError([Problem("model", "has no parameters to train")])
    arguments = dict(component.arguments)
    # With a loss scaler, torch's fused steps on the CPU apply gradients that are not finite (seen in 2.15).
    device = parameters[0].device.type
    can_fuse = device == "cuda" or (device == "cpu" and config.precision != "fp16")
    can_fuse = can_fuse and not arguments.get("differentiable")
    if "fused" in arguments and arguments["fused"] is arguments.get("foreach") is None and can_fuse:
        arguments["fused"] = True
    with unwrapped.construction():
        optimizer = build(replace(component, arguments=arguments), {"params": parameters, "model": model})
    if not isinstance(optimizer, torch.optim.Optimizer):
        message = f"{component.name} must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        raise ConfigError([Problem(component.place, message)])
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # what the schedule's factor multiplies
    return optimizer


def wants_graph(config: Config, images: int, device: torch.device) -> bool:
    """Whether training is to try a CUDA graph; on CUDA one line says why not.

    Args:
        config: what was asked for.
        images: of an epoch.
        device: where it is trained.
    Raises: ConfigError if the config insists on a graph that is out of the question.
    """
    if config.cuda_graph is False:
        return False
    why = None
    if device.type != "cuda":
        why = f"it needs a CUDA device, and this is {device}"
    elif config.compile:
        why = "compile: true makes programs of its own"
    elif config.on_nonfinite == "skip":
        why = "on_nonfinite: skip waits for every loss"
    elif images < config.data.batch_size:
        why = f"no batch is full: there are {images} training images, and data.batch_size is {config.data.batch_size}"
    if why is None:
        return True
    if config.cuda_graph is True:
        raise ConfigError([Problem("cuda_graph", why)])
    if device.type == "cuda":
        tell_no_graph(why)
    return False


# -- evaluation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A trained model, asked as the config's `tta` says, and what it takes to evaluate it; `file` is its checkpoint."""

    file: Path
    config: Config
    classes: tuple[str, ...]
    class_counts: list[int]
    preprocessing: Preprocessing
    device: torch.device
    model: nn.Module

    @cached_property
    def loss(self) -> Loss:
        """What it was trained with; built when it is asked for, which predictions never do."""
        return build_loss(self.config, self.class_counts, self.device)

    @property
    def precision(self) -> str:
        """What the forward pass computes in: float32, bf16 or fp16."""
        return choose_precision(self.config.precision, self.device)

    def batches(self, split: Split) -> Batches:
        """A split's batches, preprocessed as this model's training images were."""
        if split.shape != self.preprocessing.shape:
            got, wanted = list(split.shape), list(self.preprocessing.shape)
            raise DataError(f"the images are {got} (channels, height, width); this model takes {wanted}")
        return Batches(split, self.preprocessing, batch_size=self.config.data.eval_batch_size, device=self.device)


def config_of(checkpoint: Checkpoint, changes: dict[str, Any] | None = None, *, trust_code: bool = False) -> Config:
    """The config a checkpoint was trained with, with some top-level or data keys changed.

    Raises: ConfigError if it is none; RunError if it names `module:Name` and that code is not to be trusted.
    """
    plain = as_recorded(checkpoint.header["config"])
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        if section:
            plain[section] = {**(plain[section] if isinstance(plain.get(section), dict) else {}), name: value}
        else:
            plain[key] = value
    document = yamlfile.parse(yamlfile.dump(plain), str(checkpoint.file))
    config = check(document, recipe=checkpoint.header["recipe"])
    if not trust_code:
        refuse_users_code(config, str(checkpoint.file))
    return config


def build_evaluation(checkpoint: Checkpoint, config: Config) -> Evaluation:
    """The model of a checkpoint, with its weights, ready to be evaluated.

    Raises: RunError if the weights do not fit; ConfigError as build_run.
    """
    header = checkpoint.header
    device = choose_device(config.device)
    share_processors()
    set_deterministic(config.deterministic)
    stored = header["preprocessing"]
    channels, height, width = stored["shape"]
    mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
    preprocessing = Preprocessing((channels, height, width), mean, std)
    if ":" not in config.model.name:  # shapes are compared before memory is taken for whatever the file asks for
        supplied = {"in_channels": channels, "image_size": (height, width), "num_classes": len(header["classes"])}
        with torch.device("meta"):
            shapes = build(config.model, supplied).state_dict()
        check_weights(shapes, checkpoint.weights, checkpoint.file)
    model = build_model(config, preprocessing, len(header["classes"]), device)
    load_weights(model, checkpoint)
    model = with_views(model.eval(), config.tta)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()
    classes, counts = tuple(header["classes"]), header["class_counts"]
    return Evaluation(checkpoint.file, config, classes, counts, preprocessing, device, model)


def source_of(evaluation: Evaluation) -> Source:
    """The splits that the run used. Raises: DataError if the data has other classes than the model."""
    with within_memory("reading the data set", FEWER_IMAGES):
        source = hold_out(load_source(evaluation.config), evaluation.config)
    if source.classes != evaluation.classes:
        raise DataError(
            f"{evaluation.file}: the data at {evaluation.config.root} has other classes than this model was trained on"
        )
    return source


def split_of(evaluation: Evaluation, name: str, source: Source | None = None) -> Split:
    """The `train`, `validation` or `test` split that the run used. Raises: DataError if it has none.

    Args:
        evaluation: the run's.
        name: of the split.
        source: what source_of gave, if it has been called.
    """
    source = source or source_of(evaluation)
    split: Split | None = getattr(source, name)
    if split is None:
        has = [other for other in ("train", "validation", "test") if getattr(source, other) is not None]
        raise DataError(f"this run has no {name} split; it has {' and '.join(has)}")
    return split


def folder_split(evaluation: Evaluation, folder: Path) -> Split:
    """A folder's images, one sub-folder a class, as this model takes them. Raises: DataError."""
    from .data.folder import read_folder

    return read_folder(str(folder), evaluation.classes, evaluation.preprocessing.shape)
