"""The adapters an engine serves: a slot of vLLM's each, kept until the last request that was begun under it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from next_ray.adapter import write_peft_folder
from next_ray.errors import ConfigError, ModelError
from next_ray.types import Adapter


@dataclass(eq=False)
class Slot:
    """One adapter in vLLM, under a name and an id that no other ever had; `retired` when newer ones took its place."""

    version: int
    lora_request: Any
    users: int = 0
    retired: bool = False


class AdapterSlots:
    """Versions beside the model itself, at most `capacity` at once, those included that are only kept for requests in flight.

    Args:
        core: vLLM's engine.
        make_request: vLLM's `LoRARequest`, of name, id and folder.
        folder: where adapters are written for vLLM to read.
        base_name: of the base model, for their cards.
        capacity: slots that vLLM was started with; beyond them it would evict in silence.
    """

    def __init__(self, core: Any, make_request: Callable[[str, int, str], Any], folder: Path, base_name: str, capacity: int) -> None:
        self._core, self._make_request, self._folder, self._base_name, self._capacity = core, make_request, folder, base_name, capacity
        self._served: dict[int, Slot] = {}
        self._kept: list[Slot] = []
        self._next_id = 1

    @property
    def versions(self) -> tuple[int, ...]:
        """Adapter versions that new requests may ask for, ascending."""
        return tuple(sorted(self._served))

    def has_room(self, num_adapters: int, only: int | None = None) -> bool:
        """Whether so many could take the place of what is served now, beside what is in use (of version `only`, the rest being let go)."""
        return sum(only in (None, slot.version) for slot in self._used()) + num_adapters <= self._capacity

    def require_room(self, num_adapters: int, only: int | None = None) -> None:
        """Raises `ConfigError` unless `has_room`."""
        if not self.has_room(num_adapters, only):
            raise ConfigError(
                f"{num_adapters} adapters beside {len(self._used())} that are still in use, but the engine was built for "
                f"{self._capacity} (max_adapters). Wait for the requests in flight."
            )

    def replace(self, adapters: Mapping[int, Adapter]) -> None:
        """Serve these versions and no others, for which there must be room; those in use stay until they are released.

        Raises `ModelError` when vLLM does not accept an adapter.
        """
        for slot in self._served.values():
            slot.retired = True
            if slot.users:
                self._kept.append(slot)
            else:
                self._remove(slot)
        self._served = {}
        for version, adapter in adapters.items():
            self._served[version] = self._added(version, adapter)

    def hold(self, version: int) -> Slot | None:
        """The slot of a version that is served, in use from now on; None for the model without an adapter."""
        slot = self._served.get(version)
        if slot is not None:
            slot.users += 1
        return slot

    def release(self, slot: Slot | None) -> None:
        """One request less uses a slot; what nobody uses and nobody may ask for is removed."""
        if slot is None:
            return
        slot.users -= 1
        if slot.retired and slot.users == 0:
            self._kept.remove(slot)
            self._remove(slot)

    def _used(self) -> list[Slot]:
        return [*self._kept, *(slot for slot in self._served.values() if slot.users)]

    def _added(self, version: int, adapter: Adapter) -> Slot:
        number, self._next_id = self._next_id, self._next_id + 1
        name = f"version-{version}-load-{number}"
        folder = self._folder / name
        write_peft_folder(adapter, folder, self._base_name)
        lora_request = self._make_request(name, number, str(folder))
        try:
            self._core.add_lora(lora_request)
        except ValueError as error:
            _remove_folder(folder)
            raise ModelError(f"vLLM does not accept adapter version {version} for {self._base_name} ({error}).") from error
        return Slot(version, lora_request)

    def _remove(self, slot: Slot) -> None:
        self._core.remove_lora(slot.lora_request.lora_int_id)
        _remove_folder(Path(slot.lora_request.lora_path))


def _remove_folder(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
