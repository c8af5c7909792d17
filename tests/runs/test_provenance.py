"""The environment of a run: recorded in its folder, and reported where it differs later."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxce.data.fingerprint import count_in, fingerprint
from softmaxce.data.splits import InMemory, OnDisk
from softmaxce.errors import RunError
from softmaxce.runs.provenance import check_images, differences
from softmaxce.runs.resume import same_fingerprint

from ..helpers import Softmaxce


def split(**changes: torch.Tensor) -> InMemory:
    parts = {"images": torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "labels": torch.tensor([0, 1, 0])} | changes
    return InMemory(**parts)


def test_one_pixel_one_label_or_one_shape_makes_another_fingerprint() -> None:
    pixel = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    pixel[2, 0, 1, 1] = 1
    others = [
        split(images=pixel),
        split(labels=torch.tensor([0, 1, 1])),
        split(images=torch.zeros(3, 2, 1, 2, dtype=torch.uint8)),
    ]
    assert len({fingerprint(one) for one in (split(), *others)}) == 4
    assert fingerprint(split()) == fingerprint(split())


def test_files_are_distinguished_by_name_size_and_content_wherever_they_lie(tmp_path: Path) -> None:
    def on_disk(top: str, name: str, content: bytes) -> str:
        file = tmp_path / top / "cat" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return fingerprint(OnDisk((str(file),), torch.tensor([0]), (1, 2, 2), torch.load))

    first = on_disk("here", "a.png", b"12")
    assert first == on_disk("there", "a.png", b"12")
    others = [on_disk("x", "b.png", b"12"), on_disk("y", "a.png", b"123"), on_disk("z", "a.png", b"34")]
    assert len({first, *others}) == 4
    assert [same_fingerprint(first, other) for other in others] == [False] * 3


def test_fingerprints_are_compared_as_far_as_they_say_the_same_things() -> None:
    assert same_fingerprint("pixels:1", "pixels:1") is True
    assert same_fingerprint("pixels:1", "files:1:2") is None  # decoded in memory there, read from the disk here
    assert same_fingerprint("files:1", "files:1:2") is True  # an earlier version recorded no contents
    assert same_fingerprint("files:0", "files:1:2") is False
    assert same_fingerprint("pixels:1", "pixels:1:31") is True  # an earlier version recorded no number of images
    assert same_fingerprint("files:1:2", "files:1:2:31") is True
    assert same_fingerprint("pixels:1", "pixels:2:31") is False


@pytest.mark.parametrize(
    ("before", "now", "counts"),
    [
        ({"test": "pixels:1:31"}, {"test": "pixels:2:32"}, "test images are not those of the run (31 then, 32 now)"),
        ({"test": "files:1:1:31"}, {"test": "files:1:2:31"}, "the run (31 then and now, but others)"),
        (
            {"train": "pixels:1:1234", "test": "pixels:1:31"},
            {"train": "pixels:2:1235", "test": "pixels:2:31"},
            "train and test images are not those of the run (train: 1,234 then, 1,235 now; test: 31 then and now,",
        ),
        ({"train": "pixels:1:9"}, {"train": "pixels:1:9", "test": "pixels:2:3"}, "the run (0 then, 3 now)"),
        ({"test": "pixels:1"}, {"test": "pixels:2:32"}, "test images are not those of the run; restore them, or"),
        ({"test": "files:1:2"}, {"test": "files:2:2:32"}, "test images are not those of the run; restore them, or"),
        ({"test": "pixels:1:many"}, {"test": "pixels:2:32"}, "test images are not those of the run; restore them, or"),
    ],
)
def test_changed_images_are_refused_with_how_many_there_were_and_are_if_that_was_recorded(
    before: dict[str, str], now: dict[str, str], counts: str
) -> None:
    record = {"environment": {"data": before}}
    with pytest.raises(RunError, match=re.escape(counts)):
        check_images(Path("out"), record, now, allow_changed_data=False)
    (warning,) = check_images(Path("out"), record, now, allow_changed_data=True)
    assert counts.partition(";")[0].split(" (")[0] in warning


@pytest.mark.parametrize("number", [1, 3])
def test_a_fingerprint_records_how_many_images_there_are(number: int) -> None:
    images, labels = torch.zeros(number, 1, 2, 2, dtype=torch.uint8), torch.zeros(number, dtype=torch.int64)
    on_disk = OnDisk(("x",) * number, labels, (1, 2, 2), torch.load)
    assert count_in(fingerprint(InMemory(images, labels))) == count_in(fingerprint(on_disk)) == number


def test_differences_are_described_and_entries_of_one_side_only_are_ignored() -> None:
    before = {"torch": "2.14.1", "threads": 1, "device": "cpu (1 threads)", "numpy": "2.0", "git_commit": "a" * 40}
    now = {"torch": "2.15", "threads": 4, "device": "cpu (4 threads)", "git_commit": None, "cuda": "13.0"}
    assert differences(before, now) == ["torch 2.14.1, now 2.15", "1 thread, now 4"]


def other_threads(run: Path) -> tuple[str, str]:
    """Another number of threads than the run's, and how the difference is reported."""
    before = json.loads((run / "run.json").read_text())["environment"]["threads"]
    now = 1 if before > 1 else 2
    return str(now), f"{before} thread{'s' * (before > 1)}, now {now}"


