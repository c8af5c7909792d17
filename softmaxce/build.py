"""Builds a Run from a Config."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import streams
from .config.components import Component, build, takes
from .config.keys import Config
from .config.locations import names_options
from .config.registry import REGISTRIES
from .data.augmentation import build_augmentations
from .data.batches import Batches
from .data.expected_images import expected_normalization, with_expected_size
from .data.fingerprint import fingerprint
from .data.held_out import hold_out
from .data.mixup import mixing
from .data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, STATISTICS_FROM, Preprocessing, mean_and_std, resizing_of
from .data.sampling import ClassSampler
from .data.split_checks import check_split
from .data.splits import Dataset, Split
from .errors import ConfigError, DataError, Problem, in_one_line, ran_out_of_memory, within_memory
from .losses.interface import Loss
from .optim.schedules import Schedule
from .runtime.allocator import keep_freed_memory
from .runtime.device import choose_device, share_processors
from .runtime.process_group import SINGLE, ProcessGroup
from .runtime.random_state import seed_everything, set_deterministic
from .training import trials
from .training.automatic_batch_size import with_batch_size
from .training.compiled import compile_model
from .training.cuda_graph import should_use_graph
from .training.ema import ExponentialMovingAverage
from .training.freezing import freeze_for_good
from .training.optimizer import add_loss_parameters, build_optimizer
from .training.run import Run
from .training.step import steps_per_epoch

FEWER_IMAGES = "a folder's images need less with data.size, and can stay on the disk: data.in_memory: false"


class SourceReader:
    """Reads the data sets that configs name. Keeps the one that was read last, for configs that share it."""

    def __init__(self) -> None:
        self._key: Any = None
        self._source: Dataset | None = None

    def __call__(self, config: Config) -> Dataset:
        """The data set of a config. Raises: DataError, ConfigError."""
        seed = config.seed if takes(config.source, "seed") else None
        key = (config.source, config.root, seed)
        if self._source is None or self._key != key:
            self._key, self._source = None, None  # frees the memory of the other first
            self._source = load_source(config)
            self._key = key
        return self._source


@names_options
def build_run(
    config: Config, read_source: Callable[[Config], Dataset] | None = None, group: ProcessGroup = SINGLE
) -> Run:
    """Build everything that a config names.

    Args:
        config: what to build.
        read_source: reads its data set; load_source if left out.
        group: the processes that will train it together, each of which builds it.
    Raises:
        ConfigError: if a name cannot be imported, an argument is refused, or the parts do not fit together.
        DataError: if images are missing or cannot be used.
    """
    with group.together(interruptible=True):
        return _build_run(with_expected_size(config), read_source, group)


def _build_run(
    config: Config, read_source: Callable[[Config], Dataset] | None, group: ProcessGroup, *, trial: bool = False
) -> Run:
    """As build_run; a trial's weights are not those of a file."""
    device = choose_device(config.device, group)
    if config.sync_batchnorm and device.type != "cuda":
        message = f"true needs CUDA, and this is {device}; without it each process normalizes by its own images"
        raise ConfigError([Problem("sync_batchnorm", message)])
    share_processors()
    set_deterministic(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic  # all batches but the last have the same shape
    seed_everything(config.seed)
    with within_memory("reading the data set", FEWER_IMAGES):
        data_set = (read_source or load_source)(config)
        source = hold_out(data_set, config)
        whole = None if source.train is data_set.train else fingerprint(data_set.train)
        preprocessing = preprocessing_for(config, source.train)
    config = with_batch_size(config, len(source.train), device, group, _trial_builder(data_set))
    del data_set
    class_counts = torch.bincount(source.train.labels, minlength=len(source.classes)).tolist()
    trials.refuse_absent_classes(config, source.classes, class_counts)
    held_out = source.validation or source.test
    trials.refuse_undefined_metrics(config, len(source.classes), None if held_out is None else held_out.labels)
    weights_follow = config.weights_from is not None or trial
    model = build_model(config, preprocessing, len(source.classes), device, weights_follow=weights_follow)
    loss = build_loss(config, class_counts, device)
    trials.refuse_unfit(loss, config.loss, len(source.classes), device, bool(config.mixup_alpha or config.cutmix_alpha))

    shares_mixed = not group.is_single and bool(config.mixup_alpha or config.cutmix_alpha)

    def batches(split: Split) -> Batches:
        size = config.data.eval_batch_size
        return Batches(split, preprocessing, batch_size=size, device=device, compiled=True)

    with within_memory("preparing the training images", FEWER_IMAGES):
        train = training_batches(config, source.train, preprocessing, device, group=group, with_previous=shares_mixed)
    trials.try_augmentations(train)
    trials.refuse_single_images(model, config, train)
    trials.refuse_fixed_size(model, config, train, len(source.classes))
    prepare_model(model, train)
    schedule = build_schedule(config, len(train))
    if hasattr(schedule, "observe") and source.validation is None:
        message = f"{config.schedule.name} needs a validation split; set data.validation, to 0.1 for example"
        raise ConfigError([Problem(config.schedule.location, message)])
    average: AveragedModel | None = None
    if config.model_ema_decay is not None:
        average = ExponentialMovingAverage(model, config.model_ema_decay)
    elif config.swa is not None:
        average = AveragedModel(model)
    freeze_for_good(config, model)
    optimizer = build_optimizer(config, model)
    add_loss_parameters(optimizer, config, model, loss)
    if config.sync_batchnorm and not group.is_single:  # its parameters stay those of the optimizer
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.compile:
        compile_model(model, device)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()  # only now, so that memory used while reading the data set is returned
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
        mix=mixing(config.mixup_alpha, config.cutmix_alpha, len(source.classes), with_previous=shares_mixed),
        average=average,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        use_graph=should_use_graph(config, train.num_images, device, group.world_size),
        all_train_images=whole,
        group=group,
    )


