"""The config: what a file may say, read and checked whole, every mistake with its place, before torch is imported."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import ConfigError, Problem, suggestion
from . import registry, yamlfile
from .aliases import ELSEWHERE, ELSEWHERE_IN
from .components import Component, check_arguments, check_component, target_of
from .keys import (
    CALLED_WITH,
    COMPONENTS,
    DEFAULT_COMPONENTS,
    KEYS,
    NEEDS_VALIDATION,
    SUPPLIED,
    Config,
    Data,
    EarlyStopping,
    Normalize,
    signature_of_section,
)
from .recipes import find
from .signatures import NotStatic, read_signature, whole_numbers
from .values import show

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


# What lies beside a config.yaml that a run has written.
IN_A_RUN_FOLDER = ("run.json", "last.safetensors")


def load(config: str, overrides: Sequence[Override] = ()) -> Config:
    """Read and check a config.

    Args:
        config: a file, or the name of a recipe.
        overrides: values that replace the file's, in order.
    Raises: ConfigError with every mistake found, each with its place.
    """
    file, location = find(config)
    document = yamlfile.read(file, location)
    if file.name == "config.yaml" and any((file.parent / name).is_file() for name in IN_A_RUN_FOLDER):
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
