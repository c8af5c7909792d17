"""The report shows the metrics of `eval`, is drawn alike each time, and is self-contained in a real browser."""

import ast
import base64
import io
import json
import math
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas
import pytest
import torch
import typer
from PIL import Image
from scipy.special import softmax
from torch.nn import functional
from typer.testing import CliRunner

from softmaxce.explain.attribution import grad_cam, last_feature_map, logit_of
from softmaxce.inference import analysis as analysis_module
from softmaxce.inference.analysis import MISTAKES, RunAnalysis, analyze
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.report.html.common import percent
from softmaxce.report.html.figures import PICTURES, Drawing, Picture, render, render_all
from softmaxce.report.html.gallery import gallery
from softmaxce.report.html.report_page import html
from softmaxce.report.html.write import write_report
from softmaxce.training.metrics import reliability

from ..browser import Browser
from ..helpers import Softmaxce

ROOT = Path(__file__).parents[2]
LINKS = "[...document.querySelectorAll('#gallery a')].map(link => link.href)"

HARD = """\
epochs: 3
data: {name: synthetic, train: 200, test: 120, classes: 6, noise: 0.9, batch_size: 32, validation: 0.2}
model: {name: cnn, channels: [4], hidden: 16, batch_norm: false}
optimizer: {name: adam, lr: 0.01}
"""


