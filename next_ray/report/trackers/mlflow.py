"""Rows to MLflow, whose server is `MLFLOW_TRACKING_URI` and whose credentials are its own environment variables."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from next_ray.report.scalars import final_rows, mark, scalars

ID_TAG = "next_ray.id"
PARAMS_AT_ONCE = 100
LONGEST_PARAM = 6000
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-. /]")


class MLflow:
    """One run of MLflow for one of ours, found again by its tag `next_ray.id`."""

    def __init__(self, experiment: str, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        self._experiment, self._name, self._id, self._config = experiment, name, run_id, config
        self._client: Any = None
        self._run = ""

    def begin(self, from_step: int) -> None:
        """Open the run with the configuration as parameters, or go on in it; a step that is repeated adds points to its curves."""
        if self._run:
            return
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URL may hold a password
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        experiment = client.get_experiment_by_name(self._experiment)
        place = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        found = client.search_runs([place], f"tags.`{ID_TAG}` = '{self._id}'", max_results=1)
        if found:
            run = found[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            run = client.create_run(place, run_name=self._name, tags={ID_TAG: self._id}).info.run_id
            self._describe(run)
        self._run = run

    def write(self, row: Mapping[str, Any]) -> None:
        """Log one row's numbers; an attempt to jump is a tag that holds its sentence."""
        self._log(row["step"], scalars(row))
        sentence = mark(row)
        if sentence is not None:
            self._client.set_tag(self._run, f"next_ray.{row['kind']}.{row['step']:08d}", sentence[:LONGEST_PARAM])
            if "accepted" in row:
                self._client.set_tag(self._run, "next_ray.jumped", "true")

    def finish(self, step: int, summary: Mapping[str, Any]) -> None:
        """Log the final table as an artifact, its accuracies as metrics, and that the run is over."""
        rows = final_rows(summary)
        means = ((f"final/{row['model'].split(' (')[0]}/avg_at_k", row["avg_at_k"]) for row in rows)
        self._log(step, means)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        self._client.log_dict(self._run, {"columns": list(columns), "data": [list(row.values()) for row in rows]}, "final.json")
        self._client.set_terminated(self._run, "FINISHED")
        self._run = ""

    def close(self) -> None:
        """A run that did not finish is left as killed: it may go on later."""
        if self._run:
            run, self._run = self._run, ""
            self._client.set_terminated(run, "KILLED")

    def _log(self, step: int, found: Iterable[tuple[str, float]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_NOT_IN_NAMES.sub("-", name), float(value), now, step) for name, value in found]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def _describe(self, run: str) -> None:
        """Parameters cannot be changed later, so they are what the run began with."""
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in self._config.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(run, params=params[start : start + PARAMS_AT_ONCE])
