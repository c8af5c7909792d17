"""The config: its defaults spelt out, its short forms, its overrides, its recipes and its schema."""

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from softmaxce import argument_types
from softmaxce.build import build_run
from softmaxce.config import registry, yamlfile
from softmaxce.config.components import build
from softmaxce.config.keys import CheckpointInterval, Config, default_root
from softmaxce.config.reader import check, from_dict, load, named, parse_override
from softmaxce.config.recipes import MODELINE, commented_copy, find, headline, recipes
from softmaxce.config.schema import schema
from softmaxce.config.signatures import NAMES as TYPES
from softmaxce.config.values import convert, describe
from softmaxce.errors import ConfigError
from softmaxce.training.loop import fit

from ..helpers import SMALL

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    """The config's JSON Schema, made once: it takes longer to make than to apply."""
    return jsonschema.Draft202012Validator(schema())


def read(text: str, *overrides: str) -> Config:
    return check(yamlfile.parse(text, "x.yaml"), [parse_override(override) for override in overrides])


# -- a value ----------------------------------------------------------------------------------------------------------


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.floats(allow_nan=False), st.integers(), st.integers(2**62, 2**70)),
    *(st.text(max_size=3), st.sampled_from([10**400, "none", "mean", "5 steps", "1.5 minutes", 1.0, 0.0, -1, 2**63])),
)


@given(
    value=SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=1), SCALARS, max_size=1),
    type_=st.sampled_from([kind for name, kind in TYPES.items() if kind is not None])
    | st.sampled_from(
        [
            None,
            list[int],
            list[argument_types.PositiveFloat],
            int | None,
            list[float] | argument_types.Probability,
            dict[str, int],
        ]
    )
    | st.sampled_from([Literal["mean"], Literal["mean", "sum"], argument_types.PositiveInt | Literal["all"]])
    | st.sampled_from([Literal[1, 3], Literal[True, "auto"], CheckpointInterval]),
)
def test_a_value_is_accepted_where_its_types_json_schema_accepts_it(value: Any, type_: Any) -> None:
    value_validator = jsonschema.Draft202012Validator(TypeAdapter(type_).json_schema())
    spellings = [None, "none"] if value is None or value == "none" else [value]  # two spellings of one value
    by_schema = any(value_validator.is_valid(spelling) for spelling in spellings)
    values = value if isinstance(value, list) else [value]
    if "isfinite" in repr(type_) and any(number in values for number in (float("inf"), float("-inf"))):
        by_schema = False  # JSON has no such number
    if 10**400 in values and "float" in str(type_):  # and no largest float
        by_schema = False
    try:
        converted = convert(value, type_)
    except ValueError:
        assert not by_schema
    else:
        assert by_schema
        assert converted in spellings


@pytest.mark.parametrize(
    ("value", "type_", "converted"),
    [
        (1, float, 1.0),
        (1, float | None, 1.0),
        ([0, 0.5], list[float], [0.0, 0.5]),
        (1, argument_types.NonNegativeFloat, 1.0),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        (1, int | float, 1),
        (1.0, int | float, 1.0),
        (1e3, int, 1000),
        (2.0, argument_types.PositiveInt | None, 2),
        ([16.0, 8], list[argument_types.PositiveInt], [16, 8]),
        (1.0, Literal[1, 3], 1),
        (1, Any, 1),
    ],
)
def test_a_number_has_the_type_of_its_argument(value: Any, type_: Any, converted: Any) -> None:
    result = convert(value, type_)
    assert repr(result) == repr(converted)


@pytest.mark.parametrize("value", [float("nan"), [float("nan")], [[1.0, float("nan")]]])
@pytest.mark.parametrize("type_", [Any, float, list, list[float], dict])
def test_nan_is_refused_for_every_type(value: Any, type_: Any) -> None:
    with pytest.raises(ValueError, match=r"must be .*, got .*nan"):
        convert(value, type_)


def test_one_is_not_true() -> None:
    for value, type_ in ((1, Literal[True, "auto"]), (True, Literal[1, 3]), (1, bool), (True, int), (True, float)):
        with pytest.raises(ValueError, match="must be"):
            convert(value, type_)
    assert convert(True, Literal[True, "auto"]) is True


# -- ints for floats --------------------------------------------------------------------------------------------------