@pytest.fixture(scope="module")
def run(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that makes mistakes."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "hard.yaml").write_text(HARD)
    done = CliRunner().invoke(app, ["train", "--config", str(folder / "hard.yaml"), "--output", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def analysis(run: Path) -> RunAnalysis:
    return analyze(run)


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    """The report's page, in a folder of its own."""
    return write_report(run, run.parent / "a site" / "my page.html").page


@pytest.fixture(scope="module")
def drawings(analysis: RunAnalysis) -> dict[str, Drawing]:
    return render_all(analysis)


# -- its content -----------------------------------------------------------------------------------------------------


def test_its_metrics_are_those_of_eval(app: typer.Typer, run: Path, analysis: RunAnalysis) -> None:
    printed = json.loads(CliRunner().invoke(app, ["eval", str(run), "--json"]).stdout)
    for name in ("loss", "accuracy", "nll", "brier", "ece", "images"):
        assert getattr(analysis.results[0].metrics, name) == pytest.approx(printed[name], rel=1e-12), name
    assert [list(row) for row in analysis.results[0].metrics.confusion] == printed["confusion"]


def test_the_mistakes_are_sorted_by_confidence_with_scipys_probabilities(run: Path, analysis: RunAnalysis) -> None:
    evaluation = TrainedModel.open(run)
    split = evaluation.split("test")
    assert analysis.mistakes
    before = 1.0
    for mistake in analysis.mistakes:
        image = mistake.image.unsqueeze(0).float() / 255
        mean, std = (
            torch.tensor(v).view(1, -1, 1, 1) for v in (evaluation.preprocessing.mean, evaluation.preprocessing.std)
        )
        with torch.no_grad():
            expected = softmax(evaluation.model((image - mean) / std)[0].double().numpy())
        label = int(split.labels[mistake.index])
        assert mistake.label == analysis.classes[label]
        assert mistake.top[0][0] != mistake.label
        assert [p for _, p in mistake.top] == pytest.approx(sorted(expected, reverse=True)[:3], rel=1e-5)
        assert mistake.label_probability == pytest.approx(expected[label], rel=1e-4)
        assert mistake.loss == pytest.approx(-math.log(expected[label]), rel=1e-4)
        assert mistake.top[0][1] <= before
        before = mistake.top[0][1]


def test_the_bins_are_those_of_a_plain_loop_and_hold_every_image() -> None:
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(500, 4)) * 2, axis=1)
    labels = rng.integers(4, size=500)
    bins = reliability(probabilities, labels)
    assert sum(bin.images for bin in bins) == 500
    for index, bin in enumerate(bins):
        inside = [(row.max(), row.argmax() == label) for row, label in zip(probabilities, labels, strict=True)]
        inside = [(p, hit) for p, hit in inside if index / 15 < p <= (index + 1) / 15]
        assert bin.images == len(inside)
        assert bin.num_correct == sum(hit for _, hit in inside)
        if inside:
            assert bin.confidence == pytest.approx(sum(p for p, _ in inside) / len(inside))


def test_the_page_tells_the_figures_the_command_and_the_versions(
    run: Path, analysis: RunAnalysis, drawings: dict[str, Drawing]
) -> None:
    page = html(analysis, drawings, {})
    figures = analysis.final.metrics
    right = round(figures.accuracy * figures.images)
    assert f"{right} of 120 test images are classified correctly: {percent(figures.accuracy)}." in page
    assert f"softmaxce train --config {run}/config.yaml" in page
    for text in (f"{figures.ece:.4f}", torch.__version__, "hidden:", "class5"):
        assert text in page


def test_an_image_has_a_link_if_it_has_an_explanation(analysis: RunAnalysis, drawings: dict[str, Drawing]) -> None:
    index = analysis.mistakes[1].index
    page = html(analysis, drawings, {index: f"report/test-{index}.html"})
    assert page.count("step by step</a>") == 1
    assert f'href="report/test-{index}.html"' in page


def test_before_calibration_it_shows_the_temperature_that_calibrate_then_stores(app: typer.Typer, run: Path) -> None:
    copy = run.parent / "calibrated"
    shutil.copytree(run, copy)
    before = analyze(copy)
    assert not before.calibrated
    assert before.final.temperature == 1
    done = CliRunner().invoke(app, ["calibrate", str(copy), "--json"])
    stored = json.loads(done.stdout)
    after = analyze(copy)
    assert after.calibrated
    assert [result.temperature for result in before.results] == pytest.approx([1, stored["temperature"]])
    assert [result.metrics.ece for result in after.results] == pytest.approx(stored["test"]["ece"], abs=1e-9)
    assert after.final.temperature == stored["temperature"]
    assert after.mistakes[0].top[0][1] != before.mistakes[0].top[0][1]


def test_where_no_temperature_can_be_fitted_it_says_why(run: Path, drawings: dict[str, Drawing]) -> None:
    found = analyze(run, "validation")
    assert len(found.results) == 1
    assert f"No calibrated curve is drawn: {found.unfitted}." in html(found, drawings, {})
    assert "the same images that it is evaluated on" in found.unfitted


def test_each_class_has_its_most_confident_mistakes_as_far_as_all_fit() -> None:
    labels = [0] * 30 + [1, 2, 1, 2, 2]  # of all mistakes, the most confident first
    assert analysis_module._shown([*range(100, 135)], labels) == [*range(100, 124), *range(130, 135)]
    many = [*range(200)]
    assert analysis_module._shown(many, many) == many[:120]  # 200 classes with one mistake each
    assert len(analysis_module._shown(many, [k % 20 for k in many])) == 120


def test_the_gallery_has_grad_cam_of_the_predicted_class_and_of_the_label(analysis: RunAnalysis) -> None:
    shown = gallery(analysis, {})
    mistake = shown.entries[0].mistake
    model = analysis.model
    mean, std = model.preprocessing.mean[0], model.preprocessing.std[0]
    image = (mistake.image[None].float() / 255 - mean) / std
    layer = last_feature_map(model.model, image)
    names = (mistake.top[0][0], mistake.label)
    cams = [grad_cam(model.model, image, logit_of(analysis.classes.index(name)), layer) for name in names]
    large = [functional.interpolate(cam[None, None], image.shape[2:], mode="bilinear")[0, 0] for cam in cams]
    strongest = float(torch.stack(large).max())
    assert strongest > 0
    for (caption, url), expected, role, name in zip(
        shown.entries[0].maps, large, ("predicted", "label"), names, strict=True
    ):
        assert caption == f"{role}: {name}"
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as drawn:
            red, green, _ = np.asarray(drawn.convert("RGB"), dtype=float).transpose(2, 0, 1)
        # over gray g the color is g (1 - s) + (230, 30, 40) s
        np.testing.assert_allclose((red - green) / 200, 0.75 * expected / strongest, atol=0.006)
    assert "It is not the outline of an object" in shown.about
    assert "Adebayo et al. 2018" in shown.about


def test_above_its_limit_the_table_of_predictions_is_left_out_with_the_command_that_writes_it(
    run: Path, analysis: RunAnalysis, drawings: dict[str, Drawing]
) -> None:
    assert 'id="filter-label"' in html(analysis, drawings, {}, most_predictions=120)
    page = unescape(html(analysis, drawings, {}, most_predictions=119))
    assert 'id="filter-label"' not in page
    assert "is left out, because the split has more than 119 images" in page
    assert f"softmaxce eval {run} --split test --save-predictions all.csv" in page


# -- how it is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_the_same_bytes_again_whatever_matplotlib_is_set_to(
    picture: Picture, analysis: RunAnalysis, drawings: dict[str, Drawing]
) -> None:
    first = drawings[picture.name]
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "pink", "svg.hashsalt": None}):
        assert render(picture, analysis) == first
    root = ElementTree.fromstring(first.light)
    assert root.tag.endswith("svg")
    assert first.dark != first.light


