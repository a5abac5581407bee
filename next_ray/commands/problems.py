"""The problem sets that `--data` names, worded for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from next_ray.config import FileSource
from next_ray.data import hub
from next_ray.data.formats import Setting
from next_ray.data.sources import load_problems
from next_ray.errors import ConfigError, DataError
from next_ray.evaluate.benchmarks import BENCHMARKS, PLACEHOLDER, Benchmark
from next_ray.types import Prompt


@dataclass(frozen=True)
class ProblemSet:
    """Prompts whose last message holds the set's wording already; `path` is what was read, on the hub at its commit, and `report` says
    what became of the file's rows."""

    benchmark: Benchmark
    path: str
    prompts: tuple[Prompt, ...]
    report: str


def parse_sets(texts: Sequence[str], verifiers: Sequence[str], template: str | None) -> list[tuple[Benchmark, str]]:
    """`NAME` or `NAME=PATH` with the verifiers `NAME=KIND` as sets and their files; raises `ConfigError` before anything is read."""
    if template is not None and PLACEHOLDER not in template:
        raise ConfigError(f"--template {template!r} has no {PLACEHOLDER}, so every prompt would read the same. Add it.")
    judged: dict[str, str] = {}
    for text in verifiers:
        name, _, kind = text.partition("=")
        if not name or not kind:
            raise ConfigError(f"--verifier {text}: write NAME=VERIFIER, with a name given under --data.")
        judged[name] = kind
    found: dict[str, tuple[Benchmark, str]] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in BENCHMARKS and not path:
            raise ConfigError(f"--data {text}: there is no such set. Give its file with NAME=PATH, or one of {', '.join(BENCHMARKS)}.")
        if not name or name in found or "/" in name or name.startswith("."):
            raise ConfigError(f"--data {text}: every set needs a name of its own, without slashes.")
        benchmark = BENCHMARKS.get(name, Benchmark(name))
        changed = replace(benchmark, verifier=judged.pop(name, benchmark.verifier), template=template or benchmark.template)
        address = path or changed.address
        assert address is not None
        found[name] = (changed, address)
    if judged:
        raise ConfigError(f"--verifier {next(iter(judged))}=...: no set of that name is given under --data.")
    return list(found.values())


@dataclass(frozen=True)
class Reading:
    """How sets are read: the seed of option orders, how many problems at most, and the S3 server other than AWS."""

    seed: int = 0
    limit: int | None = None
    endpoint_url: str | None = None


def load_set(benchmark: Benchmark, path: str, reading: Reading) -> ProblemSet:
    """Read a set by the loader that training uses.

    Raises:
        DataError: the file is missing, unreachable or malformed.
    """
    source = FileSource(path=path)
    try:
        options = {"endpoint_url": reading.endpoint_url} if reading.endpoint_url else {}
        loaded = load_problems(source, reading.seed, benchmark.verifier, options, Setting(f"--data {benchmark.name}=PATH"))
    except DataError as error:
        hint = ""
        if path.startswith(hub.HUB):
            hint = f" Without access to the hub, give the set as a file: --data {benchmark.name}=PATH (.jsonl, .json, .parquet or .csv)."
        raise DataError(f"{error}{hint}") from error
    prompts = tuple(_worded(prompt, benchmark.template) for prompt in loaded.prompts[: reading.limit])
    return ProblemSet(benchmark, loaded.report.origin, prompts, f"{benchmark.name}: {loaded.report}")


def _worded(prompt: Prompt, template: str) -> Prompt:
    *before, last = prompt.messages
    text = template.replace(PLACEHOLDER, last["content"])
    return replace(prompt, messages=(*before, {**last, "content": text}))