# -- data -------------------------------------------------------------------------------------------------------------


@names_options
def load_source(config: Config) -> Dataset:
    """The data set that a config names, checked. Raises: DataError, ConfigError."""
    config = with_expected_size(config)
    supplied = {"root": str(config.root), "download": config.data.download, "seed": config.seed}
    try:
        source = build(config.source, supplied)
    except DataError as error:
        if any(config.is_in(root) for root in config.roots) or not takes(config.source, "root"):
            raise
        looked = ", ".join(dict.fromkeys(str(root.absolute()) for root in config.roots))
        message = f"{error}; looked in {looked}"
        if config.recorded:
            message += "; name its folder with --data (for eval together with --split), or to resume the run with "
            message += "--set data.root=FOLDER"
        raise DataError(message) from None
    if not isinstance(source, Dataset):
        message = f"{config.source.name} must return a softmaxce.data.splits.Dataset, got {type(source).__name__}"
        raise ConfigError([Problem(config.source.location, message)])
    if len(source.classes) < 2:
        raise DataError(
            f"{config.source.name}: there is only one class, '{', '.join(source.classes)}', and a classifier "
            "needs at least two; in a folder of images, each class has a folder of its own"
        )
    for name in ("train", "validation", "test"):
        split = getattr(source, name)
        if split is not None:
            check_split(config.source.name, name, split, len(source.classes))
    return source


def preprocessing_for(config: Config, train: Split) -> Preprocessing:
    """The preprocessing of images: their resizing; the config's normalization, or the training images' own."""
    channels = train.shape[0]
    normalize = config.data.normalize
    if isinstance(normalize, dict):
        mean, std = tuple(normalize["mean"]), tuple(normalize["std"])
    elif normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        known = (IMAGENET_MEAN, IMAGENET_STD) if normalize == "imagenet" else expected_normalization(config)
        if normalize == "auto" and channels not in (1, 3):
            known = None  # it is of color images
        mean, std = known or mean_and_std(train)
        if known is not None and channels == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) != channels or len(std) != channels:
        message = f"needs one mean and one std for each of {channels} channels, got {len(mean)} and {len(std)}"
        raise ConfigError([Problem("data.normalize", message)])
    return Preprocessing(train.shape, mean, std, resizing_of(train))


def training_batches(
    config: Config,
    train: Split,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    group: ProcessGroup = SINGLE,
    with_previous: bool = False,
) -> Batches:
    """The batches of the training images, in the config's order and augmented as it says; see Batches."""
    return Batches(
        train,
        preprocessing,
        batch_size=config.data.images_per_batch,
        device=device,
        augment=build_augmentations(config),
        shuffle_seed=config.seed,
        compiled=True,
        sampler=ClassSampler(power) if (power := config.data.sampling_power) else None,
        group=group,
        with_previous=with_previous,
    )


# -- the batch size ----------------------------------------------------------------------------------------------------


@names_options
def resolve_batch_size(config: Config, read_source: Callable[[Config], Dataset] | None = None) -> Config:
    """The config with a number for `data.batch_size: auto`, for several runs that have it in common.

    Args:
        config: of one of them.
        read_source: reads its data set; load_source if left out.
    Raises: as build_run.
    """
    device = choose_device(config.device)
    seed_everything(config.seed)
    config = with_expected_size(config)
    with within_memory("reading the data set", FEWER_IMAGES):
        data_set = (read_source or load_source)(config)
        images = len(hold_out(data_set, config).train)
    return with_batch_size(config, images, device, SINGLE, _trial_builder(data_set))


