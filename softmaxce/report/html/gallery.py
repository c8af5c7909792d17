"""The report's gallery of mistakes: each image, and Grad-CAM over it for the predicted class and for the label."""

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ...data.pictures import as_picture
from ...explain.attribution import Attribution
from ...explain.trained import grad_cams
from ...inference.analysis import MISTAKES, Mistake, RunAnalysis
from ..attribution import CAUTION, TITLES, meaning, overlay, scale
from .common import photo_url

LARGEST = 192  # pixels: the longer side that a larger image is reduced to
MAP = 96  # likewise of a map


@dataclass(frozen=True)
class Entry:
    """One image of the gallery.

    Attributes:
        mistake: the image and its prediction.
        image: as a data URL.
        maps: (the class, the map over the image as a data URL).
        link: the address of its explanation; None if it has none.
    """

    mistake: Mistake
    image: str
    maps: tuple[tuple[str, str], ...]
    link: str | None


@dataclass(frozen=True)
class Gallery:
    """All images, and what is said of them.

    Attributes:
        entries: the most confident mistake first.
        first: how many are shown before a class is chosen.
        classes: of each class with an image here: (name, images here, mistakes in all).
        about: what the maps are and are not, or why there are none.
        pixelated: whether the images are so small that they are enlarged without interpolation.
    """

    entries: tuple[Entry, ...]
    first: int
    classes: tuple[tuple[str, int, int], ...]
    about: str
    pixelated: bool


def gallery(analysis: RunAnalysis, links: Mapping[int, str]) -> Gallery:
    """The gallery of a run's mistakes; `links` are the addresses of explanations, by the mistake's index."""
    mistakes = analysis.mistakes
    pairs = [[analysis.classes.index(name) for name in (one.top[0][0], one.label)] for one in mistakes]
    cams = grad_cams(analysis.model, [one.image for one in mistakes], pairs)
    about, all_maps = _about(cams), [[] for _ in mistakes] if isinstance(cams, str) else cams
    entries = []
    for one, maps in zip(mistakes, all_maps, strict=True):
        largest = scale(maps) if maps else 0.0
        names = (f"predicted: {one.top[0][0]}", f"label: {one.label}")
        urls = [_image_url(overlay(one.image, cam.values, largest), MAP) for cam in maps]
        shown = tuple(zip(names, urls, strict=True)) if urls else ()
        entries.append(Entry(one, _image_url(one.image, LARGEST), shown, links.get(one.index)))
    return Gallery(
        entries=tuple(entries),
        first=min(MISTAKES, len(entries)),
        classes=_counts(analysis),
        about=about,
        pixelated=bool(mistakes) and max(mistakes[0].image.shape[1:]) <= LARGEST,
    )


def _about(cams: list[list[Attribution]] | str) -> str:
    if isinstance(cams, str):
        return f"Grad-CAM is not shown: {cams}."
    if not cams:
        return ""
    what = f"Below each image, {TITLES['grad_cam']} for the predicted class and for the label, on one scale."
    return f"{what} {meaning(cams[0][0])} {CAUTION}"


def _counts(analysis: RunAnalysis) -> tuple[tuple[str, int, int], ...]:
    here = [mistake.label for mistake in analysis.mistakes]
    rows = zip(analysis.classes, analysis.results[0].metrics.confusion, strict=True)
    wrong = {name: sum(row) - row[index] for index, (name, row) in enumerate(rows)}
    return tuple((name, here.count(name), count) for name, count in wrong.items() if name in here)


def _image_url(pixels: Tensor, largest: int) -> str:
    """A [C, H, W] image as a data URL."""
    array = as_picture(pixels).permute(1, 2, 0).contiguous().numpy()
    return photo_url(Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array), largest)
