"""A run's pictures, drawn by matplotlib: the same run gives the same bytes."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...inference.analysis import Findings, Judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_LOSS = 1e-6  # nats; what lies below is drawn there
MOST_NUMBERED = 20  # classes whose confusion matrix has its counts written in
MOST_NAMED = 40  # classes whose names stand at the matrix's sides


@dataclass(frozen=True)
class Ink:
    """The colours of one theme. Blue is training and what is right, orange what is held out and what is wrong."""

    text: str
    faint: str
    grid: str
    blue: str
    orange: str
    paper: str


LIGHT = Ink(text="#1f2328", faint="#656d76", grid="#d8dee4", blue="#0969da", orange="#d1570c", paper="#ffffff")
DARK = Ink(text="#e6edf3", faint="#9198a1", grid="#30363d", blue="#58a6ff", orange="#f0883e", paper="#161b22")


@dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        name: its file's, without ending.
        draw: draws it in one theme.
        alt: what it shows, for who cannot see it.
    """

    name: str
    draw: Callable[[Findings, Ink], "Figure"]
    alt: Callable[[Findings], str]


def render(picture: Picture, findings: Findings, ink: Ink, kind: str) -> bytes:
    """A picture as a file's content.

    Args:
        picture: which.
        findings: of what.
        ink: its colours.
        kind: `svg` (no background) or `png` (on paper, 192 dots an inch).
    """
    out = io.BytesIO()
    with in_style(ink):
        figure = picture.draw(findings, ink)
        if kind == "svg":
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(out, format="png", dpi=192, facecolor=ink.paper, metadata={"Software": None})
    return out.getvalue()


@contextmanager
def in_style(ink: Ink) -> Iterator[None]:
    """Matplotlib as it ships, whatever the user's own settings, in one theme's colours; text stays text in an SVG."""
    from matplotlib import style

    ours = {
        "svg.fonttype": "none",
        "svg.hashsalt": "softmaxce",  # names inside the file do not change from run to run
        "text.parse_math": False,  # a class may be called $x$
        "axes.facecolor": "none",
        "axes.edgecolor": ink.faint,
        "axes.labelcolor": ink.text,
        "axes.titlecolor": ink.text,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": ink.grid,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.labelcolor": ink.text,
        "text.color": ink.text,
        "xtick.color": ink.faint,
        "ytick.color": ink.faint,
        "xtick.labelcolor": ink.text,
        "ytick.labelcolor": ink.text,
        "lines.linewidth": 1.8,
    }
    logger = logging.getLogger("matplotlib.font_manager")
    with style.context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name's script that the font lacks
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def axes_of(width: float = 4.8, height: float = 3.3) -> tuple["Figure", "Axes"]:
    """An empty picture, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


# -- curves -----------------------------------------------------------------------------------------------------------


def _series(findings: Findings, split: str, figure: str) -> tuple[list[int], list[float]]:
    rows = [(line["epoch"], line[split][figure]) for line in findings.epochs if split in line]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _held_out(findings: Findings) -> str | None:
    """The split that was watched while the run trained."""
    return next((name for name in ("validation", "test") if any(name in line for line in findings.epochs)), None)


def _curves(findings: Findings, ink: Ink, figure: str, title: str, label: str) -> tuple["Figure", "Axes"]:
    picture, axes = axes_of()
    marker = "o" if len(findings.epochs) <= 12 else ""
    axes.plot(*_series(findings, "train", figure), color=ink.blue, marker=marker, markersize=4, label="train")
    if (held_out := _held_out(findings)) is not None:
        axes.plot(
            *_series(findings, held_out, figure),
            color=ink.orange,
            marker=marker,
            markersize=4,
            linestyle=(0, (5, 1.5)),
            label=held_out,
        )
    best = findings.record.get("best_epoch")
    if best and len(findings.epochs) > 1:
        axes.axvline(best, color=ink.faint, linewidth=1, linestyle=":", label=f"best epoch, {best}")
    axes.set(title=title, xlabel="epoch", ylabel=label)
    whole_numbers(axes)
    axes.legend()
    return picture, axes


def whole_numbers(axes: "Axes") -> None:
    """Put the marks below on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def draw_loss(findings: Findings, ink: Ink) -> "Figure":
    """The loss, epoch by epoch; on a logarithmic scale where it falls to less than a tenth."""
    picture, axes = _curves(findings, ink, "loss", "Loss", "nats an image")
    values = [v for split in ("train", _held_out(findings) or "train") for v in _series(findings, split, "loss")[1]]
    values = [v for v in values if np.isfinite(v)]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.set_ylabel("nats an image, logarithmic")
        _plain_log(axes.yaxis)
    return picture