def test_names_are_drawn_as_they_are_written(app: typer.Typer, tmp_path: Path) -> None:
    names = ("$a$ & <b>", "<img src=x onerror=alert(1)>", "猫")
    rng = np.random.default_rng(0)
    for name in names:
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(6):
            Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / f"<i>{index}.png")
    (tmp_path / "own.yaml").write_text(
        "epochs: 1\ndata: {name: image_folder, root: photos, size: 16, in_memory: false, workers: 0}\n"
        "model: linear\noptimizer: {name: sgd, lr: 0.01}\n".replace("photos", str(tmp_path / "photos"))
    )
    done = CliRunner().invoke(
        app, ["train", "--config", str(tmp_path / "own.yaml"), "--output", str(tmp_path / "run"), "--report"]
    )
    assert done.exit_code == 0, done.output
    svg = (tmp_path / "run" / "pictures" / "confusion.svg").read_text()
    drawn = "".join(ElementTree.fromstring(svg).itertext())
    assert "$a$ & <b>" in drawn
    assert "猫" in drawn
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "run" / "report.html")
        assert browser.problems == []
        text = browser.evaluate("document.body.textContent")
        assert all(name in text for name in names)
        assert not browser.evaluate("[...document.images].some(image => !image.src.startsWith('data:'))")
        assert not browser.evaluate("document.querySelectorAll('b').length")
        assert "Grad-CAM is not shown: the model has no convolution" in text


def test_each_image_of_the_gallery_links_to_the_explanation_of_that_image(
    page: Path, analysis: RunAnalysis, tmp_path: Path
) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        for link, mistake in zip(browser.evaluate(LINKS), analysis.mistakes[:MISTAKES], strict=True):
            file = Path(unquote(urlsplit(link).path))
            assert file == page.parent / "my page" / f"test-{mistake.index}.html"
            printed = unescape(file.read_text())
            assert f"test image {mistake.index} of synthetic" in printed
            assert f"{mistake.loss:.4f}" in printed
        browser.open(file)
        assert browser.problems == []
        assert all(address.startswith(("file://", "data:")) for address in browser.requests)


