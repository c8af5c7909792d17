"""Shared by several test modules: a config that trains in an instant, and the metrics of its epochs."""

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from softmaxce.config import yamlfile
from softmaxce.config.reader import check

if TYPE_CHECKING:
    from softmaxce.config.keys import Config
    from softmaxce.training.run import Run

Completed = subprocess.CompletedProcess[str]
Softmaxce = Callable[..., Completed]  # the type of the fixture `softmaxce`

SMALL = """\
epochs: 2
data: {name: synthetic, train: 96, test: 40, batch_size: 32, validation: 0.25}
model: {name: mlp, hidden: [16], dropout: 0.2}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
schedule: {name: cosine}
"""

OWN_LOSS = "tests.own_loss:Scaled"  # with a parameter and a running statistic

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
    "average": {"model_ema_decay": 0.9},
    "mixup and cutmix": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0},
    "augmented": {"data__augment": ["random_horizontal_flip", {"name": "random_affine", "degrees": 10}]},
    "accumulated and clipped": {"grad_accum_steps": 2, "clip_grad_norm": 0.5},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "batch norm": {"model": {"name": "cnn", "channels": [4, 8]}},
    "a loss of one's own": {"loss": OWN_LOSS, "clip_grad_norm": 0.5},
}


def config(**changes: Any) -> "Config":
    """SMALL with some keys changed; `data__x` is data.x."""
    plain = yamlfile.parse(SMALL, "small.yaml").data
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        if section:
            plain[section][name] = value
        else:
            plain[key] = value
    return check(yamlfile.parse(yamlfile.dump(plain), "small.yaml"))


def train_and_list_metrics(run: "Run") -> list[tuple[Any, ...]]:
    """Train, and return of every epoch all but its times."""
    from softmaxce.training.loop import fit  # not above: a test that needs no torch does not wait for it

    return [(e.number, e.learning_rate, e.train, e.validation, e.test, e.best) for e in fit(run)]


# Classes of the image folder of tests/inference, by the color of their images.
COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