def draw_accuracy(findings: Findings, ink: Ink) -> "Figure":
    """The share of images predicted right, epoch by epoch."""
    return _curves(findings, ink, "accuracy", "Accuracy", "share of images right")[0]


def draw_learning_rate(findings: Findings, ink: Ink) -> "Figure":
    """The learning rate at each epoch's last step."""
    picture, axes = axes_of()
    epochs = [line["epoch"] for line in findings.epochs]
    rates = [line["learning_rate"] for line in findings.epochs]
    axes.plot(epochs, rates, color=ink.blue, marker="o" if len(epochs) <= 12 else "", markersize=4)
    axes.set(title="Learning rate", xlabel="epoch", ylabel="at the epoch's last step")
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    return picture


def _plain_log(axis: Any) -> None:
    """Ticks as plain numbers: without mathematical markup, 10^-3 would be written as its source."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps = (1.0,) if high > 50 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# -- where it is wrong ------------------------------------------------------------------------------------------------


def draw_confusion(findings: Findings, ink: Ink) -> "Figure":
    """A row a label, a column a prediction; hits blue, misses orange, shaded so that the few are seen."""
    from matplotlib.colors import to_rgb

    names, counts = findings.classes, np.array(findings.judged[0].figures.confusion)
    num = len(names)
    side = min(9.0, max(4.2, 0.46 * num + 1.4)) if num <= MOST_NUMBERED else 7.5
    picture, axes = axes_of(side + 0.4, side)
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    diagonal = np.eye(num, dtype=bool)
    strength = np.where(diagonal, share, np.where(counts > 0, 0.12 + 0.88 * np.sqrt(np.minimum(1, 4 * share)), 0))
    blue, orange, paper = (np.array(to_rgb(color)) for color in (ink.blue, ink.orange, ink.paper))
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


def draw_losses(findings: Findings, ink: Ink) -> "Figure":
    """How many images have which loss; both scales are logarithmic, or the few that matter would not be seen."""
    picture, axes = axes_of()
    losses, hits = findings.losses.numpy().clip(SMALLEST_LOSS), findings.hits.numpy()
    edges = np.geomspace(SMALLEST_LOSS, max(10.0, losses.max() * 1.01), 36).tolist()
    for chosen, color, label in ((hits, ink.blue, "right"), (~hits, ink.orange, "wrong")):
        name = f"{label} ({chosen.sum():,})"
        axes.hist(losses[chosen], edges, color=color, alpha=0.35, histtype="stepfilled", label=name)
        axes.hist(losses[chosen], edges, color=color, histtype="step", linewidth=1.4)
    half = float(np.log(2))
    axes.axvline(half, color=ink.faint, linewidth=1, linestyle=":", label=f"the label has ½ ({half:.2f})")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    axes.set(title="Loss of each image", xlabel="−log of the label's probability, nats", ylabel="images")
    axes.set_ylim(bottom=0.7, top=axes.get_ylim()[1] * 30)  # room for the legend
    axes.legend(loc="upper left", fontsize=9)
    return picture


# -- what its probabilities mean --------------------------------------------------------------------------------------


def draw_reliability(findings: Findings, ink: Ink) -> "Figure":
    """Of the images it is so sure of, how many are right; on the diagonal its confidence means what it says."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes, below = picture.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot((0, 1), (0, 1), color=ink.faint, linewidth=1, linestyle=":")
    colors = (ink.orange, ink.blue) if len(findings.judged) > 1 else (ink.blue,)
    for judgement, color in zip(findings.judged, colors, strict=True):
        _draw_bins(axes, judgement, color, last=judgement is findings.final)
        edges = np.linspace(0, 1, len(judgement.bins) + 1)
        counts = [max(0.5, bin.images) for bin in judgement.bins]
        below.stairs(counts, edges, baseline=0.5, color=color, linewidth=1.4)
    axes.set(title="Reliability", ylabel="share of them right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="best", fontsize=9)
    below.set(xlabel="confidence: the largest probability", ylabel="images", yscale="log")
    below.set_ylim(bottom=0.5)
    _plain_log(below.yaxis)
    return picture


def _draw_bins(axes: "Axes", judgement: Judgement, color: str, *, last: bool) -> None:
    from scipy.stats import binomtest

    filled = [bin for bin in judgement.bins if bin.images]
    x = np.array([bin.confidence for bin in filled])
    y = np.array([bin.hits / bin.images for bin in filled])
    ranges = [binomtest(bin.hits, bin.images).proportion_ci(0.95, method="wilson") for bin in filled]
    low = np.array([y - r.low for y, r in zip(y, ranges, strict=True)]).clip(0)
    high = np.array([r.high - y for y, r in zip(y, ranges, strict=True)]).clip(0)
    name = "as trained" if judgement.temperature == 1 else f"temperature {judgement.temperature:.3g}"
    label = f"{name}, ECE {judgement.figures.ece:.4f}"
    # No line from bin to bin: it would tell of a trend where one image may stand beside thousands.
    marks: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 1.2, "zorder": 3 + last}
    axes.errorbar(x, y, (low, high), color=color, label=label, **marks)


