"""A file source read in pieces, in any order and in any process, with the result of reading it row by row.

Every piece becomes a table: hashes of each row's text and answer, and the row itself. Whoever puts the pieces together needs the hashes
alone to know which rows stay; of the others it never sees a text. Shape legend: N rows of all pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from next_ray.config import FileSource
from next_ray.data.files import Part, columns_of, find_parts, prompts_of, rows_of_part
from next_ray.data.formats import Setting
from next_ray.data.places import extension_of, file_system, readable
from next_ray.data.prompts import make_prompt, prompt_text
from next_ray.data.sources import NUM_EXAMPLES
from next_ray.data.template import PromptEncoder
from next_ray.errors import DataError
from next_ray.types import Prompt

PIECE_BYTES = 64 * 2**20
"""A parquet file of more is several pieces, of whole row groups; any other file is one."""
KEPT, QUOTED = 1, 2
"""Marks of a row: a distinct prompt, and one whose answer a report quotes."""
UNCOUNTED = -1

ROWS = pa.schema(
    [
        ("piece", pa.int32()),
        ("row", pa.int32()),
        *((name, pa.int64()) for name in ("text_high", "text_low", "answer")),
        ("content", pa.binary()),
        ("error", pa.string()),
    ]
)
"""A piece as a table; `content` is null where the piece has the text and the answer already, `error` is in a row of its own."""
CHOSEN = pa.schema([("piece", pa.int32()), ("row", pa.int32()), ("content", pa.binary()), ("tokens", pa.int32())])
"""What is left of a piece; `tokens` is `UNCOUNTED` without an encoder."""


@dataclass(frozen=True)
class Reading:
    """What to read and how; the arguments of `sources.FileReader`."""

    source: FileSource
    verifier: str
    seed: int
    storage_options: Mapping[str, Any]
    setting: Setting


@dataclass(frozen=True)
class Piece:
    """A file, or row groups `groups[0]` to `groups[1] - 1` of it."""

    part: Part
    groups: tuple[int, int] | None = None


@dataclass(frozen=True)
class Decision:
    """Which rows stay: marks uint8 [rows of the piece] of every piece, counts, and the rows (position of the first, of the other) of the
    conflicts that are quoted."""

    marks: tuple[np.ndarray, ...]
    rows: int
    prompts: int
    conflicts: int
    quoted: tuple[tuple[int, int], ...]


def pieces_of(reading: Reading, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The pieces of a source in its order; raises `DataError` when it cannot be found."""
    pieces: list[Piece] = []
    with readable(reading.source.path, reading.setting.path):
        files, parts = find_parts(reading.source.path, reading.storage_options)
        for part in parts:
            if part.num_bytes <= piece_bytes or extension_of(part.name) != ".parquet":
                pieces.append(Piece(part))
                continue
            try:
                with files.open(part.name, "rb") as file:
                    table = pq.read_metadata(file)
            except pa.ArrowInvalid:
                pieces.append(Piece(part))  # whoever reads it says what is wrong
                continue
            pieces += [Piece(part, groups) for groups in _groups([table.row_group(i).total_byte_size for i in range(table.num_row_groups)])]
    return pieces


def _groups(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring row groups of about `PIECE_BYTES` together."""
    starts, held = [0], 0
    for index, size in enumerate(sizes):
        if held and held + size > PIECE_BYTES:
            starts.append(index)
            held = 0
        held += size
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def read_piece(reading: Reading, number: int, piece: Piece) -> pa.Table:
    """A piece as a table of the schema `ROWS`. What the user has to mend is the text of its one row."""
    columns: dict[str, list[Any]] = {name: [] for name in ROWS.names}
    seen: dict[int, set[int]] = {}
    try:
        with readable(reading.source.path, reading.setting.path):
            files, _ = file_system(reading.source.path, reading.storage_options)
            rows = rows_of_part(reading.source.path, files, piece.part, columns_of(reading.source), piece.groups)
            for row, prompt in enumerate(prompts_of(rows, reading.source, reading.verifier, reading.seed, reading.setting)):
                high, low = _hashes(prompt_text(prompt.messages))
                answer = _hashes(prompt.answer.strip())[0]
                known = seen.setdefault(high ^ low, set())
                content = None if answer in known else _packed(prompt)
                known.add(answer)
                for name, value in zip(ROWS.names, (number, row, high, low, answer, content, None), strict=True):
                    columns[name].append(value)
    except DataError as error:
        return pa.Table.from_pylist([{"piece": number, "row": 0, "error": str(error)}], ROWS)
    return pa.Table.from_pydict(columns, ROWS)


def read_pieces(reading: Reading, pieces: Sequence[Piece], numbers: Sequence[int]) -> pa.Table:
    """Some of the pieces, one after the other; see `read_piece`."""
    return pa.concat_tables([read_piece(reading, number, pieces[number]) for number in numbers])


def decide(sizes: Sequence[int], text_high: np.ndarray, text_low: np.ndarray, answers: np.ndarray) -> Decision:
    """Which rows are distinct prompts: of equal texts the first.

    Args:
        sizes: rows of every piece, N together.
        text_high: first 64 bits of the hashes of the texts, int64 [N], in the source's order.
        text_low: the next 64 bits, int64 [N].
        answers: 64 bits of the hashes of the answers, int64 [N].
    """
    total = len(answers)
    order = np.lexsort((text_low, text_high))  # stable: equal texts stay in the source's order
    high, low = text_high[order], text_low[order]
    begins = np.ones(total, bool)
    begins[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = np.empty(total, np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    kept = first == np.arange(total)
    conflicts = np.flatnonzero(answers != answers[first])
    marks = kept.astype(np.uint8) * KEPT
    quoted = tuple((int(first[index]), int(index)) for index in conflicts[:NUM_EXAMPLES])
    for pair in quoted:
        marks[list(pair)] |= QUOTED
    return Decision(tuple(np.split(marks, np.cumsum(sizes)[:-1])), total, int(kept.sum()), len(conflicts), quoted)


def choose(rows: pa.Table, marks: Sequence[np.ndarray], verifier: str, encoder: PromptEncoder | None) -> pa.Table:
    """What is marked of rows of the schema `ROWS`, as a table of the schema `CHOSEN`, with its tokens counted by the encoder."""
    pieces, places = (rows.column(name).to_numpy() for name in ("piece", "row"))
    wanted = [index for index, (piece, row) in enumerate(zip(pieces, places, strict=True)) if marks[piece][row]]
    left = rows.select(["piece", "row", "content"]).take(wanted)
    lengths = [UNCOUNTED] * len(wanted)
    if encoder is not None:
        lengths = encoder.lengths([unpacked(content, verifier) for content in left.column("content").to_pylist()])
    return left.append_column("tokens", pa.array(lengths, pa.int32())).cast(CHOSEN)


def unpacked(content: bytes, verifier: str) -> Prompt:
    """The prompt of a `content`."""
    messages, answer, metadata = json.loads(content.decode("utf-8", "surrogatepass"))
    return make_prompt(messages, answer, verifier, metadata)


def _packed(prompt: Prompt) -> bytes:
    fields = [[dict(message) for message in prompt.messages], prompt.answer, dict(prompt.metadata)]
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _hashes(text: str) -> tuple[int, int]:
    """128 bits of sha256: among a billion texts two are taken for one with probability 1e-21."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(digest[8:16], "little", signed=True)
