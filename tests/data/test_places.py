"""Folders, patterns and shards, on this machine and on S3; the hub without a network; and how much of a parquet file is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from next_ray.config import FileSource
from next_ray.data.files import read_rows
from next_ray.data.sources import load_problems
from next_ray.errors import DataError
from tests.s3_server import S3Server


def shard(folder: Path, name: str, *problems: str, answer: str | None = "1") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": problem, "answer": answer} for problem in problems]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(path: Path | str, options: dict[str, object] | None = None) -> list[str]:
    return [prompt.messages[0]["content"] for prompt in load_problems(FileSource(path=str(path)), 0, "auto", options).prompts]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in (1, 0):
        shard(tmp_path, f"set/train-{number}.parquet", f"t{number}", "both")
    shard(tmp_path, "set/deep/test-0.parquet", "e0")
    (tmp_path / "set" / "_SUCCESS").write_text("")
    (tmp_path / "set" / ".part.parquet").write_bytes(b"torn")
    (tmp_path / "set" / "README.md").write_text("# set")
    return tmp_path / "set"


def test_folders_and_patterns_stand_for_their_files_in_the_order_of_names(shards: Path) -> None:
    assert texts(shards) == ["e0", "t0", "both", "t1"]
    assert texts(shards / "train-*.parquet") == ["t0", "both", "t1"]
    assert texts(shards / "**" / "test-?.parquet") == ["e0"]
    report = load_problems(FileSource(path=str(shards)), 0).report
    assert (report.rows, report.duplicates) == (5, 1)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    shard(tmp_path, "a[1].jsonl", "p")
    assert texts(tmp_path / "a[1].jsonl") == ["p"]


def test_errors_name_the_shard(shards: Path) -> None:
    shard(shards, "train-2.parquet", "fine", "q", answer=None)
    with pytest.raises(DataError, match=r"set, train-2\.parquet, row 1: expected an answer"):
        texts(shards)
    (shards / "train-2.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match=r"set, train-2\.parquet: not a readable parquet file"):
        texts(shards)
    with pytest.raises(DataError, match="no file matches this pattern"):
        texts(shards / "valid-*.parquet")
    (shards.parent / "empty").mkdir()
    with pytest.raises(DataError, match="this folder holds no file that is read"):
        texts(shards.parent / "empty")
    shard(shards.parent, "mixed/a.jsonl", "p")
    shard(shards.parent, "mixed/b.parquet", "p")
    with pytest.raises(DataError, match=r"several formats, \.jsonl, \.parquet.*mixed/\*\.parquet"):
        texts(shards.parent / "mixed")


def test_the_hub_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in ("openai/gsm8k/main/train.parquet", "openai/gsm8k/main/*.parquet", "openai/gsm8k"):
        with pytest.raises(DataError, match=r"hf://datasets/openai/gsm8k.*(offline|no such file).*HF_TOKEN.*hf download") as caught:
            texts(f"hf://datasets/{path}")
        assert "\n" not in str(caught.value)


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    columns = {"question": [f"q{n}" for n in range(3000)], "answer": ["1"] * 3000, "trace": [os.urandom(700) for _ in range(3000)]}
    with MemoryFileSystem().open("/columns/d.parquet", "wb") as file:
        pq.write_table(pa.table(columns), file, row_group_size=500)
    num_bytes = 0
    read = MemoryFile.read

    def counted(self: MemoryFile, *size: int) -> bytes:
        nonlocal num_bytes
        content = read(self, *size)
        num_bytes += len(content)
        return content

    monkeypatch.setattr(MemoryFile, "read", counted)
    assert len(texts("memory://columns/d.parquet")) == 3000
    assert 0 < num_bytes < 200_000
    rows = read_rows("memory://columns/d.parquet", {})
    assert set(next(rows).value) == {"question", "answer", "trace"}
    assert num_bytes < 1_000_000  # one row group of six, 0.35 MB each


def test_columns_of_other_names_are_named_in_the_complaint(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p"], "answer": ["1"], "gold": ["1"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="the row has text, answer, gold"):
        texts(tmp_path / "d.parquet")
    source = FileSource(path=str(tmp_path / "d.parquet"), prompt_field="text", answer_field="gold")
    assert load_problems(source, 0).prompts[0].answer == "1"


@pytest.mark.s3
def test_folders_and_patterns_on_s3(shards: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_url": server.endpoint_url, "skip_instance_cache": True}
    remote = s3fs.S3FileSystem(**options)
    for path in shards.rglob("*.parquet"):
        remote.put_file(str(path), f"{server.bucket}/{path.relative_to(shards.parent)}")
    assert texts(f"{server.url}/set", options) == texts(shards)
    assert texts(f"{server.url}/set/train-*.parquet", options) == texts(shards / "train-*.parquet")
    assert texts(f"{server.url}/set/train-1.parquet", options) == ["t1", "both"]
    with pytest.raises(DataError, match="no file matches this pattern"):
        texts(f"{server.url}/set/valid-*.parquet", options)
    with pytest.raises(DataError, match="no such file"):
        texts(f"{server.url}/nowhere", options)