# -- all of them ------------------------------------------------------------------------------------------------------


def _curve_alt(findings: Findings, figure: str) -> str:
    parts = []
    for split in ("train", _held_out(findings)):
        values = _series(findings, split, figure)[1] if split else []
        if values:
            parts.append(f"{split} from {values[0]:.4f} to {values[-1]:.4f}")
    return f"{figure} over {len(findings.epochs)} epochs: {', '.join(parts)}"


def _rate_alt(findings: Findings) -> str:
    rates = [line["learning_rate"] for line in findings.epochs]
    if not rates:
        return "learning rate: no epochs"
    return f"learning rate over {len(rates)} epochs, between {min(rates):.3g} and {max(rates):.3g}"


def _confusion_alt(findings: Findings) -> str:
    wrong, images = int((~findings.hits).sum()), len(findings.hits)
    return f"confusion matrix of {len(findings.classes)} classes; {wrong} of {images} images lie off the diagonal"


def _losses_alt(findings: Findings) -> str:
    return f"histogram of the loss of {len(findings.hits)} images; the median is {findings.losses.median():.3g} nats"


def _reliability_alt(findings: Findings) -> str:
    parts = [f"{j.figures.ece:.4f} at temperature {j.temperature:.3g}" for j in findings.judged]
    return f"reliability diagram; expected calibration error {', '.join(parts)}"


PICTURES = (
    Picture("loss", draw_loss, lambda findings: _curve_alt(findings, "loss")),
    Picture("accuracy", draw_accuracy, lambda findings: _curve_alt(findings, "accuracy")),
    Picture("learning_rate", draw_learning_rate, _rate_alt),
    Picture("confusion", draw_confusion, _confusion_alt),
    Picture("reliability", draw_reliability, _reliability_alt),
    Picture("loss_histogram", draw_losses, _losses_alt),
)
