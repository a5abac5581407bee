"""Large sets read by Ray Data on a real Ray: the same prompts, order, counts and lengths as row by row, and errors with their place."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from next_ray.actors.cluster import OpenCluster, open_cluster
from next_ray.actors.reading import RayReader, read_splits
from next_ray.config import ClusterSection, Config, DataSection, FewShotTurn, FileSource
from next_ray.data.formats import TRAIN
from next_ray.data.pieces import KEPT, QUOTED, Reading, decide, pieces_of, read_piece
from next_ray.data.prepare import Read, filter_by_length, load_splits, load_tokenizer
from next_ray.data.sources import read_in_order
from next_ray.data.template import PromptEncoder
from next_ray.errors import DataError
from tests.rollout.tiny_model import save_tiny_model
from tests.s3_server import s3_server

ROWS_OF_A_SHARD = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[OpenCluster]:
    with open_cluster(ClusterSection(dashboard=False), "test-reading", 2) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder, characters='0123456789+-= \néü"')
    return load_tokenizer(str(folder), False)


def rows(shard: int) -> list[dict[str, Any]]:
    """Sums of few operands, so that texts repeat within shards and between them; some answers contradict, some prompts are long."""
    draw = random.Random(shard)
    made = []
    for _ in range(ROWS_OF_A_SHARD):
        a, b = draw.randrange(12), draw.randrange(12)
        text = f"{a}+{b}=" + (" " * draw.randrange(3)) if draw.random() < 0.9 else "+".join([str(a)] * 20) + "="
        answer = a + b if draw.random() < 0.95 else draw.randrange(99)
        made.append({"problem": text, "answer": str(answer), "level": 'é"\n'})
    return made


def write(folder: Path, extension: str, num_shards: int = 5) -> Path:
    folder.mkdir()
    for shard in range(num_shards):
        path = folder / f"s{shard:02d}.{extension}"
        if extension == "parquet":
            pq.write_table(pa.Table.from_pylist(rows(shard)), path, row_group_size=25)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(shard)))
    return folder


def config(path: Path, **data: Any) -> Config:
    section = DataSection(train=FileSource(path=str(path)), gate_prompts=5, test_prompts=7, max_prompt_tokens=30, **data)
    return Config(data=section)


@pytest.mark.ray
@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_the_same_as_row_by_row(cluster: OpenCluster, tokenizer: Any, tmp_path: Path, extension: str):
    job = config(write(tmp_path / "set", extension), few_shot=(FewShotTurn(prompt="1+1=", answer="2"),), template="= {prompt}")
    job = job.model_copy(
        update={"data": job.data.model_copy(update={"held_out": FileSource(path=str(write(tmp_path / "held", "csv", 0)))})}
    )
    (tmp_path / "held" / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(99)))
    expected, found = Read(*load_splits(job)), read_splits(job, cluster, tokenizer)
    assert found.splits == expected.splits and found.report == expected.report
    assert "another answer" in found.report and "duplicates" in found.report and "shown as examples" in found.report
    encoder = PromptEncoder(tokenizer, job.data)
    prompts = [*found.splits.train, *found.splits.gate, *found.splits.test]
    assert [found.lengths[prompt.id] for prompt in prompts] == encoder.lengths(prompts)
    assert filter_by_length(found.splits, tokenizer, job, found.lengths) == filter_by_length(expected.splits, tokenizer, job)
    assert "longer than 30 tokens left out" in filter_by_length(found.splits, tokenizer, job, found.lengths)[1]


@pytest.mark.ray
@pytest.mark.s3
def test_from_s3_without_a_tokenizer(cluster: OpenCluster, tmp_path: Path):
    with s3_server() as server:
        key, secret = (server.credentials[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
        options: dict[str, Any] = {"endpoint_url": server.endpoint_url, "key": key, "secret": secret}
        folder = write(tmp_path / "set", "parquet")
        s3fs.S3FileSystem(**options, skip_instance_cache=True).put(f"{folder}/", f"{server.bucket}/set/", recursive=True)
        reader = RayReader(cluster, None)
        found = reader(FileSource(path=f"{server.url}/set/*.parquet"), "math", 3, options, TRAIN)
    expected = read_in_order(FileSource(path=str(folder)), "math", 3, {}, TRAIN)
    assert found.prompts == expected.prompts and reader.lengths == {}
    assert str(found.report).removeprefix(found.report.origin) == str(expected.report).removeprefix(expected.report.origin)


@pytest.mark.ray
def test_the_first_failing_row_is_named(cluster: OpenCluster, tmp_path: Path):
    folder = write(tmp_path / "set", "jsonl")
    for shard, line in ((3, 5), (1, 40)):
        path = folder / f"s{shard:02d}.jsonl"
        lines = path.read_text().splitlines()
        lines[line - 1] = '{"problem": "1+1="}' if shard == 1 else "{oops}"
        path.write_text("\n".join(lines))
    source = FileSource(path=str(folder))
    with pytest.raises(DataError) as expected:
        read_in_order(source, "math", 0, {}, TRAIN)
    with pytest.raises(DataError, match=r"s01\.jsonl, line 40: expected an answer in one of") as found:
        RayReader(cluster, None)(source, "math", 0, {}, TRAIN)
    assert str(found.value) == str(expected.value)
    (folder / "s01.jsonl").unlink()
    with pytest.raises(DataError, match=r"s03\.jsonl, line 5: not valid JSON"):
        RayReader(cluster, None)(source, "math", 0, {}, TRAIN)


def test_a_large_parquet_file_is_read_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "one.parquet"
    pq.write_table(pa.Table.from_pylist([*rows(0), {"problem": "1+1=", "answer": None, "level": ""}]), path, row_group_size=10)
    reading = Reading(FileSource(path=str(path)), "math", 0, {}, TRAIN)
    assert [piece.groups for piece in pieces_of(reading)] == [None]
    size = pq.read_metadata(path).row_group(0).total_byte_size
    monkeypatch.setattr("next_ray.data.pieces.PIECE_BYTES", int(size * 2.5))
    pieces = pieces_of(reading, piece_bytes=100)
    assert len(pieces) > 2 and [piece.groups[0] for piece in pieces[1:] if piece.groups] == [p.groups[1] for p in pieces[:-1] if p.groups]
    tables = [read_piece(reading, number, piece) for number, piece in enumerate(pieces)]
    assert sum(table.num_rows for table in tables[:-1]) >= 40
    (error,) = tables[-1].column("error").to_pylist()
    assert f"row {ROWS_OF_A_SHARD + 1}: expected an answer" in error


def test_of_equal_texts_the_first_stays():
    texts, answers = np.array([7, 8, 7, 9, 8, 7]), np.array([1, 1, 2, 1, 1, 3])
    decision = decide([2, 0, 4], texts, texts * 5, answers)
    assert [marks.tolist() for marks in decision.marks] == [[KEPT | QUOTED, KEPT], [], [QUOTED, KEPT, 0, QUOTED]]
    assert (decision.rows, decision.prompts, decision.conflicts, decision.quoted) == (6, 3, 2, ((0, 2), (0, 5)))
    assert decide([0], *[np.zeros(0, np.int64)] * 3).prompts == 0
