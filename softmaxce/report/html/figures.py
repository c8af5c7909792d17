"""A run's figures, drawn by matplotlib: the same run gives the same bytes."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import writable
from ...inference.analysis import RunAnalysis, TemperatureResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_LOSS = 1e-6  # nats; smaller losses are drawn there
MOST_NUMBERED = 20  # classes: the confusion matrix shows its counts
MOST_NAMED = 40  # classes: the confusion matrix shows their names
PROGRAM = "softmaxce"  # which has made a picture, as its file says


@dataclass(frozen=True)
class Colors:
    """The colors of one theme: blue for training and correct, orange for held-out data and wrong."""

    text: str
    faint: str
    grid: str
    blue: str
    orange: str
    paper: str


LIGHT = Colors(text="#1f2328", faint="#656d76", grid="#d8dee4", blue="#0969da", orange="#d1570c", paper="#ffffff")
DARK = Colors(text="#e6edf3", faint="#9198a1", grid="#30363d", blue="#58a6ff", orange="#f0883e", paper="#161b22")


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        name: its file's, without extension.
        draw: draws it in one theme.
        alt: its text alternative.
    """

    name: str
    draw: Callable[[RunAnalysis, Colors], "Figure"]
    alt: Callable[[RunAnalysis], str]


@dataclass(frozen=True)
class Drawing:
    """A picture as the contents of files: SVG with a transparent background in both themes, and a light PNG."""

    light: bytes
    dark: bytes
    png: bytes


def render(picture: Picture, analysis: RunAnalysis) -> Drawing:
    """Draw a picture in both themes."""
    light, png = io.BytesIO(), io.BytesIO()
    with themed(LIGHT):
        figure = picture.draw(analysis, LIGHT)
        _save_svg(figure, light)
        figure.set_layout_engine("none")  # it has its layout; to compute it takes as long as to draw
        figure.savefig(png, format="png", dpi=192, facecolor=LIGHT.paper, metadata={"Software": None})
    dark = io.BytesIO()
    with themed(DARK):
        _save_svg(picture.draw(analysis, DARK), dark)
    return Drawing(light.getvalue(), dark.getvalue(), png.getvalue())


def picture_file(draw: Callable[[Colors], "Figure"], suffix: str) -> bytes:
    """The content of an SVG or PNG file with a figure on white, which says that softmaxce has made it."""
    content, svg = io.BytesIO(), suffix.lower() == ".svg"
    made_by = {"Creator": PROGRAM, "Date": None} if svg else {"Software": PROGRAM}
    with themed(LIGHT):
        figure = draw(LIGHT)
        figure.savefig(content, format=suffix[1:].lower(), dpi=150, facecolor=LIGHT.paper, metadata=made_by)
    return content.getvalue()


def is_picture_file(file: Path) -> bool:
    """Whether a file is one that picture_file has made."""
    with writable(file), file.open("rb") as stream:
        head = stream.read(4096)
    return any(mark.encode() in head for mark in (f"Software\0{PROGRAM}", f"<dc:title>{PROGRAM}</dc:title>"))


def _save_svg(figure: "Figure", out: io.BytesIO) -> None:
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def render_all(analysis: RunAnalysis) -> dict[str, Drawing]:
    """The report's pictures, by name."""
    return {picture.name: render(picture, analysis) for picture in PICTURES}


@contextmanager
def themed(colors: Colors) -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's own settings, in one theme's colors; text stays text in an SVG."""
    from matplotlib import style

    ours = {
        "svg.fonttype": "none",
        "svg.hashsalt": "softmaxce",  # ids in the file do not change from run to run
        "text.parse_math": False,  # a class may be called $x$
        "axes.facecolor": "none",
        "axes.edgecolor": colors.faint,
        "axes.labelcolor": colors.text,
        "axes.titlecolor": colors.text,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": colors.grid,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.labelcolor": colors.text,
        "text.color": colors.text,
        "xtick.color": colors.faint,
        "ytick.color": colors.faint,
        "xtick.labelcolor": colors.text,
        "ytick.labelcolor": colors.text,
        "lines.linewidth": 1.8,
    }
    logger = logging.getLogger("matplotlib.font_manager")
    with style.context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # characters that the font lacks
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def new_axes(width: float = 4.8, height: float = 3.3) -> tuple["Figure", "Axes"]:
    """An empty figure; the size is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


# -- curves -----------------------------------------------------------------------------------------------------------


def _series(analysis: RunAnalysis, split: str, metric: str) -> tuple[list[int], list[float]]:
    rows = [(line["epoch"], line[split][metric]) for line in analysis.epochs if split in line]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _held_out(analysis: RunAnalysis) -> str | None:
    """The split that was evaluated after each epoch."""
    return next((name for name in ("validation", "test") if any(name in line for line in analysis.epochs)), None)


