"""Every component that a config can name: what the check accepts is built, and whole numbers are floats where due."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from softmaxce.config.components import build, resolve
from softmaxce.config.reader import check, parse_override
from softmaxce.config.registry import REGISTRIES
from softmaxce.config.signatures import read_signature
from softmaxce.config.yamlfile import parse
from softmaxce.errors import ConfigError

from ..helpers import SMALL

VALUES: tuple[Any, ...] = (
    *(
        -1,
        -0.5,
        0,
        0.5,
        0.75,
        1,
        1.5,
        2,
        10,
        12,
        16,
        31,
        2**63,
        2**70,
        float("inf"),
        True,
        False,
        None,
        "mean",
        "linear",
    ),
    *([], [0.5], [0, 0.9], [1, 0.9], [0.5, 0.25], [0, 1], [2, 1], [1] * 10, [0] * 10, [-1] * 10),
)
NEEDED = {"step": {"step_size": 2}}
SUPPLIED: dict[str, dict[str, Any]] = {
    "loss": {"num_classes": 10, "class_counts": [5] * 10},
    "model": {"in_channels": 3, "num_classes": 10, "image_size": (32, 32)},
    "schedule": {"steps": 20, "steps_per_epoch": 5},
    "augment": {},
}
# Refusals that depend on the data, not on the arguments alone.
OF_THE_DATA = (
    "one number for each of",
    "priors must have one number",
    "images must be at least",
    "need images of at least",
)


def components(section: str) -> Iterator[tuple[str, str]]:
    """(component, argument) of a menu."""
    registry = REGISTRIES[section]
    for name, target in registry.targets.items():
        for argument in read_signature(target).names():
            if argument not in registry.supplied:
                yield name, argument


def parts(model: nn.Module) -> dict[str, Any]:
    return {"params": list(model.parameters()), "model": model}


@pytest.mark.parametrize("section", ["loss", "model", "optimizer", "schedule", "augment"])
def test_what_the_check_accepts_is_built(section: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    supplied = parts(model) if section == "optimizer" else SUPPLIED[section]
    refused = []
    for name, argument in components(section):
        for value in VALUES:
            component, problems = resolve(REGISTRIES[section], name, {**NEEDED.get(name, {}), argument: value}, "")
            if problems:
                continue
            try:
                with torch.device("meta" if section == "model" else "cpu"):
                    build(component, supplied, REGISTRIES[section].called_with)
            except ConfigError as error:
                if not any(words in str(error) for words in OF_THE_DATA):
                    refused.append(f"{name} {argument}={value}: {error}")
    assert not refused, "\n".join(refused)


def test_a_whole_number_is_a_float_wherever_a_float_is_declared() -> None:
    wrong, seen = [], 0
    for section, registry in REGISTRIES.items():
        for name, argument in components(section):
            declared = next(a.type for a in read_signature(registry.targets[name]).arguments if a.name == argument)
            if "float" in str(declared) and "int" not in str(declared):
                for value in (0, 1, 2, [0, 0], [1, 2]):
                    component, problems = resolve(registry, name, {argument: value}, "")
                    if not problems:
                        seen += 1
                        converted = component.arguments[argument]
                        numbers = converted if isinstance(converted, list) else [converted]
                        wrong += [f"{name} {argument}={value}"] * any(type(number) is not float for number in numbers)
    assert seen > 100
    assert not wrong


@pytest.mark.parametrize(
    ("overrides", "location", "message"),
    [
        (["optimizer.lr=-1"], "--set optimizer.lr=-1", "lr must be a number of at least 0, got -1"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "--set optimizer.nesterov=true", "nesterov needs a"),
        (
            ["optimizer.momentum=0", "optimizer={name: sgd, lr: 1, nesterov: true}"],
            "--set optimizer={",
            "nesterov needs",
        ),
        (["optimizer={name: adadelta, lr: 1, rho: 2}"], "--set optimizer={", "rho must be a number in [0, 1], got 2"),
        (["optimizer={name: adam, lr: 1, betas: [0.9]}"], "--set optimizer={", "betas must be two numbers in [0, 1)"),
        (["optimizer={name: adam, lr: 1, differentiable: true}"], "--set optimizer={", "differentiable must be false"),
        (["optimizer.foreach=true", "optimizer.fused=true"], "--set optimizer.fused=true", "exclude each other"),
        (["model={name: wide_resnet, depth: 1}"], "--set model={", "depth must be 6 n + 4 (10, 16, 22, 28, 40, ...)"),
        (["data.augment=[{name: color_jitter, hue: 1}]"], "--set data.augment=[", "hue must be a number in [0, 0.5]"),
        (["data.augment=[{name: rand_augment, magnitude: 31}]"], "--set data.augment=[", "in [0, 30], got 31"),
        (["data.augment=[{name: random_affine, scale: [2, 1]}]"], "--set data.augment=[", "[smallest, largest]"),
        (["loss.ignore_index=1180591620717411303424"], "--set loss.ignore_index=", "a 64-bit integer"),
        (["loss={name: poly, epsilon: -2}"], "--set loss={", "epsilon must be a number of at least -1, got -2"),
    ],
)
def test_a_value_that_its_component_refuses_is_answered_with_the_option_that_wrote_it(
    overrides: list[str], location: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        check(parse(SMALL, "small.yaml"), [parse_override(text) for text in overrides])
    (problem,) = raised.value.problems
    assert problem.location.startswith(location)
    assert message in problem.message


def test_what_only_the_construction_shows_is_located_by_the_file_and_the_options() -> None:
    config = check(parse(SMALL, "small.yaml"), [parse_override("model.hidden=[2]"), parse_override("loss.weight=[1]")])
    assert config.model.location == "small.yaml:3:1 with --set model.hidden=[2]"
    assert config.optimizer.location == "small.yaml:4:1"
    assert config.loss.location == "--set loss.weight=[1]"  # the file has no loss
    assert check(parse(SMALL, "small.yaml"), [parse_override("model=linear")]).model.location == "--set model=linear"
