"""Rows to Weights & Biases. Account and key come from its own environment variables; `WANDB_MODE=offline` needs neither."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from next_ray.report.scalars import final_rows, mark, scalars

PATIENCE = {"WANDB__GRAPHQL_RETRY_MAX": "3", "WANDB__GRAPHQL_TIMEOUT_SECONDS": "10", "WANDB_FINISH_TIMEOUT": "15"}
"""W&B waits at the end of a process for a server that does not answer: with these about 15 s, without them more than a minute. Metrics
are sent by another way, whose patience stays."""


class WandB:
    """One run of W&B for one of ours: `run_id` makes a resumed run go on in it. Files go below `folder`."""

    def __init__(self, project: str, name: str, run_id: str, config: Mapping[str, Any], folder: Path) -> None:
        self._project, self._name, self._id, self._config, self._folder = project, name, run_id, config, folder
        self._run: Any = None

    def begin(self, from_step: int) -> None:
        """Open the run, or go on in it; the axis of all curves is the RL step, so steps that are repeated lie over each other."""
        if self._run is not None:
            return
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=self._name,
            id=self._id,
            resume="allow",
            config=dict(self._config),
            dir=str(self._folder),
            allow_val_change=True,
            save_code=False,
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Mapping[str, Any]) -> None:
        """Log one row's numbers; an attempt to jump goes into the summary as a sentence, an accepted one into the tags."""
        found = dict(scalars(row))
        if found:
            self._run.log({"step": row["step"], **found})
        sentence = mark(row)
        if sentence is not None:
            self._run.summary[f"jumps/{row['step']:08d}/{row['kind']}"] = sentence
            if "accepted" in row and "jumped" not in (self._run.tags or ()):
                self._run.tags = (*(self._run.tags or ()), "jumped")

    def finish(self, step: int, summary: Mapping[str, Any]) -> None:
        """Log the final table, and its accuracies to compare runs by."""
        import wandb

        rows = final_rows(summary)
        self._run.log({"step": step, "final": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        for row in rows:
            self._run.summary[f"final/{row['model'].split(' (')[0]}/avg_at_k"] = row["avg_at_k"]

    def close(self) -> None:
        """End the run; what is not sent yet is sent."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()
