"""`python -m benchmarks reading`: a large set read, deduplicated and filtered by length: by the driver, by Ray Data, by datasets.

Every reader has a process of its own and reads the same shards. `cpu_s` counts the process and everything below it: wall clock means
little on a machine that does other things (`load` is what was running when it began). `driver_gib` is the peak of the process itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READERS = ("local", "ray", "datasets")
MAX_PROMPT_TOKENS = 128
SHARE_OF_DUPLICATES = 0.2
WORDS = ("Find", "the", "number", "of", "integers", "such", "that", "triangle", "sum", "$x^2+y^2$", "prime", "when", "is", "divided", "by")


def main(argv: list[str]) -> int:
    """Print one line of JSON a reader."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks reading", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="parquet")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=READERS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer and chat template; prepared already")
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-reading"))
    parser.add_argument("--tree", type=int, help="a process that is counted with all below it: of the Ray at RAY_ADDRESS")
    parser.add_argument("--only", choices=READERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    folder = arguments.folder / f"{arguments.format}-{arguments.rows}-{arguments.shards}"
    if arguments.only:
        print(json.dumps(measured(arguments.only, folder, arguments)))
        return 0
    if not folder.exists():
        write_shards(folder, arguments.rows, arguments.shards, arguments.format)
    for run in range(arguments.runs):
        for reader in arguments.readers:
            command = [sys.executable, "-m", "benchmarks", "reading", *argv, "--only", reader]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr[-3000:], file=sys.stderr)
                return 1
            print(json.dumps({"run": run, "reader": reader, **json.loads(done.stdout.splitlines()[-1])}), flush=True)
    return 0


def write_shards(folder: Path, rows: int, shards: int, extension: str) -> None:
    """Problems of 20 to 150 words in verl's layout; a fifth of them occur before."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    texts: list[str] = []
    draft = folder.with_name(f".{folder.name}")
    draft.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        made = []
        for _ in range(rows // shards):
            if texts and draw.random() < SHARE_OF_DUPLICATES:
                text = draw.choice(texts)
            else:
                text = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(20, 150))) + f" {draw.random()}"
                texts.append(text)
            prompt = [{"role": "user", "content": text}]
            made.append({"data_source": "made", "prompt": prompt, "reward_model": {"style": "rule", "ground_truth": str(len(text))}})
        path = draft / f"shard-{shard:03d}.{extension}"
        if extension == "parquet":
            pq.write_table(pa.Table.from_pylist(made), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
    draft.rename(folder)


def measured(reader: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory and what was left, of one reader in this process; loading the tokenizer and starting Ray are not counted."""
    from next_ray.config import Config, DataSection, FileSource, ModelSection
    from next_ray.data.prepare import load_tokenizer
    from next_ray.models.resolve import prepare_model

    model = prepare_model(ModelSection(name=arguments.model), lambda *_: None)
    tokenizer = load_tokenizer(model.path, False)
    source = FileSource(path=str(folder))
    config = Config(data=DataSection(train=source, gate_prompts=96, test_prompts=256, max_prompt_tokens=MAX_PROMPT_TOKENS))
    load = os.getloadavg()[0]
    found = {"local": by_driver, "ray": by_ray, "datasets": by_datasets}[reader](config, tokenizer, arguments)
    return {**found, "load": round(load, 1), "driver_gib": round(_peak_gib(), 2)}


def by_driver(config: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run does with `data.reader=local`."""
    from next_ray.data.prepare import filter_by_length, load_splits

    with Clock() as clock:
        splits, _ = filter_by_length(load_splits(config)[0], tokenizer, config)
    return {**clock.seconds, "prompts": len(splits.train)}


def by_ray(config: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run does with `data.reader=ray`."""
    from next_ray.actors.cluster import open_cluster
    from next_ray.actors.reading import read_splits
    from next_ray.config import ClusterSection
    from next_ray.data.prepare import filter_by_length

    with open_cluster(ClusterSection(dashboard=False), "bench-reading", arguments.cores) as cluster, Clock(arguments.tree) as clock:
        read = read_splits(config, cluster, tokenizer)
        splits, _ = filter_by_length(read.splits, tokenizer, config, read.lengths)
    return {**clock.seconds, "prompts": len(splits.train)}


def by_datasets(config: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What scripts do with the datasets library: load, deduplicate by a set, count tokens in processes; no split, no other layouts."""
    import datasets

    path = Path(config.data.train.path)
    datasets.disable_progress_bars()

    def length(row: Any) -> dict[str, int]:
        return {
            "tokens": len(
                tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            )
        }

    with Clock() as clock:
        extension = next(path.iterdir()).suffix
        kind = "parquet" if extension == ".parquet" else "json"
        rows = datasets.load_dataset(
            kind, data_files=f"{path}/*{extension}", split="train", cache_dir=str(path.parent / f"cache-{os.getpid()}")
        )
        seen: set[str] = set()
        first = []
        for index, prompt in enumerate(rows["prompt"]):
            text = prompt[-1]["content"].strip()
            if text not in seen:
                seen.add(text)
                first.append(index)
        kept = rows.select(first).map(length, num_proc=arguments.cores).filter(lambda n: n <= MAX_PROMPT_TOKENS, input_columns="tokens")
    return {**clock.seconds, "prompts": len(kept)}


class Clock:
    """Wall clock and the CPU time of this process and all below it, seconds."""

    def __init__(self, tree: int | None = None) -> None:
        self._roots = [os.getpid()] if tree is None else [os.getpid(), tree]

    def __enter__(self) -> Clock:
        self._cpu, self._started = _cpu_s(self._roots), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = {"wall_s": round(time.monotonic() - self._started, 1), "cpu_s": round(_cpu_s(self._roots) - self._cpu, 1)}


def _cpu_s(roots: Sequence[int]) -> float:
    """Processes that ended are counted by the one that waited for them."""
    import psutil

    total = 0.0
    for process in (found for root in map(psutil.Process, roots) for found in (root, *root.children(recursive=True))):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _peak_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
