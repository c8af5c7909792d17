"""The laws find each mistake that a loss can make, show it small, and find nothing in sound losses."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from softmaxce.config import reader, registry
from softmaxce.errors import ConfigError
from softmaxce.laws import cost
from softmaxce.laws.examine import examine, law_named
from softmaxce.laws.law import LawResult, check_law
from softmaxce.laws.subject import Subject, referring, value_and_gradient
from softmaxce.laws.transforms import compiles_with

from .wrong import WRONG, IgnoresSmoothing, LooksAtValues, Wrong

CPU = torch.device("cpu")


def subject(name: str, reference: str | None = None, seed: int = 0, **arguments: object) -> Subject:
    overrides = [reader.Override((key,), value, key) for key, value in arguments.items()]
    component = reader.named("loss", name, overrides)
    truth = Subject(referring(reader.named("loss", reference), component), CPU) if reference else None
    return Subject(component, CPU, reference=truth, seed=seed)


def compiled(examined: Subject) -> LawResult:
    """The verdict of the law `compile`, by tracing alone: it takes seconds less, and a graph break is one in both."""
    return check_law("compile", replace(law_named("compile"), test=compiles_with("aot_eager")), examined)


def broken(verdicts: Collection[LawResult]) -> dict[str, str]:
    return {v.law: f"{v.detail} {v.case and v.case.lines()}" for v in verdicts if v.status == "failed"}


# -- sound losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.LOSSES)
def test_a_loss_on_the_menu_keeps_every_law_it_claims(name: str) -> None:
    examined = subject(name)
    verdicts = list(examine(examined, skip=["compile"]))
    if "compile" not in examined.not_claimed:
        verdicts.append(compiled(examined))
    assert broken(verdicts) == {}
    assert {v.law for v in verdicts} >= set(registry.LAWS) - {"compile"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch.nn.functional:cross_entropy", {"label_smoothing": 0.1, "reduction": "sum"}),
        ("softmax_cross_entropy", {"weight": [1.0, 2.0, 0.5], "label_smoothing": 0.2}),
        ("torch_cross_entropy", {"weight": [1.0, 2.0, 0.5]}),  # with smoothing too, torch's cannot be vmapped
        ("softmax_cross_entropy", {"weight": "balanced", "reduction": "none"}),
    ],
    ids=str,
)
def test_cross_entropy_keeps_every_law_whatever_its_arguments(name: str, arguments: dict[str, object]) -> None:
    verdicts = list(examine(subject(name, "softmax_cross_entropy", **arguments), skip=["compile"]))
    assert broken(verdicts) == {}
    certain_is_best = "label_smoothing" not in arguments
    assert [v.law for v in verdicts if v.status == "not applicable"] == ([] if certain_is_best else ["minimum"])


def test_a_loss_that_is_rightly_infinite_at_a_masked_class_passes_with_a_remark() -> None:
    (smoothed,) = examine(subject("torch_cross_entropy", label_smoothing=0.1), only=["finite"])
    assert (smoothed.status, smoothed.detail) == (
        "passed", "infinite only where its limit is, as with label smoothing at -inf"
    )  # fmt: skip
    (finite,) = examine(subject("torch_cross_entropy"), only=["finite"])
    assert (finite.status, finite.detail) == ("passed", "")


def test_the_exact_reference_is_torchs_in_float64_on_ordinary_logits() -> None:
    from softmaxce.laws import exact
    from softmaxce.laws.cases import Case

    case = Case([[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]], [1, 0])
    weight = [1.0, 2.0, 0.5]
    for options in ({}, {"label_smoothing": 0.3}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.3}):
        for reduction in ("none", "mean", "sum"):
            ours = exact.cross_entropy(case, reduction=reduction, **options)  # type: ignore[arg-type]
            tensors = {k: torch.tensor(v).double() if isinstance(v, list) else v for k, v in options.items()}
            torchs = value_and_gradient(
                lambda z, t, o=tensors, r=reduction: functional.cross_entropy(z, t, reduction=r, **o),  # type: ignore[misc]
                torch.tensor(case.logits, dtype=torch.float64),
                torch.tensor(case.targets),
            )
            torch.testing.assert_close(ours, torchs, rtol=1e-14, atol=1e-15)


# -- wrong ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_mistake_breaks_the_laws_that_it_should_and_no_other(wrong: type[Wrong]) -> None:
    examined = subject(f"{wrong.__module__}:{wrong.__name__}", "softmax_cross_entropy", **wrong.arguments)
    verdicts = []
    for name in sorted(set(registry.LAWS) - {"compile"}):
        law = law_named(name)  # a quarter of the examples is enough to find nothing: that was tried above
        verdicts.append(
            check_law(name, law if name in wrong.breaks else replace(law, examples=max(1, law.examples // 4)), examined)
        )
    if "compile" in wrong.breaks:
        verdicts.append(compiled(examined))
    found = broken(verdicts)
    assert wrong.breaks <= set(found)
    assert wrong.and_more or wrong.breaks == set(found), found
    for verdict in verdicts:
        if verdict.law in wrong.breaks - {"compile"}:  # that one is tried on a batch of its own
            assert verdict.look_at
            assert verdict.case is not None
            assert verdict.case.num_classes == 2  # hypothesis shrank it
            assert len(verdict.case.targets) <= 2


def test_the_smallest_input_is_the_one_a_person_would_give() -> None:
    def smallest(name: str, law: str) -> list[str]:
        (verdict,) = examine(subject(f"tests.laws.wrong:{name}"), only=[law])
        assert verdict.case is not None
        return verdict.case.lines()

    assert smallest("WithoutTheMaximum", "finite") == [
        "logits = torch.tensor([[0., 10000.]])",
        "targets = torch.tensor([0])",
    ]
    assert smallest("ZeroTimesInfinity", "finite")[0] == "logits = torch.tensor([[0., -torch.inf]])"
    assert smallest("SumForMean", "rows") == [
        "logits = torch.tensor([[0., 0.], [0., 0.]])",
        "targets = torch.tensor([0, 0])",
    ]
    assert smallest("RoundsTargets", "soft_targets")[2:] == ["mixed_with = [1]", "share = 0.5"]


def test_the_same_seed_finds_the_same_case() -> None:
    name = "tests.laws.wrong:WithAnEpsilon"
    first, second = (list(examine(subject(name, seed=3), only=["dtypes", "shift"])) for _ in range(2))
    assert [(v.status, v.case, v.detail, v.examples) for v in first] == [
        (v.status, v.case, v.detail, v.examples) for v in second
    ]


def test_smoothing_that_is_ignored_is_found_only_where_the_reference_smooths() -> None:
    name = f"tests.laws.wrong:{IgnoresSmoothing.__name__}"
    (unsmoothed,) = examine(subject(name, "softmax_cross_entropy"), only=["value"])
    (smoothed,) = examine(subject(name, "torch_cross_entropy", label_smoothing=0.1), only=["value"])
    assert (unsmoothed.status, smoothed.status) == ("passed", "failed")


def test_a_reference_of_ones_own_counts_as_it_computes_in_float64() -> None:
    (own,) = examine(subject("softmax_cross_entropy", "tests.laws.wrong:Sound"), only=["gradient"])
    assert (own.status, own.detail) == ("passed", "in float64")
    (other,) = examine(subject("softmax_cross_entropy", "tests.laws.wrong:CapsLogits"), only=["gradient"])
    assert other.status == "failed"


# -- what is not claimed ----------------------------------------------------------------------------------------------


class Capped(LooksAtValues):
    not_claimed = {"compile": "it looks at values", "vmap": "it looks at values"}  # noqa: RUF012


class Misspelt(LooksAtValues):
    not_claimed = {"vmpa": "it looks at values"}  # noqa: RUF012


def test_what_a_loss_does_not_claim_is_not_tried() -> None:
    verdicts = {v.law: v for v in examine(subject(f"{__name__}:Capped"), skip=["shift"])}
    assert (verdicts["compile"].status, verdicts["vmap"].detail) == ("exempt", "it looks at values")
    assert (verdicts["shift"].status, verdicts["shift"].detail) == ("exempt", "skipped by --skip")
    assert broken(verdicts.values()) == {}


def test_a_law_that_does_not_exist_cannot_be_disclaimed() -> None:
    with pytest.raises(ConfigError, match=r"Misspelt.not_claimed names no law: 'vmpa'; did you mean 'vmap'\?"):
        subject(f"{__name__}:Misspelt")


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak memory")
def test_the_memory_of_torchs_cross_entropy_is_three_times_the_logits() -> None:
    found = cost.memory(subject("torch_cross_entropy"))
    assert found is not None
    assert found.peak == pytest.approx(3.0, abs=0.1)  # log-softmax, its gradient, the logits' gradient
    assert found.torch_peak == pytest.approx(3.0, abs=0.1)


def test_a_loss_of_twice_the_work_takes_about_twice_the_time() -> None:
    assert 1.3 < cost.times(subject(f"{__name__}:torch_twice"))[1].ratio < 4  # other programs share the caches


def torch_twice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits * 1, targets)) / 2
