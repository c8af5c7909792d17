"""The pages behind a report's gallery: each mistake's loss, step by step, as `softmaxce explain` tells it."""

import io
from html import escape
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI

from ..explain.explanation import Explanation
from ..explain.text import print_explanation
from ..explain.trained import explain_image
from ..files import replace_file
from .findings import Findings

COLUMNS = 80
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>@title</title>
<style>
:root { color-scheme: light dark; }
@light
@media screen and (prefers-color-scheme: dark) {
@dark
}
body { margin: 1rem; }
a { font-family: system-ui, sans-serif; }
pre { font: min(1rem, 1.9vw)/1.17 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
</style>
</head>
<body>
<a href="@back">back to the report</a>
<pre>@code</pre>
</body>
</html>
"""


def write_explanations(findings: Findings, folder: Path, back: str) -> dict[int, Path]:
    """Write a page for each mistake.

    Args:
        findings: whose mistakes.
        folder: where the pages go; made if there is something to write.
        back: the report's address, seen from there.
    Returns: the pages, by the mistake's index.
    """
    pages = {}
    for mistake in findings.mistakes:
        folder.mkdir(parents=True, exist_ok=True)
        what = mistake.file or f"{findings.split} image {mistake.index} of {findings.config.source.name}"
        explanation = explain_image(
            findings.evaluation,
            mistake.image,
            findings.classes.index(mistake.label),
            title=f"{what}, by {findings.folder}",
            temperature=findings.final.temperature,
        )
        pages[mistake.index] = folder / f"{findings.split}-{mistake.index}.html"
        replace_file(pages[mistake.index], _html(explanation, what, back).encode())
    return pages


def _html(explanation: Explanation, title: str, back: str) -> str:
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    print_explanation(explanation, console)

    def export(what: str, theme: object = DEFAULT_TERMINAL_THEME) -> str:
        return console.export_html(theme=theme, clear=False, code_format=what)  # type: ignore[arg-type]

    parts = {"title": escape(title), "back": escape(back), "code": export("{code}")}
    body = "{stylesheet}\nbody {{ color: {foreground}; background: {background}; }}"
    parts |= {"light": export(body), "dark": export(body, MONOKAI)}
    page = PAGE
    for name in ("title", "light", "dark", "back", "code"):
        page = page.replace(f"@{name}", parts[name], 1)
    return page
