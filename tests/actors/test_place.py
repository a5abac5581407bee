"""What is said about labels when a placement waits; the waiting itself is tested with the entry point."""

from __future__ import annotations

import pytest

from next_ray.actors.cluster import labels_sentence

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
