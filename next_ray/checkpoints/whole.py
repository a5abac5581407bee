"""A store's checkpoint of full weights as a model folder: what transformers, vLLM and our own commands open."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from next_ray.checkpoints.documents import read_json
from next_ray.errors import CheckpointFormatError
from next_ray.models.folder import CONFIG_FILE, INDEX_FILE, cache_root, publish
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Manifest, Weights
from next_ray.weights import rounded, write_parts

BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja", ".py")
"""Files of the base's folder that its descendants share: configuration, tokenizer, chat template."""


def cached_model(store: CheckpointStore, manifest: Manifest, base: Path) -> Path:
    """The checkpoint as a float32 model folder in the cache, made when it is not there; raises as `fill_model` does."""
    hashes = [manifest.base_fingerprint, *(entry.sha256 for name, entry in manifest.objects.items() if name.startswith("weights_"))]
    key = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]

    def make(draft: Path) -> None:
        fill_model(draft, store.load_weights(manifest), base)

    return publish(cache_root(None) / "checkpoints" / key, make)


def fill_model(draft: Path, parts: Iterable[Weights], base: Path, dtype: str = "float32") -> None:
    """Write weights, a part in memory at a time, with the base's configuration and tokenizer into an empty folder.

    Args:
        draft: the folder.
        parts: float32, all parameters of the model.
        base: the folder of the model that training started from.
        dtype: float32, float16 or bfloat16; weights are rounded once.

    Raises:
        CorruptCheckpointError: a part is damaged. CheckpointFormatError: the base is no model folder.
    """
    shards = write_parts((rounded(part, dtype) for part in parts), draft)
    index = {"metadata": {}, "weight_map": shards}
    (draft / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))
    for path in _beside_weights(base):
        shutil.copyfile(path, draft / path.name)
    config = {**read_json(base / CONFIG_FILE), "dtype": dtype}
    config.pop("torch_dtype", None)
    (draft / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))


def _beside_weights(base: Path) -> Iterator[Path]:
    if not (base / CONFIG_FILE).is_file():
        raise CheckpointFormatError(f"The base {base} is no model folder: it has no {CONFIG_FILE}.")
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in BESIDE_WEIGHTS and not path.name.endswith(".index.json"):
            yield path
