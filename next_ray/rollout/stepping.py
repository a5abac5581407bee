"""What an engine works at: batches of requests, begun, dropped and begun anew between the steps of vLLM.

vLLM decodes one token of every sequence in a step (continuous batching), so requests of several batches and adapter versions are
in flight together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from next_ray.rollout.slots import AdapterSlots, Slot
from next_ray.types import RolloutRequest, Sampling


@dataclass(eq=False)
class Batch:
    """Requests that came together and are answered together.

    `prompts` are their token ids, `outputs` vLLM's, in request order, None while in flight. `restarts` counts requests that were
    begun anew; `requests` says under which version each was sampled in the end.
    """

    requests: list[RolloutRequest]
    prompts: Sequence[list[int]]
    sampling: Sampling
    outputs: list[Any] = field(default_factory=list)
    restarts: int = 0

    def __post_init__(self) -> None:
        self.outputs = [None] * len(self.requests)

    @property
    def done(self) -> bool:
        """Whether every request has its answer."""
        return all(output is not None for output in self.outputs)


@dataclass(frozen=True)
class _Flight:
    """One request in vLLM: whose it is, the adapter it holds, and vLLM's own id of it."""

    batch: Batch
    place: int
    slot: Slot | None
    core_id: str


class InFlight:
    """The requests that vLLM is working at.

    Args:
        core: vLLM's engine: `add_request`, `step`, `abort_request`.
        slots: the adapters it serves.
        make_input: token ids to what vLLM takes as a prompt.
        make_params: vLLM's parameters of a request.
    """

    def __init__(
        self,
        core: Any,
        slots: AdapterSlots,
        make_input: Callable[[list[int]], Any],
        make_params: Callable[[RolloutRequest, Sampling], Any],
    ) -> None:
        self._core, self._slots, self._make_input, self._make_params = core, slots, make_input, make_params
        self._flights: dict[str, _Flight] = {}
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._flights)

    def begin(self, batch: Batch) -> None:
        """Give all requests of a batch to vLLM; their versions must be served."""
        for place in range(len(batch.requests)):
            self._add(batch, place)

    def step(self) -> list[Batch]:
        """One step of vLLM; the batches that it finished."""
        done: list[Batch] = []
        for output in self._core.step():
            if output.finished and (flight := self._flights.pop(output.request_id, None)) is not None:
                self._slots.release(flight.slot)
                flight.batch.outputs[flight.place] = output
                if flight.batch.done:
                    done.append(flight.batch)
        return done

    def abort(self, batch: Batch) -> None:
        """Stop sampling what is left of a batch."""
        self._pull([name for name, flight in self._flights.items() if flight.batch is batch])

    def pull(self, but: int) -> list[tuple[Batch, int]]:
        """Stop sampling all requests under another version than `but`; returns batch and place of each, to be begun anew."""
        return self._pull([name for name, flight in self._flights.items() if flight.batch.requests[flight.place].version != but])

    def begin_anew(self, pulled: Sequence[tuple[Batch, int]], version: int) -> None:
        """Begin requests from their first token, with their seeds, under another version: a group is of one policy as a whole."""
        for batch, place in pulled:
            batch.requests[place] = replace(batch.requests[place], version=version)
            batch.restarts += 1
            self._add(batch, place)

    def _add(self, batch: Batch, place: int) -> None:
        request, name = batch.requests[place], str(next(self._numbers))
        slot = self._slots.hold(request.version)
        core_id = self._core.add_request(
            name,
            self._make_input(batch.prompts[place]),
            self._make_params(request, batch.sampling),
            lora_request=None if slot is None else slot.lora_request,
        )
        self._flights[name] = _Flight(batch, place, slot, core_id)

    def _pull(self, names: Sequence[str]) -> list[tuple[Batch, int]]:
        pulled = [self._flights.pop(name) for name in names]
        self._core.abort_request([flight.core_id for flight in pulled], internal=True)
        for flight in pulled:
            self._slots.release(flight.slot)
        return [(flight.batch, flight.place) for flight in pulled]
