"""Opening an embedded Ray on a machine that is too busy to bring it up in time: the fault is injected, everything else is real."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from next_ray.actors import cluster
from next_ray.actors.cluster import EMBEDDED_STARTS, open_cluster
from next_ray.config import ClusterSection
from next_ray.errors import PlacementError

pytestmark = pytest.mark.ray


def failing(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the first `times` starts fail as a busy machine does; returns a list that counts the starts."""
    starts: list[int] = []
    real = ray.init

    def init(*args: Any, **kwargs: Any) -> Any:
        starts.append(1)
        if len(starts) <= times:
            raise Exception("The current node timed out during startup.")
        return real(*args, **kwargs)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", init)
    return starts


def test_a_start_that_times_out_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = failing(1, monkeypatch)
    with open_cluster(ClusterSection(dashboard=False), "test-retry", embedded_cpus=1) as opened:
        assert opened.embedded and opened.resources["CPU"] == 1
    assert len(starts) == 2


def test_a_ray_that_never_starts_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = failing(EMBEDDED_STARTS, monkeypatch)
    with pytest.raises(PlacementError, match=f"{EMBEDDED_STARTS} attempts.*timed out"), open_cluster(ClusterSection(), "never", 1):
        pass
    assert len(starts) == EMBEDDED_STARTS