def _trial_builder(data_set: Dataset) -> Callable[[Config], Run]:
    """Builds runs that take trial steps on a data set that is read already."""
    return lambda config: _build_run(config, lambda _: data_set, SINGLE, trial=True)


# -- model and schedule ------------------------------------------------------------------------------------------------


@within_memory("building the model", "use a smaller model or smaller images, or a machine with more memory")
def build_model(
    config: Config,
    preprocessing: Preprocessing,
    num_classes: int,
    device: torch.device,
    *,
    weights_follow: bool = False,
) -> nn.Module:
    """The model a config names, on the device, in channels-last memory format, which is faster on every device.

    Args:
        config: a recorded one, which may be someone else's, downloads nothing.
        preprocessing: the shape of the images.
        num_classes: K.
        device: of the model.
        weights_follow: a checkpoint's will be loaded, so that pretrained ones are not needed.
    """
    channels, height, width = preprocessing.shape
    supplied = {"in_channels": channels, "image_size": (height, width), "num_classes": num_classes}
    supplied["pretrained_weights"] = "none" if weights_follow else "local" if config.recorded else "download"
    model = build(config.model, supplied)
    if not isinstance(model, nn.Module):
        message = f"{config.model.name} must be a torch.nn.Module or return one, got {type(model).__name__}"
        raise ConfigError([Problem(config.model.location, message)])
    with torch.inference_mode(False), torch.no_grad():  # initializes lazy layers, before the optimizer
        images = torch.zeros(2, *preprocessing.shape)
        model.eval()
        try:
            logits = model(images)
        except Exception as error:  # the user's model may raise anything
            if ran_out_of_memory(error):
                raise
            message = f"{config.model.name} cannot take images {list(images.shape)}: {in_one_line(error)}"
            raise ConfigError([Problem(config.model.location, message)]) from error
        model.train()
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        message = (
            f"{config.model.name} must turn images [B, C, H, W] into logits [B, {num_classes}]; for B = 2 it gave {got}"
        )
        raise ConfigError([Problem(config.model.location, message)])
    if not weights_follow and (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones(2), atol=1e-3):
        streams.warning(
            f"{config.model.name} returns probabilities (each row sums to 1), but the loss and eval apply softmax "
            "themselves: return the last layer's weighted sums, without softmax"
        )
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def prepare_model(model: nn.Module, train: Batches) -> None:
    """Call the model's method `prepare(images)`, if it has one, once before training.

    The images are up to 5,000, evenly spaced over the split: [N, C, H, W] float, normalized, not augmented. What the
    model derives from them belongs in its state dict, so that a checkpoint restores it without the images.
    """
    prepare = getattr(model, "prepare", None)
    if callable(prepare):
        prepare(train.sample(STATISTICS_FROM))


def build_loss(config: Config, class_counts: list[int], device: torch.device) -> Loss:
    """The loss a config names, on the device."""
    return make_loss(config.loss, class_counts, device)


def build_schedule(config: Config, batches: int) -> Schedule:
    """The schedule a config names, for epochs of so many batches."""
    steps = steps_per_epoch(batches, config.grad_accum_steps)
    schedule: Schedule = build(config.schedule, {"steps": steps * config.epochs, "steps_per_epoch": steps})
    if (swa := config.swa) is None or swa.lr_factor is None:
        return schedule
    if hasattr(schedule, "observe"):
        message = (
            f"{config.schedule.name} decides the rate by the metrics; leave lr_factor out, or take another schedule"
        )
        raise ConfigError([Problem("swa.lr_factor", message)])
    factor, first = swa.lr_factor, (swa.start_epoch - 1) * steps
    return lambda step: factor if step >= first else schedule(step)


# -- loss -------------------------------------------------------------------------------------------------------------


def make_loss(component: Component, class_counts: list[int], device: torch.device) -> Loss:
    """The loss a config names, on the device: built by a class or function, or a plain function loss(logits, targets).

    Args:
        component: the name and the arguments.
        class_counts: the number of training images of each class; passed to a loss that takes it or `num_classes`.
        device: of its tensors.
    Raises: ConfigError if it cannot be built or is not callable.
    """
    supplied = {"num_classes": len(class_counts), "class_counts": class_counts}
    loss = build(component, supplied, REGISTRIES["loss"].called_with)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    if not callable(loss):
        message = f"{component.name} must be callable as loss(logits, targets), got {type(loss).__name__}"
        raise ConfigError([Problem(component.location, message)])
    return loss  # type: ignore[no-any-return]
