"""What a Markdown reader makes of the table in $GITHUB_STEP_SUMMARY."""

import json
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from softmaxce.report import step_summary
from softmaxce.runs.folder import Status
from softmaxce.session import Outcome

from ..helpers import Softmaxce


def cells(markdown: str) -> list[list[str]]:
    """The rows of every table, as text; anything that is not text fails."""
    rows: list[list[str]] = []
    kind = None
    for token in MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(markdown):
        kind = token.type if token.type in ("th_open", "td_open") else kind
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            assert all(child.type in ("text", "text_special") for child in token.children or ()), token.content
            if kind == "td_open":
                rows[-1].append("".join(child.content for child in token.children or ()))
    return [row for row in rows if row]


def test_train_and_eval_append_a_table_each(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("what was there\n\n")
    done = softmaxce("train", "--config", "small.yaml", "--output", "run", "-q", GITHUB_STEP_SUMMARY=str(file))
    assert done.returncode == 0, done.stderr
    trained = file.read_text()
    assert trained.startswith("what was there\n\n### softmaxce train: run\n")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    rows = dict(cells(trained))
    assert rows["status"] == "completed"
    assert rows["test accuracy"] == f"{record['test']['accuracy']:.4f} (40 images)"
    demands = ("--require", "accuracy>=0", "--require", "ece<=0")
    done = softmaxce("eval", "run", "--json", *demands, GITHUB_STEP_SUMMARY=str(file))
    figures = json.loads(done.stdout)
    rows = dict(cells(file.read_text().removeprefix(trained)))
    for name in ("loss", "accuracy", "nll", "ece"):
        assert rows[name] == f"{figures[name]:.4f}"
    assert rows["accuracy>=0"].startswith("✅ met")
    assert rows["ece<=0"].startswith("❌ not met")


@pytest.mark.parametrize(
    "text", ["a|b", "<script>x</script>", "*a* _b_ `c`", "[a](b)", "![a](b)", "&lt;", "a\nb", "\\|"]
)
def test_anybodys_text_is_shown_as_it_is(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    step_summary.of_training(Outcome(status=Status.FAILED, folder=Path("run"), epochs=0, seconds=1.0, message=text))
    assert dict(cells(file.read_text()))["message"] == " ".join(text.split())


def test_a_summary_that_cannot_be_written_is_a_warning(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "-q", GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "file.md"))
    assert done.returncode == 0
    assert "cannot be written: No such file or directory" in done.stderr
