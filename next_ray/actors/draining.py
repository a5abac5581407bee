"""Nodes that are about to be taken away: engines leave them, learners move, and a driver on one of them ends in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import ray
from ray.util.placement_group import PlacementGroup

from next_ray.actors.cluster import draining_nodes, nodes_of
from next_ray.actors.seats import Seat
from next_ray.errors import StoppedError
from next_ray.signals import RUN_ME_AGAIN
from next_ray.stopping import Stop


class Drains:
    """Watches the cluster for nodes that are drained and moves what is there.

    Args:
        learners: what the gang's placement group is called in `groups`.
        engines: the engines' seats, called like their placement groups.
        groups: the placement groups at the moment, by name.
        resume: the command to go on with.
    """

    def __init__(self, learners: str, engines: list[Seat], groups: Mapping[str, PlacementGroup], resume: str) -> None:
        self._learners, self._engines, self._groups, self._resume = learners, engines, groups, resume

    async def watch(self, stop: Stop, poll_s: float, say: Callable[[str], None]) -> None:
        """Ask the cluster every `poll_s` seconds, for ever."""
        own = ray.get_runtime_context().get_node_id()
        told: set[str] = set()
        while True:
            await asyncio.sleep(poll_s)
            drained = await asyncio.to_thread(draining_nodes)
            for node in drained.keys() - told:
                say(f"node {node[:12]} is being drained")
            told |= drained.keys()
            if drained:
                await asyncio.to_thread(self._heed, drained, own, stop)

    def _heed(self, drained: Mapping[str, int], own: str, stop: Stop) -> None:
        if own in drained:
            text = f"this node is being drained; everything is committed. Go on elsewhere with:\n  {self._resume}"
            stop.ask(StoppedError(text, RUN_ME_AGAIN))
        elif self._lies_on(self._learners, drained):
            stop.ask(StoppedError("a node of the learners is being drained", RUN_ME_AGAIN, goes_on=True))
        for seat in self._engines:
            if self._lies_on(seat.what, drained):
                seat.leave("its node is being drained")

    def _lies_on(self, what: str, drained: Mapping[str, int]) -> bool:
        group = self._groups.get(what)
        return group is not None and not nodes_of(group).isdisjoint(drained)
