"""Large file sources read by Ray Data: rows are understood, deduplicated and tokenized by tasks all over the cluster.

The driver sees two hashes of each text and one of each answer, 24 bytes a row, and the distinct prompts; never the files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import ray.data

from next_ray.actors.cluster import OpenCluster, actor_environment
from next_ray.config import Config, FileSource
from next_ray.data.formats import Setting
from next_ray.data.pieces import QUOTED, UNCOUNTED, Decision, Reading, choose, decide, pieces_of, read_pieces, unpacked
from next_ray.data.prepare import Read, load_splits
from next_ray.data.sources import Loaded, LoadReport, conflict
from next_ray.data.template import PromptEncoder
from next_ray.errors import DataError
from next_ray.types import Prompt


def read_splits(config: Config, cluster: OpenCluster, tokenizer: Any) -> Read:
    """What `prepare.load_splits` gives, read by the cluster, with the lengths of the prompts.

    A tokenizer whose code comes with the model stays with the driver: the tasks' machines need not have that code.
    """
    reader = RayReader(cluster, None if config.model.trust_remote_code else PromptEncoder(tokenizer, config.data))
    return Read(*load_splits(config, reader), reader.lengths)


class RayReader:
    """A `sources.FileReader` that reads with the cluster's cores.

    Args:
        cluster: the open cluster; an embedded one lends the machine's cores to the tasks, whatever the run reserves of them.
        encoder: counts the tokens of the prompts; None leaves that to whoever filters them. It goes to the tasks.

    `lengths` are the tokens of all prompts read so far by their id; prompts whose id occurred with two lengths are left out.
    """

    def __init__(self, cluster: OpenCluster, encoder: PromptEncoder | None) -> None:
        self.lengths: dict[str, int] = {}
        self._ambiguous: set[str] = set()
        self._encoder = encoder
        cores = os.cpu_count() or 1
        share = min(1.0, cluster.resources.get("CPU", 1.0) / cores) if cluster.embedded else 1.0
        self._task: dict[str, Any] = {"num_cpus": share, "runtime_env": actor_environment("cpu", threads=1)}

    def __call__(self, source: FileSource, verifier: str, seed: int, storage_options: Mapping[str, Any], setting: Setting) -> Loaded:
        """The source's distinct prompts, as `sources.read_in_order` gives them; raises `DataError` naming file and row."""
        reading = Reading(source, verifier, seed, storage_options, setting)
        pieces = pieces_of(reading)
        _quiet()
        known = ray.put((reading, pieces))
        numbers: Any = ray.data.range(len(pieces), override_num_blocks=len(pieces))
        rows = numbers.map_batches(_read, batch_size=None, batch_format="pyarrow", fn_args=(known,), **self._task).materialize()
        # Not `select_columns`, whose tasks would start workers of another environment.
        decision = _decided(rows.map_batches(_hashes, batch_size=None, batch_format="pyarrow", **self._task), len(pieces))
        marks = ray.put((decision.marks, verifier, self._encoder))
        left = rows.map_batches(_choose, batch_size=None, batch_format="pyarrow", fn_args=(marks,), **self._task)
        return self._loaded(reading, left, decision)

    def _loaded(self, reading: Reading, left: Any, decision: Decision) -> Loaded:
        starts = np.cumsum([0, *map(len, decision.marks)])
        prompts: list[Prompt] = []
        quoted: dict[int, Prompt] = {}
        for table in left.iter_batches(batch_size=None, batch_format="pyarrow"):
            for piece, row, content, tokens in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
                mark, prompt = decision.marks[piece][row], unpacked(content, reading.verifier)
                if mark & QUOTED:
                    quoted[int(starts[piece]) + row] = prompt
                if mark == QUOTED:
                    continue
                prompts.append(prompt)
                if tokens != UNCOUNTED:
                    self._count(prompt.id, tokens)
        examples = tuple(conflict(quoted[first], quoted[other]) for first, other in decision.quoted)
        repeated = decision.rows - decision.prompts
        return Loaded(prompts, LoadReport(reading.source.path, decision.rows, len(prompts), repeated, decision.conflicts, examples))

    def _count(self, prompt: str, tokens: int) -> None:
        """Sources may hold one text below two system messages."""
        if prompt not in self._ambiguous and self.lengths.setdefault(prompt, tokens) != tokens:
            self._ambiguous.add(prompt)
            del self.lengths[prompt]


def _read(batch: Any, known: Any) -> Any:
    reading, pieces = _fetched(known)
    return read_pieces(reading, pieces, batch.column("id").to_pylist())


def _hashes(rows: Any) -> Any:
    return rows.drop_columns(["content"])


def _choose(rows: Any, known: Any) -> Any:
    return choose(rows, *_fetched(known))


def _fetched(value: Any) -> Any:
    return _once(value) if isinstance(value, ray.ObjectRef) else value


@lru_cache(maxsize=1)
def _once(ref: Any) -> Any:
    """What all tasks of a pass share, once a process: to unpack a tokenizer takes longer than to read a small shard."""
    return ray.get(ref)


def _decided(rows: Any, num_pieces: int) -> Decision:
    """What stays, from the hashes of all rows; raises the first piece's complaint."""
    sizes = np.zeros(num_pieces, np.int64)
    hashes: list[list[np.ndarray]] = [[], [], []]
    last = 0
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        if errors := [text for text in table.column("error").to_pylist() if text]:
            raise DataError(errors[0])
        pieces = table.column("piece").to_numpy()
        assert not len(pieces) or last <= pieces[0], "blocks come in the source's order"
        last = int(pieces[-1]) if len(pieces) else last
        sizes += np.bincount(pieces, minlength=num_pieces)
        for collected, name in zip(hashes, ("text_high", "text_low", "answer"), strict=True):
            collected.append(table.column(name).to_numpy())
    high, low, answers = (np.concatenate([np.zeros(0, np.int64), *collected]) for collected in hashes)
    return decide(sizes.tolist(), high, low, answers)


def _quiet() -> None:
    """No progress bars and plans on the run's panel; blocks in order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
