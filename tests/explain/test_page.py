"""The page in a real browser: its numbers are the library's, wherever the sliders are; it loads nothing."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softmaxce.explain.explanation import explain_logits
from softmaxce.explain.numerics import compare_formats
from softmaxce.explain.steps import Steps, take_steps
from softmaxce.report.html.explanation_page import html, write_page

from ..browser import Browser
from .conftest import Explain


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


def numbers(page: Browser) -> dict[str, list[float]]:
    """The columns of the tables as the page shows them, with all their digits, by the names of Steps."""
    script = (
        "[...document.querySelectorAll('data[data-column]')].map(d => [d.dataset.column, d.dataset.class, d.value])"
    )
    columns: dict[str, dict[int, float]] = {}
    for column, index, value in page.evaluate(script):
        columns.setdefault(column, {})[int(index)] = float(value)
    return {column: [values[i] for i in sorted(values)] for column, values in columns.items()}


def requested(page: Browser) -> list[str]:
    """The requested addresses; data: URLs are inside the page."""
    return [address for address in page.requests if not address.startswith("data:")]


def single(page: Browser, key: str) -> float:
    return float(page.evaluate(f"document.querySelector('data[data-key=\"{key}\"]').value"))


def formats(page: Browser) -> dict[tuple[str, str], float]:
    script = (
        "[...document.querySelectorAll('data[data-format]')].map(d => [d.dataset.format, d.dataset.which, d.value])"
    )
    return {(name, which): float(value.replace("Infinity", "inf")) for name, which, value in page.evaluate(script)}


def assert_equal(page: Browser, steps: Steps) -> None:
    """Every number of the page is that of the library's steps, to 1e-6."""
    shown = numbers(page)
    for name, values in shown.items():
        expected: Any = steps
        for part in name.split("."):
            expected = getattr(expected, part)
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-12, err_msg=name)
    assert {"raw_logits", "logits", "shifted", "exponentials", "probabilities", "label", "smoothed", "terms"} <= set(
        shown
    )
    for key in ("loss", "bits", "largest", "temperature"):
        assert single(page, key) == pytest.approx(getattr(steps, key), rel=1e-6, abs=1e-12), key
    assert single(page, "step.loss") == pytest.approx(steps.step.loss, rel=1e-6, abs=1e-12)
    got = formats(page)
    for computed in compare_formats(steps):
        unit = 1e-6 if computed.format.startswith("float") and computed.format != "float16" else 0
        assert got[computed.format, "right"] == pytest.approx(computed.right, rel=unit, abs=unit), computed
        assert got[computed.format, "naive"] == pytest.approx(computed.naive, rel=unit, abs=unit), computed


def logits_on(page: Browser) -> torch.Tensor:
    return torch.tensor(numbers(page)["raw_logits"], dtype=torch.float64)


CLASSES = ("cat", "dog", "bird", "<b>'&\"</script>")
ROWS = [[2.0, 1.0, 0.1, -3.0], [40.0, 0.25, 0.0, 3.0], [0.0, 25.0, 120.0, -4.0], [1e-3, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"weight": torch.tensor([1.0, 2.5, 0.5, 1.0])}, {"temperature": 1.7}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_the_pages_numbers_are_the_librarys(
    page: Browser, file: Path, row: list[float], options: dict[str, Any]
) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    write_page(explain_logits(logits, 1, CLASSES, **options), file)
    page.open(file)
    assert_equal(page, take_steps(logits, 1, **options))


def test_a_soft_label_is_shown_as_given_and_can_be_changed(page: Browser, file: Path) -> None:
    logits, shares = torch.tensor([2.0, 1.0, 0.1, -3.0], dtype=torch.float64), torch.tensor([0.25, 0.0, 0.0, 0.75])
    write_page(explain_logits(logits, shares, CLASSES), file)
    page.open(file)
    assert_equal(page, take_steps(logits, shares))
    page.evaluate("document.getElementById('label').focus()")
    page.press("ArrowDown", 2)  # from "as given" over the first class to the second
    assert_equal(page, take_steps(logits, 1))


def test_the_page_says_where_a_weighted_loss_is_least(page: Browser, file: Path) -> None:
    # Q = [0.7, 0.6, 0, 0], which sums to 1.3: -0.7 log(7/13) - 0.6 log(6/13) = 0.8972
    label, weight = torch.tensor([0.7, 0.3, 0.0, 0.0]).double(), torch.tensor([1.0, 2.0, 1.0, 1.0])
    names = ("cat", "dog", "bird", "fish")
    write_page(explain_logits(torch.tensor([2.0, 1.0, 0.1, 0.0]), label, names, weight=weight), file)
    page.open(file)
    text = page.evaluate("document.querySelector('[data-text=loss_sentence]').textContent")
    assert text.startswith(
        "Its minimum is 0.8972, reached when S equals the weighted label Q / sum(Q) "
        "(cat: 0.5385, dog: 0.4615, bird: 0, fish: 0)."
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_pages_steps_have_the_numbers_and_headings_of_the_text(
    page: Browser, file: Path, temperature: float
) -> None:
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0])
    write_page(explain_logits(torch.tensor(ROWS[0]), 1, CLASSES, weight=weight, temperature=temperature), file)
    page.open(file)
    shown = "[...document.querySelectorAll('.steps > section:not([hidden]) > h2')].map(h => h.textContent)"
    text = page.evaluate("document.querySelector('noscript').textContent")
    assert page.evaluate(shown) == [line.strip() for line in re.findall(r"^ ?\d+ [A-Zae].*$", text, re.MULTILINE)]


