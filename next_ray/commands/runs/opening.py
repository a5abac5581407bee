"""Which run is meant: a name in a store, a folder or a URL, with a checkpoint where one is needed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from next_ray.commands.parser import Parser, did_you_mean

if TYPE_CHECKING:
    from next_ray.store.checkpoints import CheckpointStore

RUN_HELP = "its name in the store, its folder or its URL"


def add_store_options(parser: Parser) -> None:
    """`--store` and `--endpoint-url`, which `opened` reads."""
    parser.add_argument("--store", metavar="URL", help="where names of runs are looked up (default: the default store)")
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 server other than AWS")


def default_store() -> str:
    """The URL that `store.url` has when nobody sets it."""
    from next_ray.config.surroundings import StoreSection

    return StoreSection().url


def located(place: str, store: str | None = None) -> str:
    """The address of a run: what holds a slash is one already, a name is looked up in the store."""
    if "/" in place or (store is None and Path(place).is_dir()):
        return place
    return f"{(store or default_store()).rstrip('/')}/{place}"


@contextmanager
def opened(place: str, arguments: argparse.Namespace) -> Iterator[CheckpointStore]:
    """The store of a run that exists, open for the block; raises `StoreError` when there is none, with the name that is nearest."""
    from next_ray.checkpoints.store_run import store_of
    from next_ray.errors import StoreError

    with store_of(located(place, arguments.store), arguments.endpoint_url) as store:
        if not exists(store):
            others = [name for name in store.storage.runs() if name != store.run]
            raise StoreError(
                f"There is no run {store.run!r} in {store.storage.url}.{did_you_mean(store.run, others)} "
                f"`next-ray runs list {store.storage.url}` shows what there is."
            )
        yield store


def exists(store: CheckpointStore) -> bool:
    """Whether somebody began this run: it is bound to a model, or holds a checkpoint."""
    return bool(store.identity()) or bool(store.storage.list(f"{store.run}/manifests"))