def _curves(analysis: RunAnalysis, colors: Colors, metric: str, title: str, label: str) -> tuple["Figure", "Axes"]:
    picture, axes = new_axes()
    marker = "o" if len(analysis.epochs) <= 12 else ""
    axes.plot(*_series(analysis, "train", metric), color=colors.blue, marker=marker, markersize=4, label="train")
    if (held_out := _held_out(analysis)) is not None:
        axes.plot(
            *_series(analysis, held_out, metric),
            color=colors.orange,
            marker=marker,
            markersize=4,
            linestyle=(0, (5, 1.5)),
            label=held_out,
        )
    best = analysis.record.get("best_epoch")
    if best and len(analysis.epochs) > 1:
        axes.axvline(best, color=colors.faint, linewidth=1, linestyle=":", label=f"best epoch, {best}")
    axes.set(title=title, xlabel="epoch", ylabel=label)
    integer_ticks(axes)
    axes.legend()
    return picture, axes


def integer_ticks(axes: "Axes") -> None:
    """Put the ticks of the x axis on integers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def draw_loss(analysis: RunAnalysis, colors: Colors) -> "Figure":
    """The loss, epoch by epoch; on a logarithmic scale where it falls to less than a tenth."""
    picture, axes = _curves(analysis, colors, "loss", "Loss", "nats per image")
    values = [v for split in ("train", _held_out(analysis) or "train") for v in _series(analysis, split, "loss")[1]]
    values = [v for v in values if np.isfinite(v)]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.set_ylabel("nats per image, logarithmic")
        plain_log(axes.yaxis)
    return picture


def draw_accuracy(analysis: RunAnalysis, colors: Colors) -> "Figure":
    """The accuracy after each epoch."""
    return _curves(analysis, colors, "accuracy", "Accuracy", "fraction of images correct")[0]


def draw_learning_rate(analysis: RunAnalysis, colors: Colors) -> "Figure":
    """The learning rate at each epoch's last step."""
    picture, axes = new_axes()
    epochs = [line["epoch"] for line in analysis.epochs]
    rates = [line["learning_rate"] for line in analysis.epochs]
    axes.plot(epochs, rates, color=colors.blue, marker="o" if len(epochs) <= 12 else "", markersize=4)
    axes.set(title="Learning rate", xlabel="epoch", ylabel="at the epoch's last step")
    axes.set_ylim(bottom=0)
    integer_ticks(axes)
    return picture


def plain_log(axis: Any) -> None:
    """Ticks as plain numbers; with `text.parse_math` off, 10^-3 would be shown as its source."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps = (1.0,) if high > 50 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# -- mistakes --------------------------------------------------------------------------------------------------------


def draw_confusion(analysis: RunAnalysis, colors: Colors) -> "Figure":
    """Rows are labels, columns predictions; correct is blue, wrong orange, with small counts still visible."""
    from matplotlib.colors import to_rgb

    names, counts = analysis.classes, np.array(analysis.results[0].metrics.confusion)
    num = len(names)
    side = min(9.0, max(4.2, 0.46 * num + 1.4)) if num <= MOST_NUMBERED else 7.5
    picture, axes = new_axes(side + 0.4, side)
    fraction = counts / np.maximum(1, counts.sum(1, keepdims=True))
    diagonal = np.eye(num, dtype=bool)
    strength = np.where(diagonal, fraction, np.where(counts > 0, 0.12 + 0.88 * np.sqrt(np.minimum(1, 4 * fraction)), 0))
    blue, orange, paper = (np.array(to_rgb(color)) for color in (colors.blue, colors.orange, colors.paper))
    full = np.where(diagonal[..., None], blue, orange)
    cells = paper + strength[..., None] * 0.85 * (full - paper)  # [K, K, 3]
    axes.imshow(cells, interpolation="none", aspect="equal")
    axes.grid(visible=False)
    axes.set(title="Confusion matrix", xlabel="predicted", ylabel="label")
    if num <= MOST_NAMED:
        size = 9 if num <= MOST_NUMBERED else 6
        short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
        axes.set_xticks(range(num), short, rotation=45 if max(map(len, short)) > 2 else 0, fontsize=size)
        axes.set_yticks(range(num), short, fontsize=size)
        if max(map(len, short)) > 2:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    if num <= MOST_NUMBERED:
        size = 9 if counts.max() < 10_000 else 7
        for (row, column), count in np.ndenumerate(counts):
            if count:
                light = cells[row, column] @ (0.299, 0.587, 0.114) > 0.55
                color = LIGHT.text if light else "#ffffff"
                axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=size)
    return picture


def draw_losses(analysis: RunAnalysis, colors: Colors) -> "Figure":
    """A histogram of the images' losses; both scales are logarithmic, so that the few large losses are visible."""
    picture, axes = new_axes()
    losses, correct = analysis.losses.numpy().clip(SMALLEST_LOSS), analysis.correct.numpy()
    edges = np.geomspace(SMALLEST_LOSS, max(10.0, losses.max() * 1.01), 36).tolist()
    for mask, color, label in ((correct, colors.blue, "correct"), (~correct, colors.orange, "wrong")):
        name = f"{label} ({mask.sum():,})"
        axes.hist(losses[mask], edges, color=color, alpha=0.35, histtype="stepfilled", label=name)
        axes.hist(losses[mask], edges, color=color, histtype="step", linewidth=1.4)
    half = float(np.log(2))
    axes.axvline(half, color=colors.faint, linewidth=1, linestyle=":", label=f"p(label) = ½ ({half:.2f})")
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    axes.set(title="Loss of each image", xlabel="−log of the label's probability, nats", ylabel="images")
    axes.set_ylim(bottom=0.7, top=axes.get_ylim()[1] * 30)  # room for the legend
    axes.legend(loc="upper left", fontsize=9)
    return picture


