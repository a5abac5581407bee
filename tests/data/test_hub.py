"""Data sets on the hub, read over HTTP from a server on this machine by the real huggingface_hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from next_ray.data.files import Part, rows_of_part
from next_ray.data.hub import at_commit, commit_of
from next_ray.errors import DataError
from tests.hub_server import SIGNATURE, TOKEN, Hub, Repository, serving

OLD, NEW, CONVERTED = "a" * 40, "b" * 40, "c" * 40
SET = "hf://datasets/lab/sums"

READER = """
import json, sys, time
from next_ray.commands.evaluate import origins
from next_ray.commands.problems import Reading, load_set
from next_ray.errors import NextRayError
from next_ray.evaluate.benchmarks import Benchmark

wait = time.sleep
time.sleep = lambda seconds: wait(seconds / 100)  # of the waits between tries
for path in sys.argv[1:]:
    try:
        found = load_set(Benchmark("s", template="{prompt}"), path, Reading())
        texts = [prompt.messages[0]["content"] for prompt in found.prompts]
        print(json.dumps([path, {"texts": texts, "report": found.report, **origins([found])["s"]}]))
    except NextRayError as error:
        print(json.dumps([path, {"error": str(error)}]))
"""
"""Reads each address as evaluate does, in a process of its own: huggingface_hub takes its settings from the environment once."""


def table(*problems: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"question": problem, "answer": "1"} for problem in problems]), sink)
    return sink.getvalue()


def lines(*problems: str) -> bytes:
    return b"".join(json.dumps({"question": problem, "answer": "1"}).encode() + b"\n" for problem in problems)


def read(hub: Hub, *paths: str, token: str | None = None) -> dict[str, dict[str, Any]]:
    """Outcomes by address; nothing secret may be said anywhere."""
    done = run(hub, "-c", READER, *paths, token=token)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def run(hub: Hub, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": "/nonexistent", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False)
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text, text
        assert SIGNATURE not in text and TOKEN not in text and (token or TOKEN) not in text
    return done


@pytest.fixture
def hub() -> Iterator[Hub]:
    converted = {"default/test/0000.parquet": table("q converted")}
    files = {
        "train.parquet": table("q new"),
        "data/a-0.jsonl": lines("q a0"),
        "data/deep/a-1.jsonl": lines("q a1"),
        "data/README.md": b"# sums",
        "options.json": json.dumps([{"question": "q json", "answer": "1"}]).encode(),
        "table.csv": b"question,answer\nq csv,1\n",
        "long.jsonl": lines(*(f"q {n}" for n in range(100))),
        "long.json": lines(*(f"q {n}" for n in range(100))),
        "long.parquet": table(*(f"q {n}" for n in range(100))),
        "stored.parquet": table("q stored"),
    }
    repositories = {
        "lab/sums": Repository(
            {"main": NEW, "v1": OLD, "refs/convert/parquet": CONVERTED},
            {OLD: {"train.parquet": table("q old")}, NEW: files, CONVERTED: converted},
        ),
        "lab/gated": Repository({"main": NEW}, {NEW: {"train.parquet": table("q gated")}}, "gated"),
        "lab/private": Repository({"main": NEW}, {NEW: {"train.parquet": table("q private")}}, "private"),
    }
    with serving(Hub(repositories, stored={"stored.parquet"})) as started:
        yield started


def test_files_folders_patterns_and_revisions(hub: Hub) -> None:
    expected = {
        f"{SET}/train.parquet": (["q new"], f"{SET}@{NEW}/train.parquet"),
        f"{SET}@v1/train.parquet": (["q old"], f"{SET}@{OLD}/train.parquet"),
        f"{SET}@{OLD}/train.parquet": (["q old"], f"{SET}@{OLD}/train.parquet"),
        f"{SET}@refs/convert/parquet/default/test/0000.parquet": (["q converted"], f"{SET}@{CONVERTED}/default/test/0000.parquet"),
        f"{SET}/data": (["q a0", "q a1"], f"{SET}@{NEW}/data"),
        f"{SET}/data/*.jsonl": (["q a0"], f"{SET}@{NEW}/data/*.jsonl"),
        f"{SET}/options.json": (["q json"], f"{SET}@{NEW}/options.json"),
        f"{SET}/table.csv": (["q csv"], f"{SET}@{NEW}/table.csv"),
        f"{SET}/long.jsonl": ([f"q {n}" for n in range(100)], f"{SET}@{NEW}/long.jsonl"),
    }
    found = read(hub, *expected)
    for path, (texts, address) in expected.items():
        assert "error" not in found[path], found[path]
        assert (found[path]["texts"], found[path]["address"]) == (texts, address)
        assert found[path]["revision"] == commit_of(address)
        assert f"{address}: {len(texts)} prompts from" in found[path]["report"]


def test_errors_say_what_where_and_what_to_do(hub: Hub) -> None:
    hub.cut |= {"long.parquet"}
    hub.short |= {"long.jsonl", "long.json"}
    expected = {
        f"{SET}/missing.parquet": ("no such file", "Check organisation"),
        f"{SET}/missing-*.parquet": ("no file matches", "Check the path"),
        f"{SET}@v9/train.parquet": ("no such revision", "commit, tag or branch"),
        "hf://datasets/lab/nothing/train.parquet": ("no such data set, or it is private", "HF_TOKEN"),
        "hf://datasets/lab/private/train.parquet": ("no such data set, or it is private", "HF_TOKEN"),
        "hf://datasets/lab/gated/train.parquet": ("is gated", "Accept its terms"),
        f"{SET}/stored.parquet": ("access denied (HTTP 403)", "HF_TOKEN"),
        f"{SET}/long.parquet": ("broke off", "the local path"),
        f"{SET}/long.jsonl": ("shorter than the one the hub lists", "Try again"),
        f"{SET}/long.json": ("shorter than the one the hub lists", "Try again"),
        "hf://datasets/one": ("cannot be read", "hf://datasets/ORG/NAME/FILE"),
        "hf://": ("cannot be read", "hf://datasets/ORG/NAME/FILE"),
    }
    found = read(hub, *expected)
    for path, (what, advice) in expected.items():
        text = found[path].get("error", found[path])
        base, _, rest = path.partition("/train")[0].partition("@")
        assert text.startswith(base[: len("hf://datasets/lab/s")]) and rest in text, text
        assert what in text and advice in text and "--data s=PATH" in text, text
        assert "\n" not in text and "?" not in text, text


def test_tokens_open_private_sets_and_are_never_shown(hub: Hub) -> None:
    private, gated = "hf://datasets/lab/private/train.parquet", "hf://datasets/lab/gated/train.parquet"
    found = read(hub, private, gated, "hf://datasets/lab/nothing/a.csv", token=TOKEN)
    assert found[private]["texts"] == ["q private"]
    assert "is gated" in found[gated]["error"]
    assert "no such data set" in found["hf://datasets/lab/nothing/a.csv"]["error"]
    (refused,) = read(hub, private, token="hf_ExpiredLongAgo").values()
    assert "does not accept the token (HTTP 401)" in refused["error"]


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    info, tree, file = "/api/datasets/lab/sums/revision/main", f"/api/datasets/lab/sums/tree/{NEW}", "/datasets/lab/sums/resolve"
    hub.busy = {info: 1, tree: 1, "/api/datasets/lab/sums": 1, f"{file}/{NEW}/train.parquet": 1}
    (found,) = read(hub, f"{SET}/train.parquet").values()
    assert found["texts"] == ["q new"]
    assert set(hub.busy.values()) == {0}

    hub.busy = {"/api/datasets/lab/sums": 1000, info: 1000}
    (found,) = read(hub, f"{SET}/train.parquet").values()
    assert "busy or down (HTTP 503)" in found["error"] and "Try again later" in found["error"]


def test_a_pinned_address_is_read_without_asking_for_its_commit(hub: Hub) -> None:
    (found,) = read(hub, f"{SET}@{OLD}/train.parquet").values()
    assert found["texts"] == ["q old"] and found["revision"] == OLD
    assert not [path for path in hub.asked if path.endswith(("/main", "/sums"))]
    assert hub.asked.count(f"/api/datasets/lab/sums/revision/{OLD}") == 1
    for path in (f"{SET}@{OLD}", f"{SET}@{OLD}/a.csv", "/a/b@c/d.csv", "s3://bucket/a.csv"):
        assert at_commit(path) == path


def test_the_command_ends_with_a_paragraph(hub: Hub, tmp_path: Path) -> None:
    path = "hf://datasets/lab/gated/train.parquet"
    done = run(hub, "-m", "next_ray.evaluate", "tiny", "--data", f"mine={path}", "--output", str(tmp_path), token=TOKEN)
    assert done.returncode == 2, done.stderr
    assert path.partition("/train")[0] in done.stderr and "Accept its terms" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_ends_early_is_no_shorter_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content, torn in ((lines("one", "two"), False), (lines("one"), True), (lines("one", "two")[:-9], True)):
        path.write_bytes(content)
        with path.open("rb") as file:
            part = Part(str(path), "", len(lines("one", "two")))
            rows = rows_of_part(str(path), LocalFileSystem(), part, None)
            assert next(rows).value["question"] == "one"
            if torn:
                with pytest.raises(DataError, match=rf"only {len(file.read())} of {part.num_bytes} bytes came.*Run the command again"):
                    list(rows)
            else:
                assert len(list(rows)) == 1
    path.write_bytes(b"{torn}\n" + lines("two"))
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        list(rows_of_part(str(path), LocalFileSystem(), Part(str(path), "", 1000), None))


def test_nobody_answers() -> None:
    (found,) = read(Hub({}, endpoint="http://127.0.0.1:9"), f"{SET}/train.parquet").values()
    assert "cannot be reached" in found["error"] and "HF_ENDPOINT" in found["error"]
