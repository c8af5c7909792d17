"""The config: what a file may say, read and checked whole, every mistake with its place, before torch is imported."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ..argument_types import Fraction, Moments, NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from ..errors import ConfigError, Problem, RunError
from ..runs.folder import LAST
from . import registry, yamlfile
from .components import (
    REQUIRED,
    Argument,
    Component,
    NotStatic,
    Signature,
    check_arguments,
    check_component,
    read_signature,
    show,
    suggestion,
    target_of,
    whole_numbers,
)

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

# Names that a user of another trainer may write, and where the thing is found here.
ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate", "base_lr"), "optimizer.lr"),
    **dict.fromkeys(("momentum", "weight_decay", "betas", "nesterov"), "optimizer.{}"),
    **dict.fromkeys(("batch_size", "eval_batch_size", "root", "download", "augment", "normalize"), "data.{}"),
    **dict.fromkeys(("validation", "train_limit"), "data.{}"),
    **dict.fromkeys(("transforms", "transform", "augmentation", "augmentations"), "data.augment"),
    **dict.fromkeys(("val_split", "validation_split", "val_fraction"), "data.validation"),
    **dict.fromkeys(("dataset", "data_set"), "data"),
    **dict.fromkeys(("data_dir", "data_path", "data_root"), "data.root"),
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched"), "schedule"),
    **dict.fromkeys(("warmup_epochs", "lr_warmup_epochs"), "schedule.warmup_epochs"),
    **dict.fromkeys(("criterion", "loss_fn", "loss_function"), "loss"),
    **dict.fromkeys(("label_smoothing", "smoothing"), "loss.label_smoothing"),
    **dict.fromkeys(("class_weights", "class_weight"), "loss.weight"),
    **dict.fromkeys(("net", "network", "arch", "architecture"), "model"),
    **dict.fromkeys(("opt", "optim"), "optimizer"),
    **dict.fromkeys(("amp", "dtype", "fp16", "bf16", "mixed_precision"), "precision (float32, bf16, fp16 or auto)"),
    **dict.fromkeys(("clip_grad", "grad_clip", "gradient_clip_val", "max_grad_norm"), "clip_grad_norm"),
    **dict.fromkeys(("accumulate_grad_batches", "gradient_accumulation_steps", "accum_iter"), "grad_accum_steps"),
    **dict.fromkeys(("mixup", "cutmix"), "{}_alpha"),
    **dict.fromkeys(("ema", "model_ema", "ema_decay"), "model_ema_decay"),
    **dict.fromkeys(("test_time_augmentation", "multi_crop", "ten_crop"), "tta"),
    **dict.fromkeys(("patience", "early_stop"), "early_stopping: {{patience: N}}"),
    **dict.fromkeys(("eval_metric", "save_best", "monitor"), "best_metric"),
    **dict.fromkeys(("save_every", "save_steps", "save_interval"), "checkpoint_every: 500 steps"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("use_deterministic_algorithms", "cudnn_deterministic", "reproducible"), "deterministic"),
    **dict.fromkeys(("torch_compile", "torchcompile", "use_compile"), "compile"),
    **dict.fromkeys(("cuda_graphs", "cudagraph", "cudagraphs", "use_cuda_graph"), "cuda_graph"),
    **dict.fromkeys(("gpu", "gpus", "accelerator", "cuda"), "device"),
    **dict.fromkeys(("output", "output_dir"), "the option --output"),
}
ELSEWHERE_IN = {
    "optimizer": dict.fromkeys(("learning_rate", "base_lr"), "lr"),
    "data": {
        **dict.fromkeys(("batch", "bs"), "batch_size"),
        **dict.fromkeys(("val_split", "validation_split", "val", "val_fraction"), "validation"),
        **dict.fromkeys(("path", "dir", "folder", "data_dir"), "root"),
        **dict.fromkeys(("transforms", "transform", "augmentations"), "augment"),
    },
    "loss": dict.fromkeys(("smoothing",), "label_smoothing") | dict.fromkeys(("class_weights", "weights"), "weight"),
    "schedule": dict.fromkeys(("warmup",), "warmup_epochs"),
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

    def plain(self) -> dict[str, Any]:
        """As a file writes it, every default spelt out."""
        result: dict[str, Any] = {}
        for name in KEYS:
            value = getattr(self, name)
            if isinstance(value, Component):
                value = value.plain()
            elif isinstance(value, EarlyStopping):
                value = vars(value)
            elif isinstance(value, Data):
                value = {**self.source.plain(), **{k: v for k, v in vars(value).items() if k != "name"}}
                value["augment"] = [component.plain() for component in self.augment]
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


# -- recipes ----------------------------------------------------------------------------------------------------------


def recipes() -> dict[str, Path]:
    """The recipes that travel with the program, name -> file."""
    folder = resources.files("softmaxce.configs")
    files = sorted(Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {file.stem: file for file in files}


def find(config: str) -> tuple[Path, str]:
    """The file that `--config` means, and what to call it in messages.

    Raises: ConfigError if it is neither a file nor a recipe.
    """
    path = Path(config)
    if path.is_file():
        return path, config
    known = recipes()
    if config in known:  # a folder `mnist` holds the data, as a rule
        return known[config], f"configs/{config}.yaml"
    if path.exists():
        return path, config
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        hint = f"; the recipe of that name is --config {path.stem}" if path.stem in known else ""
        raise ConfigError([Problem("--config", f"there is no file '{config}'{hint}")])
    hint = suggestion(config, known) or "; `softmaxce config list` shows the recipes"
    raise ConfigError([Problem("--config", f"there is no file and no recipe called '{config}'{hint}")])


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Override:
    """A value from the command line: where it goes, what it is, and which option gave it."""

    path: tuple[str, ...]
    value: Any
    option: str


def parse_override(text: str) -> Override:
    """`optimizer.lr=0.05` as an Override; the value is read as YAML. Raises ConfigError."""
    option = f"--set {text}"
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError([Problem(option, "write it as key=value, for example --set optimizer.lr=0.05")])
    try:
        data = yamlfile.parse(value, option).data
    except ConfigError as error:
        message = error.problems[0].message
        raise ConfigError([Problem(option, message)]) from None
    return Override(path, data, option)


def load(config: str, overrides: Sequence[Override] = ()) -> Config:
    """Read and check a config.

    Args:
        config: a file, or the name of a recipe.
        overrides: values that replace the file's, in order.
    Raises: ConfigError with every mistake found, each with its place.
    """
    file, name = find(config)
    document = yamlfile.read(file, name)
    if file.name == "config.yaml" and any((file.parent / beside).is_file() for beside in ("run.json", LAST)):
        document = replace(document, data=as_recorded(document.data))
    return check(document, overrides, recipe=file.stem)


def as_recorded(data: Any) -> Any:
    """A run's config as it meant what it says: keys that came later, and whose default is another than what was before.

    Args:
        data: what a run folder's config.yaml or a checkpoint's header holds; it is left as it is.
    """
    section = data.get("data") if isinstance(data, dict) else None
    if isinstance(section, dict) and section.get("name") == "image_folder" and "split_by" not in section:
        return {**data, "data": {**section, "split_by": "shuffle"}}
    return dict(data) if isinstance(data, dict) else data


def check(document: yamlfile.Document, overrides: Sequence[Override] = (), recipe: str = "run") -> Config:
    """A document as a Config. Raises ConfigError with every mistake found, each with its place."""
    if document.data is None:
        raise ConfigError([Problem(document.name, "is empty; `softmaxce config new digits` writes one to start from")])
    if not isinstance(document.data, dict):
        message = f"must be a mapping of keys (data, model, ...), got {show(document.data)}"
        raise ConfigError([Problem(document.place(()), message)])
    return _Checker(document, overrides).config(recipe)


class _Checker:
    """One pass over a config's data, which turns it into a Config and collects what is wrong."""

    def __init__(self, document: yamlfile.Document, overrides: Sequence[Override]) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.overridden: dict[tuple[str | int, ...], str] = {}
        self.data: dict[str, Any] = document.data
        for override in overrides:
            self._apply(override)

    def config(self, recipe: str) -> Config:
        values: dict[str, Any] = {}
        self.data = whole_numbers(self.data, signature_of_section(Config, KEYS))
        self._section(Config, self.data, (), KEYS, "a config")
        for key in KEYS:
            if key in self.data and key not in ("data", "early_stopping", *COMPONENTS):
                values[key] = self.data[key]
        for key, menu in COMPONENTS.items():
            if key in self.data or key in DEFAULT_COMPONENTS:
                raw = self.data.get(key, DEFAULT_COMPONENTS.get(key))
                values[key] = self._component(raw, (key,), menu, SUPPLIED[key], key)
        if "data" in self.data:
            values.update(self._data(self.data["data"]))
        stopping = self.data.get("early_stopping")
        if isinstance(stopping, dict):
            stopping = whole_numbers(stopping, signature_of_section(EarlyStopping))
            if self._section(EarlyStopping, stopping, ("early_stopping",), None, "early_stopping"):
                values["early_stopping"] = EarlyStopping(**stopping)
        elif stopping is not None:
            self._problem(("early_stopping",), f"write it as {{patience: 5}}, got {show(stopping)}", of_value=True)
        device = self.data.get("device", "auto")
        if isinstance(device, str) and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            message = f"device must be auto, cpu, cuda, cuda:N or mps, got '{device}'"
            self._problem(("device",), message + suggestion(device, ["auto", "cpu", "cuda", "mps"]), of_value=True)
        if values.get("early_stopping") and self._holds_nothing_out(values):
            self._problem(("early_stopping",), NEEDS_VALIDATION)
        if self.problems:
            raise ConfigError(sorted(set(self.problems), key=self._reading_order))
        return Config(**values, recipe=recipe)

    @staticmethod
    def _holds_nothing_out(values: dict[str, Any]) -> bool:
        """Whether there is surely no validation split: a folder, or the user's own source, may bring one."""
        data, source = values.get("data"), values.get("source")
        return bool(
            data
            and source
            and data.validation is None
            and source.name in registry.DATASETS
            and source.name != "image_folder"
        )

    # -- sections

    def _section(
        self, section: type, data: dict[str, Any], path: tuple[str, ...], names: Sequence[str] | None, what: str
    ) -> bool:
        """Check the plain keys of a section; True if nothing is wrong with them."""
        before = len(self.problems)
        signature = signature_of_section(section, names)
        moved = ELSEWHERE if not path else ELSEWHERE_IN.get(str(path[-1]), {})
        for key, message in check_arguments(what, signature, data):
            if key is not None and key in moved and key not in signature.names():
                message = f"{what} takes no '{key}'; here it is {moved[key].format(key)}"
            unknown = key is not None and key not in signature.names()
            self._problem((*path, key) if key else path, message, of_value=key is not None and not unknown)
        return len(self.problems) == before

    def _data(self, raw: Any) -> dict[str, Any]:
        path = ("data",)
        if isinstance(raw, str):
            raw = {"name": raw}
        if not isinstance(raw, dict):
            self._problem(path, f"data must be a name or a mapping with a name, got {show(raw)}", of_value=True)
            return {}
        own = {entry.name for entry in fields(Data)}
        common = {key: value for key, value in raw.items() if key in own}
        common = whole_numbers(common, signature_of_section(Data))
        asked = raw.get("validation")
        if isinstance(asked, float) and asked >= 1 and asked.is_integer():  # nan and inf are answered with the others
            message = f"validation must be a fraction between 0 and 1 or a whole number of images, got {show(asked)}"
            self._problem((*path, "validation"), f"{message}; for so many images write {int(asked)}", of_value=True)
        arguments = {key: value for key, value in raw.items() if key not in own}
        sound = self._section(Data, common, path, None, "data")
        source = None
        if isinstance(raw.get("name"), str):
            extra = {"name": raw["name"], **arguments}
            # seed is the config's own key, not a source's; root and download stand among the common ones
            source = self._component(extra, path, registry.DATASETS, SUPPLIED["data"], "data", other_keys=sorted(own))
        augment = self._augment(common.get("augment", []))
        if isinstance(common.get("normalize"), dict):
            sound &= self._section(Normalize, common["normalize"], (*path, "normalize"), None, "normalize")
        if common.get("validation") == 0:
            message = "validation must be a count of at least 1 or a fraction between 0 and 1; leave it out for none"
            self._problem((*path, "validation"), message, of_value=True)
        return {"data": Data(**common) if sound else None, "source": source, "augment": augment}

    def _augment(self, raw: Any) -> tuple[Component | None, ...]:
        if not isinstance(raw, list):
            return ()  # already said
        pairs = [(item, ("data", "augment", i)) for i, item in enumerate(raw)]
        return tuple(
            self._component(item, path, registry.AUGMENTATIONS, SUPPLIED["augment"], "augmentation")
            for item, path in pairs
        )

    def _component(
        self,
        raw: Any,
        path: tuple[str | int, ...],
        menu: Mapping[str, str],
        supplied: Sequence[str],
        what: str,
        other_keys: Sequence[str] = (),
    ) -> Component | None:
        name = raw if isinstance(raw, str) else raw.get("name") if isinstance(raw, dict) else None
        if not isinstance(name, str):
            problem = "needs a 'name'" if isinstance(raw, dict) else "must be a name or a mapping with a name"
            self._problem(path, f"{what} {problem}, got {show(raw)}", of_value=True)
            return None
        arguments = {k: v for k, v in raw.items() if k != "name"} if isinstance(raw, dict) else {}
        named_at = (*path, "name") if isinstance(raw, dict) else path
        try:
            target, implied = target_of(name, menu)
            component = Component(name, target, arguments, implied, self._place(path, of_value=False))
            signature = read_signature(target)
        except NotStatic:  # only the object itself tells its signature; build reads that
            return component
        except ValueError as error:
            self._problem(named_at, str(error), of_value=True)
            return None
        moved = ELSEWHERE_IN.get(str(path[0]), {}) if len(path) == 1 else {}
        component, problems = check_component(component, signature, supplied, CALLED_WITH.get(what, 0))
        known = signature.names()
        for key, message in problems:
            if key is not None and key not in known and key not in supplied:
                if moved.get(key) in (*known, *other_keys):
                    message = f"{name} takes no '{key}'; did you mean '{moved[key]}'?"
                elif near := suggestion(key, [*(n for n in known if n not in supplied), *other_keys]):
                    message = f"{name} takes no '{key}'{near}"
            wrong_value = key in known and key not in supplied
            self._problem((*path, key) if key else path, message, of_value=wrong_value)
        return component

    # -- places

    def _apply(self, override: Override) -> None:
        """Put an override's value where its path leads, copying what lies on the way."""
        self.data = dict(self.data)
        here: Any = self.data
        for depth, key in enumerate(override.path[:-1]):
            below = here[int(key)] if isinstance(here, list) else here.get(key)
            if below is None:
                default = DEFAULT_COMPONENTS.get(key) if depth == 0 else None
                below = {"name": default} if default else {}
            elif isinstance(below, str) and (depth > 0 or key in ("data", *COMPONENTS)):
                below = {"name": below}  # `model: resnet18` is short for `model: {name: resnet18}`
            elif not isinstance(below, dict | list):
                self.problems.append(Problem(override.option, f"'{key}' is a plain value and holds no keys"))
                return
            below = list(below) if isinstance(below, list) else dict(below)
            here[int(key) if isinstance(here, list) else key] = here = below
            if isinstance(here, list) and not self._index(override, here, override.path[depth + 1]):
                return
        last = override.path[-1]
        here[int(last) if isinstance(here, list) else last] = override.value
        path = tuple(int(key) if key.isdigit() else key for key in override.path)
        self.overridden[path] = override.option

    def _index(self, override: Override, items: list[Any], key: str) -> bool:
        if key.isdigit() and int(key) < len(items):
            return True
        message = f"'{key}' must be a position in a list of {len(items)}, counted from 0"
        self.problems.append(Problem(override.option, message))
        return False

    def _place(self, path: tuple[str | int, ...], *, of_value: bool) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return self.overridden[path[:length]]
        return self.document.place(path, of_value=of_value)

    def _problem(self, path: tuple[str | int, ...], message: str, *, of_value: bool = False) -> None:
        self.problems.append(Problem(self._place(path, of_value=of_value), message))

    @staticmethod
    def _reading_order(problem: Problem) -> tuple[int, int, str]:
        numbers = re.search(r":(\d+):(\d+)$", problem.place)
        return (int(numbers[1]), int(numbers[2]), "") if numbers else (0, 0, problem.place)


def named(section: str, name: str, overrides: Sequence[Override] = (), option: str = "") -> Component:
    """A component that the command line names, checked as if it stood in a config.

    Args:
        section: loss, model, optimizer or schedule.
        name: as in a config.
        overrides: its arguments, `label_smoothing=0.1`.
        option: what gave the name, for messages.
    Raises: ConfigError with every mistake found.
    """
    options = {override.path[0]: override.option for override in overrides}
    arguments = {override.path[0]: override.value for override in overrides}
    try:
        target, implied = target_of(name, COMPONENTS[section])
        component = Component(name, target, arguments, implied, option)
        signature = read_signature(target)
    except NotStatic:  # the same
        return component
    except ValueError as error:
        raise ConfigError([Problem(option, str(error))]) from None
    component, problems = check_component(component, signature, SUPPLIED[section], CALLED_WITH.get(section, 0))
    if problems:
        raise ConfigError([Problem(options.get(key or "", option), message) for key, message in problems])
    return component
