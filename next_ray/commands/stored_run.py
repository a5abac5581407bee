"""A run as the report shows it, from its store alone; several requests are under way at once, since a bucket is far away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from next_ray.checkpoints.store_run import store_of
from next_ray.commands.measured import measured
from next_ray.errors import ConfigError, StoreError
from next_ray.report.page.data import Checkpoint, RunData, Weights
from next_ray.report.rows import Row, attempt_row, cleaned
from next_ray.store.checkpoints import CheckpointStore
from next_ray.store.layout import ATTEMPTS, CONFIG, SCORES, SUMMARY
from next_ray.store.lease import read_writer
from next_ray.types import Manifest

READERS = 8


def read_run(place: str, measure_bytes: int, endpoint_url: str | None = None) -> RunData:
    """Everything of the run at `place`, a folder or URL; adapters as far as they have no more than `measure_bytes` together.

    Raises:
        ConfigError: there is no run. StoreError: the store cannot be read, or a table or manifest is damaged.
    """
    with store_of(place, endpoint_url) as store, ThreadPoolExecutor(READERS) as pool:
        identity = store.identity()
        manifests = store.manifests()
        if not identity and not manifests:
            raise ConfigError(f"{store.url} holds no run. Give its folder or URL: store.url followed by run.name (`--help` has examples).")
        metrics, samples = (pool.submit(store.read_table, name) for name in ("metrics", "samples"))
        config, summary, scores = (pool.submit(store.get_json, name) for name in (CONFIG, SUMMARY, SCORES))
        attempts = pool.map(store.get_json, store.list_json(ATTEMPTS))
        weights, notes = _weights(store, manifests, measure_bytes)
        kept: Mapping[str, Any] = config.result() or {}
        holder = read_writer(store.storage, store.run)
        return RunData(
            name=store.run,
            url=store.url,
            model=_text(identity.get("model")),
            rank=identity.get("lora_rank"),
            fingerprint=_text(identity.get("base_fingerprint")) or "",
            checkpoints=tuple(map(_checkpoint, manifests)),
            rows=_rows(metrics),
            attempts=_made([attempt_row(record) for record in attempts if record], manifests),
            samples=samples.result(),
            settings=kept.get("config", {}),
            version=str(kept.get("version", "")),
            device=str(kept.get("device", "")),
            summary=_of_this_end(summary.result(), manifests, kept),
            scores=scores.result(),
            weights=weights,
            holder=holder.describe() if holder else None,
            notes=tuple(notes),
        )


def _rows(metrics: Future[list[Row]]) -> list[Row]:
    return [cleaned(row) for row in metrics.result()]


def _made(attempts: Sequence[Row], manifests: Sequence[Manifest]) -> list[Row]:
    """Attempts after committed steps; a driver that died may have left the record of one that will be made again."""
    last = max((manifest.step for manifest in manifests), default=0)
    return sorted((row for row in attempts if row["step"] <= last), key=lambda row: row["step"])


def _of_this_end(summary: Mapping[str, Any] | None, manifests: Sequence[Manifest], kept: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The final numbers, unless `run.steps` was raised since and the run goes on."""
    planned = kept.get("config", {}).get("run", {}).get("steps")
    last = max((manifest.step for manifest in manifests), default=0)
    return None if planned is not None and last < planned else summary


def _weights(store: CheckpointStore, manifests: Sequence[Manifest], measure_bytes: int) -> tuple[Weights, list[str]]:
    """A damaged or just deleted adapter costs the figures of the weights, not the page."""
    try:
        return measured(store, manifests, measure_bytes), []
    except StoreError as error:
        return Weights(), [f"The weights were not measured. {error}"]


def _checkpoint(manifest: Manifest) -> Checkpoint:
    size = sum(entry.size_bytes for entry in manifest.objects.values())
    start = manifest.metadata.get("segment_start", 0)
    return Checkpoint(manifest.id, manifest.step, str(manifest.kind), manifest.parents, start, manifest.created_at, size)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