class Addresses(HTMLParser):
    """Every address in a page's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]


def test_the_page_opens_in_chromium_alone_on_a_desk_and_on_a_phone(
    page: Path, analysis: RunAnalysis, tmp_path: Path
) -> None:
    parser = Addresses()
    parser.feed(page.read_text())
    assert all(address.startswith(("data:", "my%20page/test-")) for address in parser.found)
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.evaluate("document.images.length") >= 6 + len(analysis.mistakes)
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        paper = {}
        for dark in (False, True):
            browser.dark(dark)
            paper[dark] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        assert paper[False] != paper[True]
        for width in (375, 1200):
            browser.resize(width, 800)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert [address for address in browser.requests if not address.startswith("data:")] == [page.as_uri()]
        assert browser.problems == []


ROWS = "[...document.querySelectorAll('#predictions-body tr')].map(r => [...r.cells].map(c => c.textContent))"


def test_the_table_of_predictions_is_that_of_eval_and_is_sorted_and_filtered_at_the_keyboard(
    app: typer.Typer, run: Path, page: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["eval", str(run), "--save-predictions", str(tmp_path / "all.csv")])
    assert done.exit_code == 0
    table = pandas.read_csv(tmp_path / "all.csv")
    table["confidence"] = table.filter(like="probability.").max(axis=1)
    table = table[["index", "label", "prediction", "confidence", "loss"]]

    def assert_shown(expected: pandas.DataFrame) -> None:
        rows = browser.evaluate(ROWS)
        assert [[int(row[0]), *row[1:3]] for row in rows] == expected[["index", "label", "prediction"]].values.tolist()
        numbers = [[float(text) for text in row[3:]] for row in rows]
        np.testing.assert_allclose(numbers, expected[["confidence", "loss"]].to_numpy(), atol=6e-5)

    wrong = table[table.label != table.prediction]
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        status = "document.getElementById('predictions-status').textContent"
        assert_shown(table[:100])
        assert browser.evaluate(status) == "120 of 120 images, shown: 1 to 100"
        browser.evaluate("document.getElementById('next').focus()")
        browser.press("Enter")
        assert_shown(table[100:])
        assert browser.evaluate("document.getElementById('next').disabled")
        browser.evaluate("document.getElementById('filter-result').focus()")
        browser.press("ArrowDown")  # wrong
        browser.press("Tab", 2)  # over the search for an index, to the first heading
        browser.press("Tab", 4)
        browser.press("Enter")  # by loss, the largest first
        assert browser.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
        assert_shown(wrong.sort_values("loss", ascending=False))
        browser.press("Enter")
        assert_shown(wrong.sort_values("loss"))
        browser.evaluate("document.getElementById('filter-label').focus()")
        browser.press("ArrowDown", 2)  # class1
        assert_shown(wrong[wrong.label == "class1"].sort_values("loss"))
        links = "[...document.querySelectorAll('#predictions-body a')].map(a => [a.textContent, a.href])"
        assert browser.evaluate(links)
        assert all(address.endswith(f"/test-{index}.html") for index, address in browser.evaluate(links))
        assert browser.problems == []


def test_the_gallery_shows_a_class_that_is_chosen_at_the_keyboard(
    page: Path, analysis: RunAnalysis, tmp_path: Path
) -> None:
    items = "[...document.querySelectorAll('#gallery > li > img')].filter(image => image.offsetParent).map(i => i.alt)"
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert len(analysis.mistakes) > MISTAKES
        assert browser.evaluate(items) == [f"test image {one.index}" for one in analysis.mistakes[:MISTAKES]]
        browser.evaluate("document.getElementById('gallery-class').focus()")
        for name in dict.fromkeys(name for name in analysis.classes if any(m.label == name for m in analysis.mistakes)):
            browser.press("ArrowDown")
            of_class = [one for one in analysis.mistakes if one.label == name]
            assert browser.evaluate(items) == [f"test image {one.index}" for one in of_class]
            row = analysis.results[0].metrics.confusion[analysis.classes.index(name)]
            count = sum(row) - row[analysis.classes.index(name)]
            chosen = "document.getElementById('gallery-class').selectedOptions[0].textContent"
            assert browser.evaluate(chosen) == f"{name}: {len(of_class)} of {count} mistakes"
        assert browser.problems == []
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(page)
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        assert len(browser.evaluate(items)) == len(analysis.mistakes)
        assert "The table needs JavaScript." in browser.evaluate("document.querySelector('noscript').innerText")


# -- the command ------------------------------------------------------------------------------------------------------


def test_it_writes_the_page_and_the_pictures_and_prints_where(app: typer.Typer, run: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0
    assert done.stdout == f"page: {run / 'report.html'}\n"
    names = {f"{picture.name}.{kind}" for picture in PICTURES for kind in ("svg", "png")}
    assert {file.name for file in (run / "pictures").iterdir()} == names
    for file in (run / "pictures").glob("*.png"):
        Image.open(file).verify()


def test_a_page_elsewhere_leaves_the_run_folder_as_it_is(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert done.stderr.endswith(f"pictures: {tmp_path / 'page' / 'pictures'}\n")
    assert (tmp_path / "page" / "pictures" / "confusion.svg").is_file()
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_without_a_test_split_it_measures_the_validation_split(run: Path) -> None:
    assert analyze(run, "validation").split == "validation"
    assert analyze(run, "validation").results[0].metrics.images == 40


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ((), "there is no run under runs/ here"),
        (("nowhere",), "nowhere: there is no run in this folder (no run.json)"),
        ((".",), "there is no run in this folder (no run.json)"),
    ],
)
def test_what_it_cannot_report_on_is_one_line_and_status_2(
    softmaxce: Softmaxce, arguments: tuple[str, ...], printed: str
) -> None:
    done = softmaxce("report", *arguments)
    assert done.returncode == 2
    assert printed in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_output_that_is_a_folder_is_refused(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert "is a folder; name the page's file" in " ".join(done.stderr.split())


def test_matplotlib_is_imported_only_where_something_is_drawn() -> None:
    for file in sorted((ROOT / "softmaxce").rglob("*.py")) + sorted((ROOT / "cli").glob("*.py")):
        for statement in ast.parse(file.read_text()).body:  # the module's own level
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "matplotlib" for name in names), file
