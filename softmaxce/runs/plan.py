"""Where a config is trained: in a new run folder, or in the one that holds the same run already. Needs no torch."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import reader as configs
from ..config.keys import Config
from ..config.objects import objects_of
from ..config.users_code import users_code
from ..errors import ConfigError, Problem, RunError, RunInUseError
from .folder import read_record
from .header import find_checkpoint, read_header
from .resume import Images, at_recorded_root, check_resumable, find_run


@dataclass(frozen=True)
class Plan:
    """What is trained, and where.

    Attributes:
        config: the complete config.
        folder: the run folder; None for a new one, the next number under runs/<recipe>/.
        resume: continue the run in `folder`.
        allow_changed_data: resume although the images are not those that the run was trained with.
        auto: decided by `--resume auto`.
    """

    config: Config
    folder: Path | None = None
    resume: bool = False
    allow_changed_data: bool = False
    auto: bool = False

    def check_still_new(self) -> None:
        """Refuse to start a run that another process has started since it was planned. Raises: RunInUseError."""
        if self.auto and not self.resume and self.folder is not None and (self.folder / "config.yaml").is_file():
            message = f"{self.folder}: another process has just started this run; the same command resumes it"
            raise RunInUseError(message)


def resume_run(folder: Path, config: Config | None = None, *, allow_changed_data: bool = False) -> Plan:
    """Resume the run in a folder, with its own config if none is passed.

    Raises: RunError if there is no run, or it cannot be resumed with this config; ConfigError.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder}: there is no run in this folder (no config.yaml)")
    own = configs.load(str(folder / "config.yaml"))
    config = own if config is None else config
    if config.data.root == own.data.root and (folder / "run.json").is_file():
        config = at_recorded_root(config, read_record(folder))
    return Plan(check_resumable(folder, config), folder, True, allow_changed_data)


def resume_or_start(
    config: Config, output: Path | None, images: Callable[[Config], Images], *, allow_changed_data: bool = False
) -> tuple[Plan, list[str]]:
    """What `--resume auto` does: resume the run in `output`, or the same run under runs/<recipe>/, or start it.

    Args:
        config: what is to be trained.
        output: the run's folder; None to look for the run.
        images: reads a config's images; called only where a run has this config.
        allow_changed_data: resume a run on other images too.
    Returns: the plan, and messages for the user.
    Raises: RunError, ConfigError, DataError.
    """
    folder = output
    messages: list[str] = []
    if folder is None:
        parent = Path("runs", config.recipe)
        folder, messages = find_run(config, parent, images, allow_changed_data=allow_changed_data)
    if folder is not None and (folder / "config.yaml").is_file():
        return resume_run(folder, config, allow_changed_data=allow_changed_data), messages
    return Plan(config, output, auto=True), messages


def weights_from_option(config: Config) -> str:
    """What named the weights that a run starts with: `--from`, or the key."""
    return config.options.get("model.weights_from", "model.weights_from")


def check_weights_from(config: Config) -> None:
    """Refuse other runs that a run starts with or learns from and that are no checkpoint's, before torch is imported.

    Raises: ConfigError.
    """
    teacher = config.distillation.teacher if config.distillation is not None else None
    for option, run in ((weights_from_option(config), config.weights_from), ("distillation.teacher", teacher)):
        if run is not None:
            try:
                read_header(find_checkpoint(Path(run)))
            except RunError as error:
                location = config.options.get(option, option)
                raise ConfigError([Problem(location, error.command_text)]) from None


def resume_command(config: Config, folder: Path) -> str:
    """What resumes a run: a command, with --trust-code for the user's code; or a call, if objects were passed."""
    named = "".join(f", {name}=..." for name in objects_of(config))
    if any(each.is_object for each in config.augment):  # they stand in the config
        return f"resume with: softmaxce.train(config, resume={str(folder)!r}{named})"
    if named:
        return f"resume with: softmaxce.train(resume={str(folder)!r}{named})"
    trust = " --trust-code" if users_code(config) else ""
    return f"resume with: softmaxce train --resume {shlex.quote(str(folder))}{trust}"
