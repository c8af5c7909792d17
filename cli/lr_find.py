"""`softmaxce lr-find`: the learning-rate range test of a config.

The command's function is long because each option is an argument.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.config.reader import Override
from softmaxce.errors import FAILED, ConfigError, Problem
from softmaxce.files import check_output, replace_file, writable

from .options import (
    BatchSize,
    ConfigArgument,
    ConfigOption,
    Device,
    Force,
    Model,
    one_config,
    short_options,
)
from .processes import refuse_if_launched
from .startup import fast_imports
from .training import require_config

SUFFIXES = (".svg", ".png")


def lr_find(
    name: ConfigArgument = None,
    config: ConfigOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. optimizer=adamw.")
    ] = None,
    batch_size: BatchSize = None,
    model: Model = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, shuffling, augmentation and splits.")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Start with the weights of another run, or of a checkpoint."),
    ] = None,
    min_lr: Annotated[float, typer.Option("--min-lr", metavar="X", help="The first learning rate.")] = 1e-6,
    max_lr: Annotated[float, typer.Option("--max-lr", metavar="X", help="The last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option(min=10, metavar="N", help="Steps from the first rate to the last.")] = 100,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|FILE.png", help="Also draw the curve as a picture.")
    ] = None,
    force: Force = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find a learning rate: train while it grows from step to step, and show where the loss falls and diverges.

    A learning-rate range test (Smith 2017). No run folder is made, and nothing that was trained is kept. The exit
    status is 1 if the curve suggests no rate.
    """
    refuse_if_launched("lr-find")
    file = require_config(one_config(name, config))
    _check_rates(min_lr, max_lr)
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise ConfigError([Problem("--output", f"must be a name that ends in {' or '.join(SUFFIXES)}, got {output}")])
    overrides = [configs.parse_override(text) for text in set_ or []]
    if any(override.path == ("optimizer", "lr") for override in overrides):
        raise ConfigError([Problem("--set optimizer.lr", "is what lr-find varies, from --min-lr to --max-lr")])
    short = short_options(None, batch_size, model)
    overrides += [configs.parse_override(f"{key}={text}", option) for key, text, option in short]
    flags = (("device", device), ("seed", seed))
    overrides += [Override((key,), value, f"--{key}") for key, value in flags if value is not None]
    if from_ is not None:
        overrides.append(Override(("model", "weights_from"), from_, "--from"))
    requested = configs.load(file, [*overrides, Override(("optimizer", "lr"), min_lr, f"--min-lr {min_lr:g}")])
    from softmaxce.runs.plan import check_weights_from

    check_weights_from(requested)
    with fast_imports():
        from softmaxce.build import build_run
        from softmaxce.report import console
        from softmaxce.report import lr_find as report
        from softmaxce.report.html.figures import is_picture_file
        from softmaxce.report.json_values import dumps
        from softmaxce.report.training import introduction
        from softmaxce.runs import initial_weights, teacher
        from softmaxce.training import range_test as tests
        from softmaxce.waiting import Counting
    if output is not None:
        check_output(output, "--output", "picture", "rates.svg", lambda: is_picture_file(output), force=force)
    run = build_run(tests.at_rate(requested, min_lr))
    to_stderr = partial(streams.line, err=True)
    initial_weights.load(run, to_stderr)
    teacher.load(run, to_stderr)
    for line in introduction(run, None):
        to_stderr(line)
    with Counting("steps", steps) as counting:
        result = tests.range_test(run, min_lr, max_lr, steps, counting.advance)
    unchanged = tests.unchanged_rates(run)
    words = [file, *(word for text in set_ or [] for word in ("--set", text))]
    given = (*((option, text) for _, text, option in short), ("--device", device), ("--seed", seed), ("--from", from_))
    words += [word for option, value in given if value is not None for word in (option, str(value))]
    command = report.train_command(words, result.suggested)
    if json:
        streams.json_text(dumps(report.to_dict(result, unchanged, command)))
    else:
        report.print_range_test(result, unchanged, command, console.stdout())
    if output is not None and result.losses:
        with writable(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(output, report.picture(result, output.suffix))
        streams.line(f"picture: {output}", err=True)
    if result.suggested is None:
        raise typer.Exit(FAILED)


def _check_rates(low: float, high: float) -> None:
    """Raises: ConfigError unless 0 < low < high, both finite."""
    if not 0 < low < float("inf"):
        raise ConfigError([Problem("--min-lr", f"must be a number above 0, got {low:g}")])
    if not low < high < float("inf"):
        raise ConfigError([Problem("--max-lr", f"must be above --min-lr, which is {low:g}, got {high:g}")])
