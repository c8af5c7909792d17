"""The check of a config: plain data becomes a Config, or a list of everything that is wrong with it."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, Problem, suggestion
from ..files import expanded
from . import registry
from .aliases import ELSEWHERE, ELSEWHERE_IN
from .automatic import NO_SIZE, has_automatic_size
from .components import Component, check_arguments, resolve
from .keys import (
    DEFAULT_COMPONENTS,
    KEYS,
    NEEDS_VALIDATION,
    SECTIONS,
    Config,
    Data,
    Distillation,
    EarlyStopping,
    FineTuning,
    Normalize,
    ProgressiveResizing,
    Sampler,
    WeightAveraging,
    signature_of_section,
)
from .overrides import Override, Path_, apply
from .registry import REGISTRIES
from .values import show
from .yamlfile import Document

T = TypeVar("T")


class Checker:
    """One pass over a config's data. It turns the data into a Config and collects what is wrong with it."""

    def __init__(self, document: Document, overrides: Sequence[Override]) -> None:
        self.document = document
        self.data, self.options, self.problems = apply(document.data, overrides)

    def config(self, recipe: str) -> Config:
        """The config. Raises: ConfigError with every mistake, in reading order."""
        own = self._section(Config, self.data, (), KEYS, "a config")
        values = {key: own[key] for key in KEYS if key in own and key not in (*SECTIONS, *REGISTRIES)}
        if "model" in own:
            values.update(self._model(own["model"]))
        for key in ("loss", "optimizer", "schedule"):
            if key in own or key in DEFAULT_COMPONENTS:
                values[key] = self._component(key, own.get(key, DEFAULT_COMPONENTS.get(key)), (key,))
        if "data" in own:
            values.update(self._data(own["data"]))
        for key, check in self._sections().items():
            if own.get(key) not in (None, "none"):
                values[key] = check(own)
        self._check_device(own.get("device", "auto"))
        self._check_size(values)
        if values.get("early_stopping") and self._has_no_validation(values):
            self._problem(("early_stopping",), NEEDS_VALIDATION)
        schedule = values.get("schedule")
        if schedule and schedule.name == "reduce_on_plateau" and self._has_no_validation(values):
            self._problem(("schedule",), NEEDS_VALIDATION.replace("early_stopping", schedule.name))
        if self.problems:
            raise ConfigError(sorted(set(self.problems), key=self._reading_order))
        options = {".".join(map(str, path)): option for path, option in self.options.items()}
        return Config(**values, recipe=recipe, options=options, elsewhere=self._beside(values["data"].root))

    # -- files beside the config

    def _beside(self, root: str | None) -> tuple[Path, ...]:
        """The data's folder beside the config, if that is where `root` may be: it is relative, and the file's own."""
        by_option = any(path in self.options for path in (("data",), ("data", "root"), ("data", "file")))
        if self.document.folder is None or root is None or by_option or expanded(root).is_absolute():
            return ()
        return ((self.document.folder / root).resolve(),)

    def _code_beside(self, name: str, path: Path_) -> str:
        """`file.py:Name` with the path of a file that is beside the config, and not in the current folder."""
        file, colon, rest = (name, "", "") if name.endswith(".py") else name.rpartition(":")
        by_option = any(path[:length] in self.options for length in range(1, len(path) + 1))
        if self.document.folder is None or not file.endswith(".py") or by_option or Path(file).is_file():
            return name
        beside = self.document.folder / file
        return f"{beside}{colon}{rest}" if beside.is_file() else name

    def _path_beside(self, path: str, section: str, key: str) -> str:
        """The path that a section's key has, beside the config if it is there and not in the current folder."""
        by_option = (section,) in self.options or (section, key) in self.options
        if self.document.folder is None or by_option or os.path.exists(path):  # noqa: PTH110 - False for a name too long
            return path
        beside = self.document.folder / path
        return str(beside) if os.path.exists(beside) else path  # noqa: PTH110

    # -- sections

    def _section(
        self, section: type, data: Mapping[str, Any], path: Path_, names: Sequence[str] | None, what: str
    ) -> dict[str, Any]:
        """The plain keys of a section, converted to their types."""
        signature = signature_of_section(section, names)
        known = signature.names()
        values, problems = check_arguments(what, signature, data)
        for problem in problems:
            key, message = problem.argument, problem.message
            if not path and key in ELSEWHERE and key not in known:
                message = f"{what} takes no '{key}'; here it is {ELSEWHERE[key].format(key)}"
            self._problem((*path, key) if key else path, message, problem.of_value)
        return values

    def _data(self, raw: Any) -> dict[str, Any]:
        path = ("data",)
        if isinstance(raw, str):
            raw = {"name": raw}
        if not isinstance(raw, dict):
            self._problem(path, f"data must be a name or a mapping with a name, got {show(raw)}", of_value=True)
            return {}
        keys = {entry.name for entry in fields(Data)}
        problems_before = len(self.problems)
        self._check_validation(raw.get("validation"))
        own = self._section(Data, {key: value for key, value in raw.items() if key in keys}, path, None, "data")
        if isinstance(own.get("normalize"), dict):
            own["normalize"] = self._section(Normalize, own["normalize"], (*path, "normalize"), None, "normalize")
        if isinstance(own.get("sampler"), dict):
            own["sampler"] = self._section(Sampler, own["sampler"], (*path, "sampler"), None, "sampler")
        is_sound = len(self.problems) == problems_before
        source = None
        if isinstance(raw.get("name"), str):
            # seed is the config's own key, not a data set's; root and download stand among the common keys
            component = {key: value for key, value in raw.items() if key == "name" or key not in keys}
            source = self._component("data", component, path, other_keys=sorted(keys))
        own, source = self._at_table(own, source)
        if source is not None and has_automatic_size(source) and "interpolation" not in raw:  # it is the model's too
            arguments = {key: value for key, value in source.arguments.items() if key != "interpolation"}
            source = replace(source, arguments=arguments)
        source = self._folds(own, source)
        augment = own.get("augment", [])
        augmentations = tuple(
            self._component("augment", item, (*path, "augment", i), "augmentation")
            for i, item in enumerate(augment if isinstance(augment, list) else [])
        )
        for i, each in enumerate(augmentations):
            if i and each and each.name in registry.FROM_WHOLE:
                message = f"{each.name} cuts from whole images, so it must be the first in data.augment"
                self._problem((*path, "augment", i), message)
        self._check_pixels(source, augmentations)
        return {"data": Data(**own) if is_sound else None, "source": source, "augment": augmentations}

    def _check_pixels(self, source: Component | None, augmentations: Sequence[Component | None]) -> None:
        """Refuse augmentations that cannot take images of the data set's channels and depth."""
        if source is None or source.name not in registry.OWN_IMAGES:
            return
        channels, depth = source.arguments.get("channels"), source.arguments.get("depth")
        pixels = f"data.channels is {channels}, data.depth {depth}"
        for i, each in enumerate(augmentations):
            message = ""
            if each is None:
                continue
            if each.name in registry.PHOTOGRAPHS and (channels not in (1, 3) or depth != "uint8"):
                message = f"{each.name} takes gray or color images of 8 bits, and {pixels}; leave it out"
            elif each.name == "color_jitter" and (channels not in (1, 3) or depth == "float32"):
                message = f"color_jitter takes gray or color images of 8 or 16 bits, and {pixels}; leave it out"
            elif each.name == "random_erasing" and each.arguments.get("fill") == "noise" and depth == "float32":
                message = f"fill: noise is for pixels in [0, 1], and {pixels}; use fill: mean"
            if message:
                self._problem(("data", "augment", i), message)

    def _folds(self, own: dict[str, Any], source: Component | None) -> Component | None:
        """The data set of a config with folds holds out no test images of its own accord: they are all in one fold."""
        folds, fold = own.get("folds"), own.get("fold")
        if folds is None and fold is None:
            return source
        if folds is None:
            self._problem(("data", "fold"), "needs folds: into how many the images are divided")
        elif fold is None:
            message = f"which is the test split? set fold to one of 1 to {folds}, or train all: softmaxce train --folds"
            self._problem(("data", "folds"), f"{message} {folds}")
        elif isinstance(folds, int) and isinstance(fold, int) and fold > folds:
            self._problem(("data", "fold"), f"fold must be one of 1 to {folds}, got {fold}", of_value=True)
        if source is None or source.name not in registry.DATASETS or "test_fraction" not in source.arguments:
            return source
        return replace(source, arguments={**source.arguments, "test_fraction": 0.0})

    @staticmethod
    def _at_table(own: dict[str, Any], source: Component | None) -> tuple[dict[str, Any], Component | None]:
        """An image_list without a root has its table's folder as its root, and then the table's name is its file."""
        file = source.arguments.get("file") if source and source.name == "image_list" else None
        if source is None or not isinstance(file, str) or own.get("root") is not None:
            return own, source
        table = Path(file)
        named = replace(source, arguments={**source.arguments, "file": table.name})
        return {**own, "root": str(table.parent)}, named

    def _model(self, raw: Any) -> dict[str, Any]:
        """The model, and the run whose weights it starts with."""
        key = "weights_from"
        own = {name: value for name, value in raw.items() if name != key} if isinstance(raw, dict) else raw
        if isinstance(own, dict) and isinstance(own.get("weights"), str):
            own["weights"] = self._path_beside(own["weights"], "model", "weights")
        values = {"model": self._component("model", own, ("model",), other_keys=[key])}
        run = raw.get(key) if isinstance(raw, dict) else None
        if run in (None, "none"):
            return values
        if not isinstance(run, str) or not run:
            self._problem(("model", key), f"{key} must be a run folder or a checkpoint, got {show(run)}", of_value=True)
            return values
        return {**values, key: self._path_beside(run, "model", key)}

    def _check_validation(self, value: Any) -> None:
        """Answer the values of data.validation for which the general message is too general."""
        path = ("data", "validation")
        if isinstance(value, float) and value >= 1 and value.is_integer():  # not nan or inf
            message = f"validation must be a fraction between 0 and 1 or a whole number of images, got {show(value)}"
            self._problem(path, f"{message}; for so many images write {int(value)}", of_value=True)
        if value == 0:
            message = "validation must be a count of at least 1 or a fraction between 0 and 1; leave it out for none"
            self._problem(path, message, of_value=True)

    def _optional(self, key: str, section: type[T], data: Mapping[str, Any], example: str) -> T | None:
        """A section that a config may leave out; None if something is wrong with it."""
        raw = data[key]
        if not isinstance(raw, dict):
            self._problem((key,), f"write it as {example}, got {show(raw)}", of_value=True)
            return None
        problems_before = len(self.problems)
        values = self._section(section, raw, (key,), None, key)
        return section(**values) if len(self.problems) == problems_before else None

    def _sections(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """The checks of the sections that a config may leave out."""
        return {
            "early_stopping": lambda data: self._optional("early_stopping", EarlyStopping, data, "{patience: 5}"),
            "fine_tuning": self._fine_tuning,
            "swa": self._weight_averaging,
            "distillation": self._distillation,
            "progressive_resizing": self._progressive_resizing,
        }

    def _fine_tuning(self, data: Mapping[str, Any]) -> FineTuning | None:
        path = ("fine_tuning", "unfreeze_epoch")
        tuning = self._optional("fine_tuning", FineTuning, data, "{freeze: backbone, unfreeze_epoch: 3}")
        unfreeze = tuning.unfreeze_epoch if tuning is not None else None
        if tuning is not None and unfreeze is not None and tuning.freeze == "none":
            self._problem(path, "nothing is frozen; add freeze: backbone, or leave unfreeze_epoch out")
        return tuning

    def _weight_averaging(self, data: Mapping[str, Any]) -> WeightAveraging | None:
        swa = self._optional("swa", WeightAveraging, data, "{start_epoch: 8}")
        if data.get("model_ema_decay") not in (None, "none"):
            self._problem(
                ("swa",), "swa and model_ema_decay are two averages, of which one is evaluated; leave one out"
            )
        return swa

    def _distillation(self, data: Mapping[str, Any]) -> Distillation | None:
        distillation = self._optional("distillation", Distillation, data, "{teacher: runs/large/1}")
        if distillation is None:
            return None
        return replace(distillation, teacher=self._path_beside(distillation.teacher, "distillation", "teacher"))

    def _progressive_resizing(self, data: Mapping[str, Any]) -> ProgressiveResizing | None:
        key = "progressive_resizing"
        resizing = self._optional(key, ProgressiveResizing, data, "{initial_scale: 0.5}")
        if resizing is not None and resizing.delay_fraction + resizing.finetune_fraction > 1:
            message = "delay_fraction and finetune_fraction are parts of the epochs, and their sum must not be above 1"
            self._problem((key,), message)
        if data.get("distillation") not in (None, "none"):
            self._problem((key,), "the teacher of distillation is for images of data.size; leave one out")
        model = data.get("model")
        if isinstance(model, dict) and model.get("input_size") is not None:
            message = "has no effect with model.input_size, to which the model resizes all images; leave one out"
            self._problem((key,), message)
        return resizing

    def _check_device(self, device: Any) -> None:
        if isinstance(device, str) and (message := device_problem(device)):
            self._problem(("device",), message, of_value=True)

    def _check_size(self, values: Mapping[str, Any]) -> None:
        """Refuse `data.size: auto` with a model that was not pretrained on images of a size."""
        source, model = values.get("source"), values.get("model")
        if source is not None and has_automatic_size(source) and model is not None and not model.implied:
            self._problem(("data", "size"), NO_SIZE.format(model.name), of_value=True)

    @staticmethod
    def _has_no_validation(values: dict[str, Any]) -> bool:
        """Whether there is certainly no validation split; a folder, or a data set of the user's, may have one."""
        data, source = values.get("data"), values.get("source")
        return bool(
            data
            and source
            and data.validation is None
            and source.name in registry.DATASETS
            and source.name not in registry.OWN_IMAGES
        )

    def _component(
        self, section: str, raw: Any, path: Path_, what: str = "", other_keys: Sequence[str] = ()
    ) -> Component | None:
        name = raw if isinstance(raw, str) else raw.get("name") if isinstance(raw, dict) else None
        if not isinstance(name, str):
            rule = "needs a 'name'" if isinstance(raw, dict) else "must be a name or a mapping with a name"
            self._problem(path, f"{what or section} {rule}, got {show(raw)}", of_value=True)
            return None
        name = self._code_beside(name, (*path, "name") if isinstance(raw, dict) else path)
        arguments = {k: v for k, v in raw.items() if k != "name"} if isinstance(raw, dict) else {}
        try:
            component, problems = resolve(
                REGISTRIES[section],
                name,
                arguments,
                self._component_location(path, arguments),
                aliases=ELSEWHERE_IN.get(section),
                other_keys=other_keys,
            )
        except ValueError as error:
            is_file = name.rpartition(":")[0].endswith(".py")
            beside = "; nor is it beside the config" if is_file and self.document.folder not in (None, Path()) else ""
            self._problem((*path, "name") if isinstance(raw, dict) else path, f"{error}{beside}", of_value=True)
            return None
        for problem in problems:
            names = [name for name in (problem.argument, *problem.others) if name]
            paths: list[Path_] = [(*path, name) for name in names] or [path]
            set_by_option = [one for one in paths if one in self.options]
            self._problem((set_by_option or paths)[0], problem.message, problem.of_value)
        return component

    # -- locations

    def _location(self, path: Path_, *, of_value: bool) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.options:
                return self.options[path[:length]]
        return self.document.location(path, of_value=of_value)

    def _component_location(self, path: Path_, arguments: Mapping[str, Any]) -> str:
        """Where a component was written, for errors of its construction: `x.yaml:8:1 with --set optimizer.lr=1`."""
        options = [self.options[(*path, name)] for name in arguments if (*path, name) in self.options]
        location = self._location((*path, "name") if (*path, "name") in self.options else path, of_value=False)
        is_in_file = path[0] in (self.document.data or {}) and location not in self.options.values()
        parts = [location] * (is_in_file or not options) + ([" ".join(options)] if options else [])
        return " with ".join(parts)

    def _problem(self, path: Path_, message: str, of_value: bool = False) -> None:
        """Add a problem at a path: at the value there, or else at the key."""
        self.problems.append(Problem(self._location(path, of_value=of_value), message))

    @staticmethod
    def _reading_order(problem: Problem) -> tuple[int, int, str]:
        numbers = re.search(r":(\d+):(\d+)$", problem.location)
        return (int(numbers[1]), int(numbers[2]), "") if numbers else (0, 0, problem.location)


def device_problem(device: str) -> str:
    """What is wrong with a device's name; an empty string if nothing is."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        return ""
    hint = suggestion(device, ["auto", "cpu", "cuda", "mps"])
    return f"device must be auto, cpu, cuda, cuda:N or mps, got '{device}'{hint}"
