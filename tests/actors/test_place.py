"""What is said about labels when a placement waits, and what is asked for at once; real placements are tested with the entry point."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from next_ray.actors import launch
from next_ray.actors.cluster import labels_sentence
from next_ray.config import Config
from next_ray.errors import PlacementError

pytestmark = pytest.mark.ray

NODES = [
    {"Alive": True, "Labels": {"market": "on-demand", "ray.io/node-id": "a"}},
    {"Alive": True, "Labels": {"market": "on-demand"}},
    {"Alive": True, "Labels": {}},
    {"Alive": False, "Labels": {"market": "spot"}},
]


def test_the_labels_of_living_nodes_are_counted() -> None:
    assert labels_sentence(NODES, {"market": "spot"}) == "; its nodes have market=(none) (1); market=on-demand (2)"
    assert labels_sentence(NODES, {}) == ""


def crew(**rollout: Any) -> Any:
    config = Config.model_validate({"rollout": rollout, "cluster": {"wait_s": 5}})
    return launch._Crew(SimpleNamespace(config=config, cluster=SimpleNamespace(device="gpu"), say=print))  # pyright: ignore[reportArgumentType]


def test_learners_and_needed_engines_are_asked_for_at_once_the_gang_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def place(bundles: Any, labels: Any, what: str, wait_s: float, say: Any) -> str:
        asked.append(what)
        while len(asked) < 3:  # as if no node came before all are asked for
            await asyncio.sleep(0)
        return f"place of {what}"

    monkeypatch.setattr(launch, "place", place)
    one = crew(engines=5, min_engines=2)
    asyncio.run(asyncio.wait_for(one._reserve(2, 0), 10))
    assert asked == ["the learners", "rollout engine 0", "rollout engine 1"]
    assert one.groups == {what: f"place of {what}" for what in asked}


def test_when_one_has_no_place_the_others_do_not_wait_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[str] = []

    async def place(bundles: Any, labels: Any, what: str, wait_s: float, say: Any) -> str:
        if what == "rollout engine 0":
            raise PlacementError(f"No place for {what}")
        try:
            await asyncio.sleep(60)
        finally:
            given_up.append(what)
        return what

    monkeypatch.setattr(launch, "place", place)
    with pytest.raises(PlacementError, match="rollout engine 0"):
        asyncio.run(asyncio.wait_for(crew(engines=2)._reserve(2, 0), 10))
    assert sorted(given_up) == ["rollout engine 1", "the learners"]