def test_resume_says_in_one_line_what_is_not_as_it_was(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    small.write_text(small.read_text().replace("name: cosine", "name: constant"))  # of which no length is warned
    train = ("train", "--config", "small.yaml", "--output", "out", "--resume", "auto", "--quiet", "--epochs")
    assert softmaxce(*train, "1").stderr == ""
    assert softmaxce(*train, "2").stderr == ""  # all as it was
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert {"torch", "numpy", "threads", "device", "precision", "data"} <= set(record["environment"])
    assert set(record["environment"]["data"]) == {"train", "validation", "test"}
    record["environment"]["torch"] = "1.0"
    (tmp_path / "out/run.json").write_text(json.dumps(record))
    threads, change = other_threads(tmp_path / "out")
    done = softmaxce(*train, "3", OMP_NUM_THREADS=threads)
    assert done.returncode == 0
    torch_now = torch.__version__
    assert done.stderr == f"warning: out: this run was trained with torch 1.0, now {torch_now}; {change}\n"
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["environment"]["threads"] == int(threads)
    assert [one["torch"] for one in record["earlier_environments"]] == ["1.0"]


def test_eval_says_so_too_and_knows_that_the_images_are_others(softmaxce: Softmaxce, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(low, low + 128, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "own.yaml").write_text(
        "epochs: 1\ndata: {name: image_folder, root: photos, channels: 1, batch_size: 8}\n"
        "model: linear\noptimizer: {name: sgd, lr: 0.1}\n"
    )
    assert softmaxce("train", "--config", "own.yaml", "--output", "out").returncode == 0
    as_it_was = softmaxce("eval", "out", "--json")
    assert (as_it_was.returncode, as_it_was.stderr) == (0, "")
    Image.new("L", (8, 8), 200).save(tmp_path / "photos/test/light/0.png")
    refused = softmaxce("eval", "out", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    threads, change = other_threads(tmp_path / "out")
    elsewhere = softmaxce("eval", "out", "--json", "--allow-changed-data", OMP_NUM_THREADS=threads)
    assert elsewhere.returncode == 0
    assert elsewhere.stderr.splitlines() == [
        "warning: out: the test images are not those of the run (6 then and now, but others)",
        f"warning: out: this run was trained with {change}",
    ]
    assert json.loads(elsewhere.stdout)["images"] == 6


def test_own_code_that_was_edited_after_training_is_one_line_in_eval_and_when_resuming(
    softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    own = "from torch.nn.functional import cross_entropy as loss_of\n"
    own += "def loss(logits, targets): return loss_of(logits, targets)\n"
    (tmp_path / "own.py").write_text(own)
    lab = "class Same:\n    def __call__(self, images): return images\n"
    (tmp_path / "lab.py").write_text(lab)
    text = small.read_text().replace("data: {", "data: {augment: ['lab:Same'], ").replace("cosine", "constant")
    small.write_text(text + "loss: 'own.py:loss'\n")
    train = ("train", "--config", "small.yaml", "--output", "out", "--resume", "auto", "--quiet", "--epochs")
    assert softmaxce(*train, "1").stderr == ""
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["environment"]["code"] == {
        "own.py": hashlib.sha256(own.encode()).hexdigest(),
        "lab": hashlib.sha256(lab.encode()).hexdigest(),
    }
    assert softmaxce("eval", "out", "--trust-code").stderr == ""
    with (tmp_path / "own.py").open("a") as file:
        file.write("# edited\n")
    warning = "warning: out: this run was trained with another own.py\n"
    assert softmaxce("eval", "out", "--trust-code").stderr == warning
    assert softmaxce(*train, "2").stderr == warning
    assert softmaxce(*train, "3").stderr == ""