def test_the_column_of_the_smoothed_label_is_shown_only_with_smoothing(page: Browser, file: Path) -> None:
    write_page(explain_logits(torch.tensor(ROWS[0]), 1, CLASSES), file)
    page.open(file)
    heads = "[...document.querySelectorAll('[data-table=label] :is(th, td)')].filter(c => c.offsetParent).length"
    assert page.evaluate(heads) == 2 * 5  # the names and L, of a heading and four classes
    page.evaluate("document.getElementById('smoothing').focus()")
    page.press("ArrowRight", 20)
    assert page.evaluate(heads) == 3 * 5


def test_the_page_says_what_a_format_rounds_to_0_and_by_how_much_the_loss_falls(page: Browser, file: Path) -> None:
    write_page(explain_logits(torch.tensor([20.0, 0.0]), 0, ("3", "5")), file)
    page.open(file)
    rows = "[...document.querySelectorAll('#formats tr')].map(r => [...r.children].map(c => c.textContent))"
    shown = {row[0]: row[1:] for row in page.evaluate(rows)}
    assert shown["float32"] == ["0", "2.0611537e-9", "2.1e-9", "naive: rounded to 0"]
    assert shown["float16"] == ["0", "0", "0", "both rounded to 0"]
    body = page.evaluate("document.getElementById('page').innerText")
    assert "the loss falls by 8.497e-18, from 2.061e-09 to 2.061e-09" in body
    assert "only the term of class 3 remains" in body
    assert "log(sum) computed as log1p(rest + expm1(z_y - largest)), where y is class 3" in body


def test_the_keyboard_moves_a_logit_and_every_step_follows(page: Browser, file: Path) -> None:
    logits = torch.tensor([2.0, 1.0, 0.1, -3.0], dtype=torch.float64)
    write_page(explain_logits(logits, 0, CLASSES), file)
    page.open(file)
    before = single(page, "loss")
    marked = "document.querySelector('circle.mark').getAttribute('cx')"
    before_x = float(page.evaluate(marked))
    page.press("Tab")  # the first thing that can be reached is the first logit's slider
    assert page.evaluate("document.activeElement.id") == "logit0"
    page.press("ArrowRight", 12)
    moved = logits_on(page)
    assert moved[0] > 2.5
    assert moved[1:].tolist() == logits[1:].tolist()
    assert_equal(page, take_steps(moved, 0))
    assert single(page, "loss") < before
    assert float(page.evaluate(marked)) > before_x
    page.press("Tab")
    page.evaluate("document.activeElement.value = '-1.23456'")
    page.evaluate("document.activeElement.dispatchEvent(new Event('input', {bubbles: true}))")
    assert logits_on(page)[0] == -1.23456
    assert_equal(page, take_steps(logits_on(page), 0))


def test_smoothing_temperature_and_the_label_follow_the_keyboard_too(page: Browser, file: Path) -> None:
    logits = torch.tensor([2.0, 1.0, 0.1, -3.0], dtype=torch.float64)
    write_page(explain_logits(logits, 0, CLASSES), file)
    page.open(file)
    page.evaluate("document.getElementById('smoothing').focus()")
    page.press("ArrowRight", 20)
    page.evaluate("document.getElementById('temperature').focus()")
    page.press("ArrowRight", 10)
    page.evaluate("document.getElementById('label').focus()")
    page.press("ArrowDown", 2)
    steps = take_steps(
        logits, 2, label_smoothing=single(page, "label_smoothing"), temperature=single(page, "temperature")
    )
    assert steps.label_smoothing == pytest.approx(0.2)
    assert steps.temperature == pytest.approx(1.5)
    assert_equal(page, steps)