def test_an_int_for_a_float_is_a_float_in_every_section() -> None:
    changes = ("mixup_alpha=1", "clip_grad_norm=2", "early_stopping={patience: 1, min_delta: 1}", "optimizer.lr=1")
    changes += ("schedule={name: cosine, warmup_epochs: 1}", "loss={name: focal, gamma: 2}")
    changes += ("data.normalize={mean: [0], std: [1]}", "data.augment=[{name: random_affine, degrees: 10}]")
    config = read(SMALL, *changes)
    assert config.early_stopping is not None
    assert isinstance(config.data.normalize, dict)
    numbers = [config.mixup_alpha, config.clip_grad_norm, config.early_stopping.min_delta]
    numbers += [config.optimizer.arguments["lr"], config.schedule.arguments["warmup_epochs"]]
    numbers += [config.loss.arguments["gamma"], config.augment[0].arguments["degrees"]]
    numbers += [*config.data.normalize["mean"], *config.data.normalize["std"]]
    assert [type(number) for number in numbers] == [float] * len(numbers)


USERS = """
def unchanged(function):
    return function
class Class:
    def __init__(self, beta: "float", betas: list[float] = (), size: int = 1):
        self.given = (beta, betas, size)
@unchanged
def decorated(beta: float, betas: tuple = (), size: int = 1):
    return Given(beta, list(betas), size)
class Given:
    def __init__(self, *given):
        self.given = given
"""


@pytest.mark.parametrize("name", ["Class", "decorated"])
def test_an_int_for_a_float_of_a_users_component_arrives_as_a_float(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"numbers_{name}.py"
    file.write_text(USERS)
    overrides = [parse_override(text) for text in ("beta=1", "size=2.0")]
    component = named("model", f"{file.name}:{name}", overrides)
    beta, _, size = build(component, {}).given
    assert (beta, size) == (1.0, 2)
    assert (type(beta), type(size)) == (float, int)


def test_two_files_of_one_name_in_different_folders_are_two_modules(tmp_path: Path) -> None:
    for folder, value in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(f"def make(size: int = {value}):\n    return [size]\n")
    made = [build(named("model", f"{tmp_path / folder / 'own.py'}:make"), {}) for folder in ("one", "two", "one")]
    assert made == [[1], [2], [1]]


def test_a_run_with_mixup_alpha_1_trains() -> None:
    run = build_run(read(SMALL, "mixup_alpha=1", "cutmix_alpha=1", "epochs=1", "device=cpu"))
    (epoch,) = fit(run)
    assert math.isfinite(epoch.train.loss)


# -- a config ---------------------------------------------------------------------------------------------------------


def test_a_complete_config_reads_back_as_itself() -> None:
    config = read(SMALL)
    plain = config.to_dict()
    again = read(yamlfile.dump(plain))
    assert again.to_dict() == plain
    assert {"name", "label_smoothing", "weight", "ignore_index"} <= set(plain["loss"])


def test_every_key_and_argument_is_spelt_out_in_the_complete_config() -> None:
    plain = read(SMALL).to_dict()
    assert plain["precision"] == "float32"
    assert plain["data"]["eval_batch_size"] == 256
    assert plain["optimizer"]["weight_decay"] == 0
    assert plain["schedule"]["end_factor"] == 0


def test_a_name_alone_is_short_for_a_mapping_with_it() -> None:
    short = read("{epochs: 1, data: digits, model: linear, optimizer: {name: sgd}}")
    long = read("{epochs: 1, data: {name: digits}, model: {name: linear}, optimizer: {name: sgd}}")
    assert short.to_dict() == long.to_dict()


def test_the_loss_is_softmaxces_own_unless_the_file_says_otherwise() -> None:
    assert read(SMALL).loss.name == "softmax_cross_entropy"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.lr=3e-4", ("optimizer", "lr"), 3e-4),
        ("model=lenet", ("model", "name"), "lenet"),
        ("model={name: mlp, hidden: [5]}", ("model", "hidden"), [5]),
        (
            "data.augment=[random_horizontal_flip]",
            ("data", "augment"),
            [{"name": "random_horizontal_flip", "p": 0.5, "alternate": False}],
        ),
        ("loss.label_smoothing=0.1", ("loss", "label_smoothing"), 0.1),
        ("data.validation=null", ("data", "validation"), None),
        ("early_stopping.patience=3", ("early_stopping", "patience"), 3),
    ],
)
def test_an_override_reaches_its_key(override: str, path: tuple[str, str], value: object) -> None:
    assert read(SMALL, override).to_dict()[path[0]][path[1]] == value


def test_the_last_override_of_a_key_wins() -> None:
    assert read(SMALL, "epochs=3", "epochs=4").epochs == 4


def test_an_override_of_a_list_entry_counts_from_0() -> None:
    text = SMALL.replace("validation: 0.25", "augment: [random_horizontal_flip, {name: random_crop, padding: 2}]")
    augment = read(text, "data.augment.1.padding=3").to_dict()["data"]["augment"]
    assert [entry["name"] for entry in augment] == ["random_horizontal_flip", "random_crop"]
    assert augment[1]["padding"] == 3


PLAIN_DATA = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
WORDS = st.sampled_from(["name", "lr", "augment", "validation", "patience", "x", "normalize"])
SECTIONS = st.sampled_from(
    ["data", "model", "loss", "optimizer", "schedule", "early_stopping", "epochs", "seed", "device"]
)


