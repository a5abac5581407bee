"""Full models in Hugging Face folders: one file or shards, safetensors or weights-only pickles, tied embeddings counted once.

Shape legend: O/I out/in features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from next_ray.checkpoints.documents import MAX_INDEX_BYTES, read_json
from next_ray.checkpoints.headers import open_safetensors
from next_ray.checkpoints.names import check_name
from next_ray.checkpoints.pickles import open_pickle
from next_ray.checkpoints.tensor_file import TensorFile
from next_ray.errors import CheckpointFormatError

CONFIG_FILE = "config.json"
HEAD = "lm_head.weight"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.(safetensors|bin)")


@dataclass(frozen=True)
class StoredModel:
    """A model's tensors by name, read when they are asked for; `tied` says that the output head is the embedding."""

    folder: Path
    files: tuple[TensorFile, ...]
    places: Mapping[str, TensorFile]
    tied: bool

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return self.places[name].entries[name].shape

    def dtype(self, name: str) -> str:
        """A tensor's dtype as safetensors names it."""
        return self.places[name].entries[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor, float32; raises `CheckpointFormatError`."""
        return self.places[name].read(name)

    def matrices(self) -> list[str]:
        """Modules whose weight is a matrix [O, I]."""
        return [name.removesuffix(".weight") for name in self.places if name.endswith(".weight") and len(self.shape(name)) == 2]

    def others(self) -> list[str]:
        """Tensors that are no module's matrix: norms, biases, stacked experts."""
        return [name for name in self.places if not name.endswith(".weight") or len(self.shape(name)) != 2]


@dataclass(frozen=True)
class StoredMatrix:
    """One module's weights [O, I] along a trajectory; index 0 is the base."""

    models: tuple[StoredModel, ...]
    module: str

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        rows, columns = self.models[0].shape(f"{self.module}.weight")
        return rows, columns

    def load(self, index: int) -> np.ndarray:
        """The weight at checkpoint `index`, float32 [O, I]; nothing is kept."""
        return self.models[index].read(f"{self.module}.weight")


@dataclass(frozen=True)
class SavedVectors:
    """`SavedModules` over full models: everything that is no matrix."""

    models: tuple[StoredModel, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names."""
        return tuple(self.models[0].others())

    def load(self, index: int, name: str) -> np.ndarray:
        """The tensor at checkpoint `index`, float32."""
        return self.models[index].read(name)


def open_model_folder(folder: Path) -> StoredModel:
    """Read the headers of a model folder; raises `CheckpointFormatError` naming the file for anything out of order."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("quantization_config"):
        raise CheckpointFormatError(f"{folder} holds quantised weights; differences of weights need the full-precision model.")
    places: dict[str, TensorFile] = {}
    files = _files(folder)
    for file in files:
        for name in file.entries:
            check_name(name, file.path)
            if name in places:
                raise CheckpointFormatError(f"{folder}: tensor {name!r} is in {places[name].path.name} and in {file.path.name}.")
            places[name] = file
    if not places:
        raise CheckpointFormatError(f"{folder}: the weight files hold no tensor.")
    tied = _tied(config)
    if tied and len(places) > 1:
        # A tied head is the embedding whatever the file says: transformers overwrites it when it loads the model.
        places.pop(HEAD, None)
    return StoredModel(folder, files, dict(sorted(places.items())), tied)


def same_tensors(model: StoredModel, base: StoredModel) -> None:
    """Refuse a checkpoint whose tensors are not those of the base."""
    if odd := sorted(set(model.places) ^ set(base.places)):
        having, lacking = (model, base) if odd[0] in model.places else (base, model)
        raise CheckpointFormatError(
            f"{model.folder} does not match its base {base.folder}: tensor {odd[0]!r} is in {having.folder} but not in {lacking.folder}"
            f"{f' (and {len(odd) - 1} more)' if len(odd) > 1 else ''}. They are two models; give the base that training started from."
        )
    for name in model.places:
        if model.shape(name) != base.shape(name):
            raise CheckpointFormatError(
                f"{model.folder} does not match its base {base.folder}: tensor {name!r} is {list(model.shape(name))} there and "
                f"{list(base.shape(name))} in the base."
            )


def _tied(config: Mapping[str, object]) -> bool:
    nested = config.get("text_config")
    own = config.get("tie_word_embeddings")
    return bool(own if own is not None else nested.get("tie_word_embeddings") if isinstance(nested, dict) else False)


def _files(folder: Path) -> tuple[TensorFile, ...]:
    for index, opener in (("model.safetensors.index.json", open_safetensors), ("pytorch_model.bin.index.json", open_pickle)):
        single = folder / index.removesuffix(".index.json")
        if (folder / index).is_file():
            return _sharded(folder / index, opener)
        if single.is_file():
            return (opener(single),)
        lone = [path for path in sorted(folder.glob("*.safetensors")) if path.name != "adapter_model.safetensors"]
        if len(lone) == 1:
            return (open_safetensors(lone[0]),)
        if lone:
            raise CheckpointFormatError(f"{folder} has {len(lone)} safetensors files but no {index}, which says what belongs together.")
    raise CheckpointFormatError(f"{folder} has no model.safetensors, no shards with an index and no pytorch_model.bin.")


def _sharded(index: Path, opener: Callable[[Path], TensorFile]) -> tuple[TensorFile, ...]:
    table = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(shard, str) for shard in table.values()):
        raise CheckpointFormatError(f"{index}: weight_map is no table of tensor names and file names.")
    files: list[TensorFile] = []
    for shard in sorted(set(table.values())):
        if not _SHARD.fullmatch(shard):
            raise CheckpointFormatError(f"{index} names the shard {shard[:100]!r}, which is no file beside it. It was tampered with.")
        files.append(opener(index.parent / shard))
    held = {name: file.path.name for file in files for name in file.entries}
    if odd := sorted(name for name in {*table, *held} if table.get(name) != held.get(name)):
        raise CheckpointFormatError(
            f"{index} and the shards disagree about {odd[0][:100]!r}: by the index it is in {table.get(odd[0])}, it lies in "
            f"{held.get(odd[0])}. Copy the checkpoint again."
        )
    return tuple(files)
