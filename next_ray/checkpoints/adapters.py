"""Adapters on disk: which tensors belong together, checked against their configuration; factors read when they are asked for.

Shape legend: R rank, O/I out/in features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from next_ray.adapter import CONFIG_FILE, WEIGHTS_FILE
from next_ray.checkpoints.documents import read_json
from next_ray.checkpoints.headers import open_safetensors
from next_ray.checkpoints.lora_config import LoraConfig, parse_lora_config
from next_ray.checkpoints.names import role
from next_ray.checkpoints.pickles import open_pickle
from next_ray.checkpoints.tensor_file import TensorFile
from next_ray.errors import CheckpointFormatError
from next_ray.types import LoraFactors

PICKLE_FILE = "adapter_model.bin"


@dataclass(frozen=True)
class StoredPair:
    """The tensors `a` [R, I] and `b` [O, R] of a module, and its scale."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter file's contents: module to pair, and tensors that were saved whole (the base's name to the file's)."""

    file: TensorFile
    pairs: Mapping[str, StoredPair]
    saved: Mapping[str, str]

    def shape(self, module: str) -> tuple[int, int]:
        """(O, I), from the header."""
        pair = self.pairs[module]
        return self.file.entries[pair.b].shape[0], self.file.entries[pair.a].shape[1]

    def rank(self, module: str) -> int:
        """R, from the header."""
        return self.file.entries[self.pairs[module].a].shape[0]

    def factors(self, module: str) -> LoraFactors:
        """Read one module's factors, float32; raises `CheckpointFormatError` for NaN, infinity or a file that changed."""
        pair = self.pairs[module]
        return LoraFactors(a=self.file.read(pair.a), b=self.file.read(pair.b), scale=pair.scale)


@dataclass(frozen=True)
class StoredFactors(Sequence[LoraFactors]):
    """One module's factors at every checkpoint. Nothing is kept: each access reads the files again."""

    adapters: tuple[StoredAdapter, ...]
    module: str

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I), without reading a tensor."""
        return self.adapters[0].shape(self.module)

    @property
    def ranks(self) -> tuple[int, ...]:
        """R at every checkpoint, without reading a tensor."""
        return tuple(adapter.rank(self.module) for adapter in self.adapters)

    def __len__(self) -> int:
        return len(self.adapters)

    @overload
    def __getitem__(self, index: int) -> LoraFactors: ...
    @overload
    def __getitem__(self, index: slice) -> StoredFactors: ...
    def __getitem__(self, index: int | slice) -> LoraFactors | StoredFactors:
        if isinstance(index, slice):
            return StoredFactors(self.adapters[index], self.module)
        return self.adapters[index].factors(self.module)


@dataclass(frozen=True)
class SavedTensors:
    """`SavedModules` over adapter files."""

    adapters: tuple[StoredAdapter, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The base's tensor names."""
        return tuple(self.adapters[0].saved)

    def load(self, index: int, name: str) -> np.ndarray:
        """The tensor at checkpoint `index` (1..K), float32."""
        adapter = self.adapters[index - 1]
        return adapter.file.read(adapter.saved[name])


@dataclass(frozen=True)
class PeftFolder:
    """A PEFT folder: its adapter and what its configuration says."""

    adapter: StoredAdapter
    config: LoraConfig
    document: Mapping[str, object]


def open_peft_folder(folder: Path) -> PeftFolder:
    """Check a folder of `adapter_config.json` and weights; raises `CheckpointFormatError` for anything that is not plain LoRA."""
    document = read_json(folder / CONFIG_FILE)
    config = parse_lora_config(document, folder / CONFIG_FILE)
    file = _weights(folder)
    adapter = pair_up(file, config.scale_of)
    _agree(adapter, config, folder)
    return PeftFolder(adapter, config, document)


def read_peft_folder(folder: Path) -> dict[str, LoraFactors]:
    """A whole adapter in memory; raises `CheckpointFormatError` for anything that is not plain LoRA."""
    adapter = open_peft_folder(folder).adapter
    return {module: adapter.factors(module) for module in adapter.pairs}


def pair_up(file: TensorFile, scale_of: Callable[[str], float]) -> StoredAdapter:
    """Sort a file's tensors into pairs, each module with its scale, and tensors saved whole."""
    factors: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for name in file.entries:
        found = role(name, file.path)
        if found.kind == "saved":
            if found.target in saved:
                raise CheckpointFormatError(f"{file.path}: {name!r} and {saved[found.target]!r} are the same tensor of the base.")
            saved[found.target] = name
            continue
        own = factors.setdefault(found.target, {})
        if found.kind in own:
            raise CheckpointFormatError(f"{file.path}: {name!r} and {own[found.kind]!r} are the same factor.")
        own[found.kind] = name
    if not factors:
        raise CheckpointFormatError(f"{file.path}: holds no LoRA factors (names that end in lora_A.weight and lora_B.weight).")
    pairs = {module: _pair(file, module, own, scale_of(module)) for module, own in sorted(factors.items())}
    return StoredAdapter(file, pairs, dict(sorted(saved.items())))


def _pair(file: TensorFile, module: str, own: Mapping[str, str], scale: float) -> StoredPair:
    if set(own) != {"A", "B"}:
        raise CheckpointFormatError(f"{file.path}: module {module!r} has only lora_{next(iter(own))}; the file is incomplete.")
    a, b = file.entries[own["A"]].shape, file.entries[own["B"]].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
        raise CheckpointFormatError(
            f"{file.path}: module {module!r} has lora_A {list(a)} and lora_B {list(b)}, no [R, I] and [O, R]. Empty or flat factors come "
            "from saving under ZeRO-3 or FSDP without gathering the parameters first; save again with them gathered."
        )
    return StoredPair(own["A"], own["B"], scale)


def _agree(adapter: StoredAdapter, config: LoraConfig, folder: Path) -> None:
    """Ranks and saved tensors are those of the configuration."""
    for module in adapter.pairs:
        if adapter.rank(module) != config.rank_of(module):
            raise CheckpointFormatError(
                f"{adapter.file.path}: module {module!r} has rank {adapter.rank(module)}, but {CONFIG_FILE} says "
                f"{config.rank_of(module)}. Weights and configuration are from two adapters; put the right ones together."
            )
    # PEFT names both of a classifier's usual names, whichever the model has.
    wanted = [word for word in config.saved if not (word in ("classifier", "score") and adapter.saved)]
    if missing := [word for word in wanted if not any(f"{word}." in name for name in adapter.saved)]:
        raise CheckpointFormatError(
            f"{folder}: {CONFIG_FILE} says that {', '.join(missing[:3])} was trained whole (modules_to_save), but {adapter.file.path.name} "
            "does not hold it. Save the adapter again."
        )


def _weights(folder: Path) -> TensorFile:
    if (folder / WEIGHTS_FILE).is_file():
        return open_safetensors(folder / WEIGHTS_FILE)
    if (folder / PICKLE_FILE).is_file():
        return open_pickle(folder / PICKLE_FILE)
    raise CheckpointFormatError(f"{folder} has an {CONFIG_FILE} but no {WEIGHTS_FILE}. Save the adapter again.")
