"""Brackets, quotes, spaces, wildcards, accents and control characters in names of files, folders, classes and runs."""

import json
import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

NAMES = {
    "brackets and a single quote": "[a] it's",
    "a double quote and a shell's characters": 'quo"te $HOME;x && (y)',
    "a leading dash": "-dash",
    "composed": unicodedata.normalize("NFC", "é ü"),
    "decomposed": unicodedata.normalize("NFD", "é ü"),
    "wildcards, percent and hash": "a*b? 50% #1",
    "a tab and a newline": "tab\tx\nline",
    "a backslash and YAML": "back\\slash a: {b} - &c",
    "spaces at the ends": " x ",
}
CONFIG = """\
epochs: 2
model: linear
data: {name: image_folder, size: 12, test_fraction: 0.25, validation: 0.2, batch_size: 8}
optimizer: {name: adam, lr: 0.01}
"""


def make_images(folder: Path, name: str, odd_class: str) -> None:
    """A class with an odd name and images with odd names, and a plain one; a link to all; one more image beside."""
    draw = np.random.default_rng(0)
    for each, base in ((odd_class, 40), ("plain", 200)):
        (folder / name / each).mkdir(parents=True)
        for index in range(12):
            pixels = np.clip(draw.normal(base, 10, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / each / f"{name} {index}.png")
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "link").symlink_to(name)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_every_command_takes_an_odd_name_for_config_data_class_image_and_run(
    name: str, app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    class_name = name if name.isprintable() else "odd"  # the names of classes may hold no control characters
    make_images(tmp_path, name, class_name)
    Path(f"{name}.yaml").write_text(CONFIG)
    run = f"./runs/{name}"

    def done(*arguments: str) -> Result:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output)
        return result

    root = json.dumps(f"./{name}", ensure_ascii=False)  # a value of --set is YAML
    trained = done("train", "--config", f"./{name}.yaml", "--set", f"data.root={root}", "--output", run)
    (next_command,) = [line for line in trained.stdout.splitlines() if line.startswith("next: ")]
    # A shell reads the command as it is printed; a control character in it is printed as an escape, on one line.
    words = shlex.split(next_command)[1:]
    assert words[:2] == ["softmaxce", "eval"]
    if name.isprintable():
        assert Path(words[2]).samefile(run)
        done(*words[1:])
    assert {row["name"] for row in json.loads(done("eval", run, "--json").stdout)["classes"]} == {class_name, "plain"}
    done("eval", run, "--data", "link")
    predicted = [
        json.loads(line)
        for paths in ([f"./{name}.png"], [f"./{name}"], ["link/plain/*.png"])
        for line in done("predict", run, *paths, "--json").stdout.splitlines()
    ]
    assert len(predicted) == 1 + 24 + 12
    assert all(Path(line["path"]).is_file() for line in predicted)
    done("explain", run, f"./{name}.png")
    assert len(json.loads(done("runs", "--json").stdout.splitlines()[0])) > 0
    done("compare", run, run)
    done("train", "--resume", run, "--epochs", "3", "--quiet")
