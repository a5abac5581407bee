"""`python -m benchmarks serve RUN`: time to the first token of a served run, against vLLM's own server on the base alone.

Both are asked by the same client, over HTTP, one request at a time, for a stream. `bare` is `vllm serve` without adapters, with the same
number format, lengths and cache. `stay` asks the jumped model again and again, `alternate` four checkpoints in turn: were an adapter read
again at each switch, it would show. Prompts differ, so no answer comes from the prefix cache.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openai import APIConnectionError, APIStatusError, OpenAI

from benchmarks.rows import spread
from next_ray.commands.contestants import base_of, checkpoint_of
from next_ray.precision import native_dtype

GOAL = 2.0
NUM_ADAPTERS = 4
START_S = 400
KEY = "a-key-for-this-benchmark"


def main(argv: list[str]) -> int:
    """Print the times in milliseconds as JSON; exit code 1 when the jumped model's first token takes more than `GOAL` times bare vLLM's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--max-model-len", type=int, default=128)
    arguments = parser.parse_args(argv)
    times: dict[str, list[float]] = {}
    with served(arguments) as client:
        names = [model.id for model in client.models.list()]
        checkpoints = [name for name in names if "@" in name][-NUM_ADAPTERS:]
        jumped = "jumped" if "jumped" in names else "final"
        for name, models in (("served base", ["base"]), ("served jumped, stay", [jumped]), ("served, alternate", checkpoints)):
            times[name] = first_tokens(client, models, arguments.requests)
    with bare(arguments) as client:
        times["bare base"] = first_tokens(client, ["base"], arguments.requests)
    found = {name: spread(values) for name, values in times.items()}
    ratio = found["served jumped, stay"].median / found["bare base"].median
    switching = found["served, alternate"].median / found["served jumped, stay"].median
    rows = {name: {"median_ms": one.median, "low_ms": one.low, "high_ms": one.high} for name, one in found.items()}
    print(json.dumps({"goal": GOAL, "jumped_over_bare": ratio, "alternate_over_stay": switching, "met": ratio <= GOAL, **rows}, indent=2))
    return 0 if ratio <= GOAL else 1


def first_tokens(client: OpenAI, models: Sequence[str], requests: int) -> list[float]:
    """Milliseconds from the request to its first token; each model is asked once before, unmeasured, and then in turn."""
    times = []
    for number in range(-3 * len(models), requests):
        started = time.perf_counter()
        prompt = f"{number + 1000}+{(number * 37) % 89 + 10}="
        stream = client.completions.create(model=models[number % len(models)], prompt=prompt, max_tokens=4, stream=True)
        next(iter(stream))
        if number >= 0:
            times.append(1000 * (time.perf_counter() - started))
        for _ in stream:
            pass
    return times


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[OpenAI]:
    """The run behind Ray Serve."""
    port = free_port()
    settings = [f"port={port}", f"engine.max_model_len={arguments.max_model_len}"]
    command = [sys.executable, "-m", "next_ray.serve", arguments.run, *settings]
    with running(command, port, {**os.environ, "NEXT_RAY_API_KEY": KEY}) as client:
        yield client


@contextmanager
def bare(arguments: argparse.Namespace) -> Iterator[OpenAI]:
    """vLLM's server on the base."""
    with checkpoint_of(arguments.run, None, None) as (store, manifest):
        base = base_of(store, manifest, None, "--base FOLDER")
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", base.path, "--served-model-name", "base", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", native_dtype("cpu"), "--max-num-seqs", "64"]
    command += ["--max-model-len", str(arguments.max_model_len), "--kv-cache-memory-bytes", str(2**29), "--block-size", "32"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    with running(command, port, environment) as client:
        yield client


@contextmanager
def running(command: list[str], port: int, environment: dict[str, str]) -> Iterator[OpenAI]:
    """A server that is a process of its own, once it answers; ended as by Ctrl-C."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=60)
        try:
            deadline = time.monotonic() + START_S
            while not answers(client):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(1)
            yield client
        finally:
            process.terminate()
            process.wait(60)


def answers(client: OpenAI) -> bool:
    """Whether the server is there and has its models."""
    try:
        return bool(client.with_options(timeout=5).models.list().data)
    except APIConnectionError:
        return False
    except APIStatusError as error:  # Serve's proxy is up before the models are
        assert error.status_code in (404, 503), error
        return False


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
