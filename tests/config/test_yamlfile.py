"""YAML 1.2's scalars, refused repeats, and places."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softmaxce.config import yamlfile
from softmaxce.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        (".5", 0.5),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("'3'", "3"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    data = yamlfile.parse(f"key: {text}", "f.yaml").data["key"]
    assert data == value
    assert type(data) is type(value)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(plain)
@example({"\x85": ["a\u2028b"]})
def test_what_is_dumped_is_read_back_the_same(data: Any) -> None:
    back = yamlfile.parse(yamlfile.dump(data), "f.yaml").data
    assert repr(back) == repr(data)


def places(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        yamlfile.parse(text, "f.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_a_repeated_key_is_refused_where_it_is_repeated() -> None:
    assert places("a: 1\nb: 2\na: 3\n") == ["f.yaml:3:1: 'a' was already set on line 1; remove one of the two"]


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("a:\n\tb: 1", "f.yaml:2:1", "spaces, not tabs"),
        ("a: [1, 2", "f.yaml:1:9", "a bracket or a comma is missing"),
        ("a: b: c", "f.yaml:1:5", "check the indentation"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1", "one document"),
        ("a: 'x", "f.yaml:1:6", "a quote is missing"),
        ("a: !!python/object:os.system {}", "f.yaml:1:4", ""),
        ("a: !!set {b}", "f.yaml:1:4", ""),
        ("a: *b", "f.yaml:1:4", ""),
    ],
)
def test_a_syntax_error_is_reported_with_line_column_and_remedy(text: str, place: str, remedy: str) -> None:
    (problem,) = places(text)
    assert problem.startswith(place + ": ")
    assert remedy in problem


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "use fewer aliases" in places("\n".join(lines))[0]


def test_deep_nesting_is_refused() -> None:
    assert "50 levels" in places("[" * 5000)[0]


LARGE = yamlfile.MAX_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "x" * (LARGE - 3),
        'a: "' + "\\x41" * (LARGE // 4 - 2) + '"',
        "a: " + "1" * (LARGE - 3),
        "a:\n" + " x\n" * (LARGE // 3 - 1),
        "a: |\n" + " x\n" * (LARGE // 3 - 2),
        "x" * (LARGE - 2) + ": 1",
        "[" + "x," * (LARGE // 2 - 1) + "]",
        "- x\n" * (LARGE // 4),
        "{" + "".join(f"k{i}: 1," for i in range(LARGE // 11)) + "}",
        "".join(f"- &a{i} x\n" for i in range(LARGE // 12)),
        "a: &a x\nb: [" + "*a," * (LARGE // 3 - 6) + "]",
        "[" * LARGE,
        "? " * (LARGE // 2),
        "&a [*a, *a]",
        "&a {b: *a}",
        "x" * (LARGE + 1),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_too_large_is_refused_in_seconds_and_in_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        yamlfile.read(file)
    assert time.process_time() - started < 20  # a second is usual; what grows with the square takes minutes
    (problem,) = caught.value.problems
    assert str(problem).startswith(str(file))
    assert len(problem.message) < 200
    assert "\n" not in str(problem)


def test_a_quarter_of_a_megabyte_of_comments_is_read_in_seconds() -> None:
    started = time.process_time()
    yamlfile.parse("#\n" * (LARGE // 2), "f.yaml")
    assert time.process_time() - started < 20  # a second is usual; what grows with the square takes minutes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: x\0", "f.yaml:2:5: is not valid YAML: the character U+0000"),
        ('a: "x\\0"', "f.yaml:1:4: the character U+0000 is not text"),
        ('a: "\\ud800"', "f.yaml:1:4: the character U+D800 is not text"),
        ('a: "\\U0011ffff"', "f.yaml:1:7: is not valid YAML: a number here is out of range"),
        ('a: "\\UFFFFFFFF"', "f.yaml:1:7: is not valid YAML: a number here is out of range"),
        (f"%YAML {'9' * 5000}.1\n---\na", "f.yaml:1:7: is not valid YAML: a number here is out of range"),
    ],
)
def test_a_character_that_is_not_text_is_reported_with_line_and_column(text: str, expected: str) -> None:
    assert places(text) == [expected]


def test_a_file_that_is_not_utf_8_or_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        yamlfile.read(file)
    with pytest.raises(ConfigError, match="No such file"):
        yamlfile.read(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        yamlfile.read(tmp_path)


def test_locations_point_at_keys_and_values() -> None:
    document = yamlfile.parse("a:\n  b: [1, 22]\n", "f.yaml")
    assert document.location(("a", "b")) == "f.yaml:2:3"
    assert document.location(("a", "b"), of_value=True) == "f.yaml:2:6"
    assert document.location(("a", "b", 1)) == "f.yaml:2:10"
    assert document.location(("a", "absent")) == "f.yaml:1:1"