def test_taking_steps_is_gradient_descent_and_starting_again_undoes_it(page: Browser, file: Path) -> None:
    logits = torch.tensor([2.0, 1.0, 0.1, -3.0], dtype=torch.float64)
    write_page(explain_logits(logits, 3, CLASSES, temperature=2.0), file)
    page.open(file)
    page.evaluate("document.getElementById('step').focus()")
    losses = [single(page, "loss")]
    z = logits / 2
    for _ in range(5):
        page.press("Enter")
        z = z - torch.autograd.functional.jacobian(lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(3)), z)  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(numbers(page)["logits"], z.numpy(), rtol=1e-9, atol=1e-12)
        losses.append(single(page, "loss"))
    assert losses == sorted(losses, reverse=True)
    page.evaluate("document.getElementById('reset').focus()")
    page.press("Enter")
    assert logits_on(page).tolist() == logits.tolist()


def test_no_page_has_an_error_or_requests_anything(
    explain: Explain, linear_run: Path, tmp_path: Path, page: Browser
) -> None:
    done = explain(str(linear_run), "--index", "3", "--html", str(tmp_path / "digit.html"))
    assert done.exit_code == 0, done.output
    assert done.stdout == f"page: {tmp_path / 'digit.html'}\n"
    page.requests.clear()
    page.open(tmp_path / "digit.html")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 11  # the image, and what pushed each of ten classes
    assert requested(page) == [(tmp_path / "digit.html").as_uri()]
    assert page.problems == []


def test_each_map_is_shown_with_what_it_is_and_what_it_is_not(
    explain: Explain, convolutional_run: Path, tmp_path: Path, page: Browser
) -> None:
    file = tmp_path / "maps.html"
    done = explain(str(convolutional_run), "--index", "5", "--attribution", "all", "--html", str(file))
    assert done.exit_code == 0, done.output
    page.open(file)
    section = "[...document.querySelectorAll('.steps > section')].find(s => s.textContent.includes('Attribution'))"
    titles = ["Grad-CAM", "Input gradient", "SmoothGrad", "Occlusion"]
    assert page.evaluate(f"[...{section}.querySelectorAll('h3')].map(h => h.textContent)") == titles
    for sentences in page.evaluate(f"[...{section}.querySelectorAll('h3 + p')].map(p => p.textContent)"):
        assert sentences.startswith("It is ")
        assert " It is not " in sentences
    answer = json.loads(explain(str(convolutional_run), "--index", "5", "--attribution", "all", "--json").stdout)
    names = [shown["class"] for shown in answer["attributions"]]
    captions = page.evaluate(f"[...{section}.querySelectorAll('figcaption')].map(c => c.textContent.split(' ')[0])")
    assert captions == names
    assert page.evaluate(f"[...{section}.querySelectorAll('img')].every(image => image.naturalWidth === 8)")
    assert page.problems == []


def test_names_are_text_and_nothing_else(page: Browser, file: Path) -> None:
    names = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{ 7 * 7 }}")
    explanation = explain_logits(torch.tensor([1.0, 2.0, 3.0]), 0, names)
    write_page(explanation, file)
    page.requests.clear()
    page.open(file)
    assert page.evaluate("[...document.querySelectorAll('[data-table=logits] tbody th')].map(h => h.textContent)") == [
        *names
    ]
    assert page.evaluate("document.images.length") == 0
    assert requested(page) == [file.as_uri()]
    assert page.problems == []
    assert "<img src=x" not in html(explanation)


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_the_page_is_no_wider_than_the_screen(width: int, file: Path, tmp_path: Path) -> None:
    names = ("a_class_with_a_name_that_is_very_long_indeed_and_has_no_blank", *CLASSES[1:])
    write_page(explain_logits(torch.tensor([2.0, 1.0, 0.1, -3000.0]), 0, names, label_smoothing=0.1), file)
    with Browser(tmp_path / "profile") as phone:
        phone.resize(width, 700)
        phone.dark(True)
        phone.open(file)
        assert phone.evaluate("document.documentElement.scrollWidth") == width
        assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
        assert (
            phone.evaluate(
                "Math.min(...[...document.querySelectorAll('input, button, select')].map(e => e.offsetHeight))"
            )
            >= 32
        )
        assert phone.problems == []


def test_without_scripts_the_steps_are_there_as_text(file: Path, tmp_path: Path) -> None:
    write_page(explain_logits(torch.tensor([2.0, 1.0, 0.1, -3.0]), 0, CLASSES), file)
    with Browser(tmp_path / "profile") as plain:
        plain.call("Emulation.setScriptExecutionDisabled", value=True)
        plain.open(file)
        plain.call("Emulation.setScriptExecutionDisabled", value=False)
        assert "Cross-entropy: -L log S" in plain.evaluate("document.querySelector('noscript').innerText")
