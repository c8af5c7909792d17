"""The page of `softmaxce serve`: an image is dropped or drawn, its classes and the steps of its loss are shown."""

from pathlib import Path

from markupsafe import Markup

from .common import render_template

SCRIPT = Path(__file__).with_name("serve_page.js")


def serve_page(name: str, classes: tuple[str, ...], *, is_dark: bool) -> str:
    """The page.

    Args:
        name: the model's.
        classes: their names.
        is_dark: draw in white on black, as the model's images are.
    """
    return render_template(
        "serve_page.html",
        model=name,
        count=len(classes),
        data={"is_dark": is_dark},
        script=Markup(SCRIPT.read_text(encoding="utf-8")),
    )
