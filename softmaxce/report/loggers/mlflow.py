"""A training run in MLflow: on the server that MLFLOW_TRACKING_URI names, else in a local store beside the run folder.

Needs the extra `mlflow`.
"""

import json
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...runs.folder import Status
from ...runtime.version import softmaxce_version
from .background import LoggedRun
from .identity import read_id, write_id

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"  # of the local store
MARK = "learning_rate"  # the metric that is written last of an epoch: where it is, the epoch is logged
MAX_PARAMETERS = 100  # at once, MLflow's limit
MAX_VALUE = 6000  # characters of a parameter, MLflow's limit
STATUS = {Status.INTERRUPTED: "KILLED", Status.TERMINATED: "KILLED", Status.FAILED: "FAILED"}


class MlflowLogger:
    """Writes to one MLflow run, whose id is kept in the run folder."""

    def open(self, run: LoggedRun) -> Collection[int]:
        """Create the MLflow run, or reopen that of the run folder if MLflow still has it."""
        # Nothing is sent but to the store, and stdout is the command's. The user's own settings have precedence.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        for name in ("mlflow.store", "alembic"):  # they announce each table, and print a traceback of what they raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        location = None
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            if not os.access(run.folder.parent, os.W_OK):  # MLflow would try it for minutes
                raise RunError(f"{run.folder.parent}: cannot be written, for the store {DATABASE}")
            uri = f"sqlite:///{run.folder.parent / DATABASE}"
            location = (run.folder.parent / ARTIFACTS).as_uri()
        self._client: Any = MlflowClient(uri)
        self._final: Mapping[str, float] = {}
        self._id = read_id(run.folder, "mlflow") or ""
        if self._id and (existing := self._existing()) is not None:
            self._final = existing.data.metrics
            self._client.update_run(self._id, status="RUNNING")
            return {metric.step for metric in self._client.get_metric_history(self._id, MARK)}
        created = self._client.create_run(
            self._experiment(run.recipe, location),
            run_name=run.name,
            tags={"softmaxce.version": softmaxce_version(), "softmaxce.folder": str(run.folder)},
        )
        self._id = created.info.run_id
        write_id(run.folder, "mlflow", self._id)
        self._log_config(run.config)
        return ()

    def _existing(self) -> Any:
        """The MLflow run of this id; None if there is none any more."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(self._id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found if found.info.lifecycle_stage == "active" else None

    def _experiment(self, recipe: str, location: str | None) -> str:
        """The id of the experiment: MLFLOW_EXPERIMENT_NAME, else the recipe's name."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or recipe
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name, artifact_location=location))

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, value[:MAX_VALUE]) for key, value in flattened(config)]
        for start in range(0, len(parameters), MAX_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + MAX_PARAMETERS])

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch in one call, so that it is logged whole."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, epoch) for name, value in metrics.items()])

    def log_final(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the final evaluation, unless a finished run was only evaluated again."""
        self.log(epoch, {name: value for name, value in metrics.items() if self._final.get(name) != value})

    def add_files(self, files: Sequence[Path]) -> None:
        """Store files as artifacts."""
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def close(self, status: Status) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._id, STATUS.get(status, "FINISHED"))


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A config's dotted keys and values as texts; a list is JSON."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else str(value)
