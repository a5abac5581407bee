"""The same rows as TensorBoard events, through TensorBoard's own writer: no torch in the driver for the sake of a plot."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from next_ray.report.rows import EVALUATION, JUMP, STEP

_PLAIN = {"kind", "step", "label", "num_prompts", "num_samples", "temperature", "version"}


class TensorBoard:
    """Writes scalars of steps, evaluations and jumps; a resumed run hides what its predecessor logged after `from_step`."""

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = Event
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        if from_step:
            restart = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=from_step + 1, session_log=restart))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row's numbers under train/, time/, evaluation/ or jump/."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars(row)]
        self._writer.add_event(self._event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of a row."""
    if row["kind"] == STEP:
        for name, value in row.items():
            if name not in _PLAIN:
                yield (f"time/{name.removeprefix('time_')}" if name.startswith("time_") else f"train/{name}"), value
    elif row["kind"] == EVALUATION:
        model = row["label"].split(" (")[0]
        model = "current" if model.startswith("step ") else model
        for name in ("avg_at_k", "pass_at_k"):
            yield f"evaluation/{model}/{name}", row[name]
    elif row["kind"] == JUMP:
        yield "jump/accepted", float("accepted" in row)
        for candidate in row.get("candidates", ()):
            if "difference" in candidate:
                yield f"jump/difference/{candidate['name']}", candidate["difference"]