# -- calibration -----------------------------------------------------------------------------------------------------


def draw_reliability(analysis: RunAnalysis, colors: Colors) -> "Figure":
    """Accuracy over confidence; on the diagonal the model is calibrated."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes, below = picture.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot((0, 1), (0, 1), color=colors.faint, linewidth=1, linestyle=":")
    series = (colors.orange, colors.blue) if len(analysis.results) > 1 else (colors.blue,)
    for result, color in zip(analysis.results, series, strict=True):
        _draw_bins(axes, result, color, last=result is analysis.final)
        edges = np.linspace(0, 1, len(result.bins) + 1)
        counts = [max(0.5, bin.images) for bin in result.bins]
        below.stairs(counts, edges, baseline=0.5, color=color, linewidth=1.4)
    axes.set(title="Reliability", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="best", fontsize=9)
    below.set(xlabel="confidence: the largest probability", ylabel="images", yscale="log")
    below.set_ylim(bottom=0.5)
    plain_log(below.yaxis)
    return picture


def _draw_bins(axes: "Axes", result: TemperatureResult, color: str, *, last: bool) -> None:
    from scipy.stats import binomtest

    filled = [bin for bin in result.bins if bin.images]
    x = np.array([bin.confidence for bin in filled])
    y = np.array([bin.num_correct / bin.images for bin in filled])
    ranges = [binomtest(bin.num_correct, bin.images).proportion_ci(0.95, method="wilson") for bin in filled]
    low = np.array([y - r.low for y, r in zip(y, ranges, strict=True)]).clip(0)
    high = np.array([r.high - y for y, r in zip(y, ranges, strict=True)]).clip(0)
    name = "as trained" if result.temperature == 1 else f"temperature {result.temperature:.3g}"
    label = f"{name}, ECE {result.metrics.ece:.4f}"
    # No line from bin to bin: it would suggest a trend, though one bin may hold one image and the next thousands.
    marks: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 1.2, "zorder": 3 + last}
    axes.errorbar(x, y, (low, high), color=color, label=label, **marks)


# -- all figures ------------------------------------------------------------------------------------------------------


def _curve_alt(analysis: RunAnalysis, metric: str) -> str:
    parts = []
    for split in ("train", _held_out(analysis)):
        values = _series(analysis, split, metric)[1] if split else []
        if values:
            parts.append(f"{split} from {values[0]:.4f} to {values[-1]:.4f}")
    return f"{metric} over {len(analysis.epochs)} epochs: {', '.join(parts)}"


def _rate_alt(analysis: RunAnalysis) -> str:
    rates = [line["learning_rate"] for line in analysis.epochs]
    if not rates:
        return "learning rate: no epochs"
    return f"learning rate over {len(rates)} epochs, between {min(rates):.3g} and {max(rates):.3g}"


def _confusion_alt(analysis: RunAnalysis) -> str:
    wrong, images = int((~analysis.correct).sum()), len(analysis.correct)
    return f"confusion matrix of {len(analysis.classes)} classes; {wrong} of {images} images are off the diagonal"


def _losses_alt(analysis: RunAnalysis) -> str:
    return f"histogram of the loss of {len(analysis.correct)} images; the median is {analysis.losses.median():.3g} nats"


def _reliability_alt(analysis: RunAnalysis) -> str:
    parts = [f"{j.metrics.ece:.4f} at temperature {j.temperature:.3g}" for j in analysis.results]
    return f"reliability diagram; expected calibration error {', '.join(parts)}"


PICTURES = (
    Picture("loss", draw_loss, lambda analysis: _curve_alt(analysis, "loss")),
    Picture("accuracy", draw_accuracy, lambda analysis: _curve_alt(analysis, "accuracy")),
    Picture("learning_rate", draw_learning_rate, _rate_alt),
    Picture("confusion", draw_confusion, _confusion_alt),
    Picture("reliability", draw_reliability, _reliability_alt),
    Picture("loss_histogram", draw_losses, _losses_alt),
)