def nested(keys: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    """Anything YAML can hold, its mappings with such keys."""
    return st.recursive(
        PLAIN_DATA, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=10
    )


# -- a dict -----------------------------------------------------------------------------------------------------------


def test_a_dict_is_the_config_that_its_yaml_text_is() -> None:
    data = yamlfile.parse(SMALL, "x.yaml").data
    assert from_dict(data).to_dict() == read(SMALL).to_dict()


def test_a_mistake_in_a_dict_is_reported_with_its_source() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict({**yamlfile.parse(SMALL, "x.yaml").data, "epochs": 0}, source="a notebook")
    assert str(caught.value) == "a notebook: epochs must be a positive whole number, got 0"


def test_a_dict_is_copied_and_its_tuples_are_lists() -> None:
    data = {**yamlfile.parse(SMALL, "x.yaml").data, "model": {"name": "mlp", "hidden": (5, 4)}}
    config = from_dict(data)
    assert config.model.arguments["hidden"] == [5, 4]
    assert data["model"]["hidden"] == (5, 4)


CYCLE: dict[str, Any] = {}
CYCLE["data"] = CYCLE
DEEP: dict[str, Any] = {}
for _ in range(60):
    DEEP = {"data": DEEP}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (CYCLE, "more than 10,000 values or 50 levels"),
        (DEEP, "more than 10,000 values or 50 levels"),
        ([0] * 10_001, "more than 10,000 values"),
        ("x" * 10_001, "x: a string of 10,001 characters; 10,000 are the limit"),
        (["x" * 10_000] * 30, "more than 262,144 characters"),
        (10**400, "x: is too large a number"),
        ("\0", r"x: the character U\+0000 is not text"),
        (["\ud800"], r"x.0: the character U\+D800 is not text"),
        ({1: 2}, "x: a key must be text, got int"),
        (Path("x"), "x: a config is plain data, got PosixPath"),
        ({1, 2}, "x: a config is plain data, got set"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_a_dict_has_the_limits_of_a_file(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"x": value})


@given(nested(st.text(max_size=12)))
def test_a_dict_and_its_yaml_text_give_the_same_config_or_the_same_problems(data: object) -> None:
    def answer(check_it: Callable[[], Config]) -> object:
        try:
            return check_it().to_dict()
        except ConfigError as error:
            return sorted(re.sub(r"^[^:]*: (?=the character)", "", problem.message) for problem in error.problems)[-1:]

    assert answer(lambda: from_dict(data)) == answer(lambda: read(yamlfile.dump(data)))


@given(nested(st.text(max_size=12)))
def test_any_data_at_all_is_a_config_or_a_list_of_problems(data: object) -> None:
    with contextlib.suppress(ConfigError):  # and nothing else may be raised
        read(yamlfile.dump(data))


@given(SECTIONS, nested(WORDS))
def test_any_value_of_any_key_is_a_config_or_a_list_of_problems(key: str, value: object) -> None:
    plain = yamlfile.parse(SMALL, "x.yaml").data
    with contextlib.suppress(ConfigError):  # and nothing else may be raised
        read(yamlfile.dump({**plain, key: value}))


def test_the_data_root_is_the_config_then_the_environment_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SOFTMAXCE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root().name == "softmaxce"
    monkeypatch.setenv("SOFTMAXCE_DATA", "/somewhere")
    assert read(SMALL).root == Path("/somewhere")
    assert read(SMALL, "data.root=/else").root == Path("/else")


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_is_sound_by_the_program_and_by_the_schema(file: Path) -> None:
    load(file.stem)
    validator().validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_the_modeline_its_command_and_what_to_expect(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0] == f"{MODELINE}schema.json"
    assert lines[1].startswith(f"# softmaxce train --config {file.stem}")
    assert headline(file.read_text())


def test_the_recipes_are_those_in_configs() -> None:
    assert list(recipes()) == [file.stem for file in RECIPES]
    assert find("digits")[0].read_text() == (CONFIGS / "digits.yaml").read_text()


@pytest.mark.parametrize(("name", "recipe"), [("c.yaml", "c"), ("...yaml", "run"), ("..yaml", "run"), (".c.yaml", "c")])
def test_the_runs_of_a_file_are_under_runs_whatever_its_name(name: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SMALL)
    assert load(str(tmp_path / name)).recipe == recipe


def test_a_file_is_preferred_to_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text(SMALL)
    assert load("digits").source.name == "synthetic"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_commented_copy_is_the_same_config(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(commented_copy(file.read_text(), copy))
    assert load(str(copy)).to_dict() == load(file.stem).to_dict()


def test_a_commented_copys_defaults_are_the_defaults(tmp_path: Path) -> None:
    text = commented_copy((CONFIGS / "digits.yaml").read_text(), tmp_path / "copy.yaml")
    before, _, rest = text.partition("# Every other key, with its default:")
    spelt_out = "\n".join(line.removeprefix("# ") for line in rest.splitlines())
    assert read(before + spelt_out).to_dict() == load("digits").to_dict()


# -- the schema -------------------------------------------------------------------------------------------------------


def test_the_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_schema_beside_the_recipes_is_up_to_date() -> None:
    # torch's optimizers differ from one torch to the next; everything else is ours
    stored, made = json.loads((CONFIGS / "schema.json").read_text()), json.loads(json.dumps(schema()))
    for one in (stored, made):
        del one["properties"]["optimizer"]
        del one["$defs"]["torchvision"]  # whose models differ likewise
    assert stored == made, "run: softmaxce config schema > configs/schema.json"


@pytest.mark.parametrize(
    "change",
    [
        {"epohcs": 3},
        {"epochs": -1},
        {"loss": {"name": "softmax_cross_entropy", "label_smoothing": 2}},
        {"model": {"name": "mlp", "hiden": [3]}},
        {"model": "resnet20"},
        {"data": {"name": "digits", "batchsize": 3}},
        {"device": 3},
        {"precision": "fp8"},
    ],
)
def test_what_the_program_refuses_the_schema_refuses(change: dict[str, object]) -> None:
    plain = {**yaml.safe_load(SMALL), **change}
    with pytest.raises(ConfigError):
        read(yamlfile.dump(plain))
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(plain)


WHOLE = [1, 2.0, 1e3, 2.5, 0, 0.0, -1.0, 1e300, 2**63 - 1, 2**63, float(2**63), True, "2", None, [2]]
CODE_NAMES = [
    *(
        "a:b",
        "a.b:c",
        "_a1:B_2",
        "./a.py:B",
        "C:\\x.py:Y",
        "a b.py:c",
        "gr\u00f6\u00dfe:Ma\u00df",
        "torchvision.models:resnet18",
    ),
    *(":b", "a:", ":", "a..b:c", ".a:b", "a:b.c", "a:1b", "1a:b", "a b:c", "a:b\n", "a\nb.py:c", "a-b:c", "a:b c"),
    *("torchvision:resnet50", "torchvision:resnet81", "torchvision:", "torchvision:a.b", "x:torchvision:resnet50"),
]


@pytest.mark.parametrize("key", ["epochs", "max_nonfinite", "data.batch_size", "model.hidden", "schedule.step_size"])
@pytest.mark.parametrize("value", WHOLE)
def test_program_and_schema_agree_on_what_a_whole_number_is(value: object, key: str) -> None:
    plain = {**yaml.safe_load(SMALL), "schedule": {"name": "step", "step_size": 1}, "model": {"name": "mlp"}}
    section, _, name = key.rpartition(".")
    given = [value] if key == "model.hidden" else value
    if section:
        plain[section] = {**plain[section], name: given}
    else:
        plain[name] = given
    by_schema = validator().is_valid(plain)
    try:
        taken = yamlfile.parse(
            yamlfile.dump(check(yamlfile.Document("c.yaml", plain, {}, {})).to_dict()), "c.yaml"
        ).data
        by_program = True
    except ConfigError:
        by_program = False
    assert by_program == by_schema
    if by_program:
        kept = taken[section][name] if section else taken[name]
        assert kept == given
        assert type(kept[0] if isinstance(kept, list) else kept) is int


@pytest.mark.parametrize("as_mapping", [False, True])
@pytest.mark.parametrize("name", CODE_NAMES)
def test_program_and_schema_agree_on_what_can_name_code(name: str, as_mapping: bool) -> None:
    for key in ("model", "loss"):
        plain = {**yaml.safe_load(SMALL), key: {"name": name} if as_mapping else name}
        try:
            registry.REGISTRIES[key].resolve(name)
            by_program = True
        except ValueError:
            by_program = False
        assert by_program == validator().is_valid(plain), key


@pytest.mark.parametrize("menu", ["MODELS", "LOSSES", "OPTIMIZERS", "SCHEDULES"])
def test_every_name_on_a_menu_passes_the_schema(menu: str) -> None:
    key = {"MODELS": "model", "LOSSES": "loss", "OPTIMIZERS": "optimizer", "SCHEDULES": "schedule"}[menu]
    for name in getattr(registry, menu):
        validator().validate({**yaml.safe_load(SMALL), key: name})


def test_a_recipes_name_is_the_recipe_though_a_folder_is_called_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert load("mnist").source.name == "mnist"


def test_a_list_of_bounded_numbers_is_described_in_the_plural() -> None:
    assert describe(list[argument_types.Probability]) == "a list of numbers in [0, 1]"
