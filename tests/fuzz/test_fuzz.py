"""A short run of the fuzzing: some hundred rounds per target; and a test that the watchdog detects every failure."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmaxce.config import keys, reader, yamlfile
from softmaxce.config.keys import Config
from softmaxce.errors import ConfigError

from . import targets, watchdog

ROUNDS = {"configs": 150, "checkpoints": 60, "images": 150}


@pytest.mark.parametrize("target", ROUNDS)
def test_corrupted_files_are_accepted_or_refused_by_name(target: str) -> None:
    outcome = watchdog.run(target, range(1_000_000, 1_000_000 + ROUNDS[target]))
    assert outcome.findings == []
    assert outcome.counts["answered"] + outcome.counts["refused"] == ROUNDS[target]
    assert outcome.counts["refused"] > ROUNDS[target] / 4  # the files are indeed corrupted
    assert outcome.counts["answered"] > 0  # but not all beyond use


def test_the_watchdog_detects_tracebacks_crashes_hangs_executed_code_and_refusals_without_a_file_name() -> None:
    outcome = watchdog.run("trap", range(6), timeout=5)
    findings = [finding.split(": ", 1) for finding in outcome.findings]
    assert [name for name, _ in findings] == [f"trap {seed}" for seed in range(1, 6)]  # round 0 has no failure
    for (_, what), expected in zip(
        findings, ("ZeroDivisionError", "os.system", "names no file", "status -9", "hung"), strict=True
    ):
        assert expected in what


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["digits", "mlp", "sgd"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "lr", "hidden"]) | st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(keys.KEYS) | st.text(max_size=8), values, max_size=8))
def test_any_plain_data_is_a_config_or_is_refused_with_locations(data: dict[str, object]) -> None:
    document = yamlfile.Document("f.yaml", data, {}, {})
    problems: tuple[object, ...] = ()
    try:
        assert isinstance(reader.check(document), Config)
    except ConfigError as error:
        problems = error.problems or ("none",)
    assert all(str(problem).startswith("f.yaml: ") for problem in problems)


def test_names_file_accepts_lines_with_the_files_folder_only() -> None:
    assert targets.names_file("/tmp/f.yaml:1:1: no", Path("/tmp"))
    assert not targets.names_file("no", Path("/tmp"))
