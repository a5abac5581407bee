"""Rows as TensorBoard events, through TensorBoard's own writer: no torch in the driver for the sake of a plot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from next_ray.report.scalars import final_rows, mark, scalars


class TensorBoard:
    """Writes scalars of steps, evaluations and jumps, and jumps and the final table as text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, from_step: int) -> None:
        """A new event file; a resumed run hides what its predecessor logged after `from_step`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.close()
        self._event = Event
        self._writer = EventFileWriter(str(self._folder), flush_secs=10)
        if from_step:
            restart = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=from_step + 1, session_log=restart))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row's numbers, and for a jump its sentence."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars(row)]
        sentence = mark(row)
        self._add(row["step"], [*values, *([] if sentence is None else [_text("jumps", sentence)])])

    def finish(self, step: int, summary: Mapping[str, Any]) -> None:
        """Add the final table as Markdown."""
        rows = final_rows(summary)
        lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        self._add(step, [_text("final", "\n".join(f"| {' | '.join(line)} |" for line in lines))])

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    metadata = create_summary_metadata(display_name=tag, description="")
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto([text]))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value).replace("|", "/")
