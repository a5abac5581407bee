"""What `python -m next_ray.evaluate` does: open models and problems, sample and judge what is missing, show and write the result."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.errors import ConfigError

if TYPE_CHECKING:
    from next_ray.commands.problems import ProblemSet
    from next_ray.commands.sampling import Decoding
    from next_ray.commands.scores import Rows

RESULT_FILE = "results.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and evaluate; returns the exit code."""
    return ended(lambda: _run(argv), "finished blocks are kept; the same command goes on")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    _check_numbers(arguments)
    from next_ray.commands.problems import Reading, load_set, parse_sets

    named = parse_sets(arguments.data, arguments.verifier, arguments.template)
    sets = [load_set(benchmark, path, Reading(arguments.seed, arguments.limit, arguments.endpoint_url)) for benchmark, path in named]
    decoding = _decoding(arguments)
    from next_ray.commands.contestants import open_contestants
    from next_ray.commands.kept import KeptResults
    from next_ray.commands.progress import say, shown
    from next_ray.commands.sampling import fitting, read_all, sample_all
    from next_ray.commands.scores import document, with_references
    from next_ray.commands.tables import show

    with shown() as progress:
        progress("reading models", 0, None)
        contestants = open_contestants(arguments.models, arguments.label, arguments.endpoint_url)
        steps = arguments.steps or [contestant.step for contestant in contestants]
        sets, notes = fitting(sets, contestants, decoding)
        identities = {contestant.name: contestant.identity for contestant in contestants}
        kept = KeptResults(arguments.output, {"models": identities, **_settings(sets, decoding)})
        sample_all(contestants, sets, decoding, kept, progress)
    rows = {one.name: {problems.benchmark.name: read_all(one, problems, kept) for problems in sets} for one in contestants}
    result = document(with_references(contestants, steps), sets, rows, arguments.k, arguments.seed)
    reports = [*(problems.report for problems in sets), *notes]
    result = {"decoding": _stated(decoding), "data": origins(sets), "notes": reports, **result}
    samples = kept.write_samples(_sample_rows(rows), as_parquet=arguments.parquet)
    kept.write(RESULT_FILE, json.dumps(result, indent=1, allow_nan=False) + "\n")
    for note in reports:
        say(note)
    show(result)
    say(f"numbers in {arguments.output / RESULT_FILE}, samples in {samples}")


def origins(sets: Sequence[ProblemSet]) -> dict[str, dict[str, Any]]:
    """Where each set came from: its address, the commit for one on the hub (else null), and how many prompts of it were asked."""
    from next_ray.data.hub import commit_of

    return {one.benchmark.name: {"address": one.path, "revision": commit_of(one.path), "prompts": len(one.prompts)} for one in sets}


def _sample_rows(rows: Rows) -> Iterator[dict[str, Any]]:
    for name, by_set in rows.items():
        for set_name, found in by_set.items():
            yield from ({"model": name, "set": set_name, **row} for row in found)


def parser() -> Parser:
    """Of the command line."""
    from next_ray.evaluate.benchmarks import BENCHMARKS

    parser = Parser(
        "evaluate",
        "MODEL... --data SET... --output DIR [options]",
        "Measure models on problem sets as training does: engine, wording, verifiers. The same command goes on where it ended.",
        ["models/warm --data gsm8k --output scores", "tiny RUN@24 --data own=a.jsonl --output out"],
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="folder, hub id, tiny, adapter, RUN, RUN@STEP; BASE+ before it for its base")
    add(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        metavar="SET",
        help=f"NAME or NAME=PATH; known: {', '.join(BENCHMARKS)}",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="results, samples and what a rerun goes on from")
    add("--samples", type=int, default=8, metavar="N", help="completions of a prompt (default 8)")
    add("--temperature", type=float, default=1.0, metavar="T", help="sampling temperature (default 1)")
    add("--max-tokens", type=int, default=4096, metavar="N", help="completions are cut there (default 4096)")
    add("--limit", type=int, metavar="N", help="only the first N problems of every set")
    more = parser.more.add_argument
    more("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default 1: all)")
    more("--max-prompt-tokens", type=int, default=1024, metavar="N", help="longer prompts are left out, and counted (default 1024)")
    more("--k", type=int, nargs="+", metavar="K", help="pass@k and maj@k of these k (default 1 and --samples)")
    more("--label", nargs="+", metavar="TEXT", help="what tables call each model (default: the end of its name)")
    more("--steps", type=int, nargs="+", metavar="STEPS", help="RL steps of each model, 0 for a base (default: what checkpoints say)")
    more("--seed", type=int, default=0, metavar="N", help="seed of samples, option order and intervals (default 0)")
    more("--verifier", nargs="+", action="extend", default=[], metavar="NAME=KIND", help="judge a set otherwise (docs/verifiers.md)")
    more("--template", metavar="TEXT", help="text of the user message of every set; {prompt} is the problem (default: the set's own)")
    more("--system-prompt", metavar="TEXT", help="system message (default: the chat template's own)")
    more("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help="number format of the engine's weights")
    more("--threads", type=int, default=1, metavar="N", help="CPU threads of the engine (CPU only)")
    more("--kv-cache-gib", type=float, default=0.5, metavar="GIB", help="key-value cache on CPU (default 0.5)")
    more("--parquet", action="store_true", help="write the samples as samples.parquet in place of samples.jsonl")
    more("--endpoint-url", metavar="URL", help="S3 server other than AWS, for runs of a store and for problems")
    return parser


def _check_numbers(arguments: argparse.Namespace) -> None:
    for name in ("samples", "max_tokens", "max_prompt_tokens", "threads", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if not (math.isfinite(arguments.temperature) and arguments.temperature >= 0):
        raise ConfigError(f"--temperature must be at least 0, got {arguments.temperature}.")
    if arguments.temperature == 0 and arguments.samples > 1:
        raise ConfigError("--temperature 0 gives the same completion every time. Add --samples 1.")
    if not 0 < arguments.top_p <= 1:
        raise ConfigError(f"--top-p must be above 0 and at most 1, got {arguments.top_p}.")
    if not (math.isfinite(arguments.kv_cache_gib) and arguments.kv_cache_gib > 0):
        raise ConfigError(f"--kv-cache-gib must be above 0, got {arguments.kv_cache_gib}.")
    arguments.k = sorted({1, arguments.samples} if arguments.k is None else {*arguments.k})
    if wrong := [k for k in arguments.k if not 1 <= k <= arguments.samples]:
        raise ConfigError(f"--k {wrong[0]} needs at least as many samples; there are {arguments.samples} (--samples).")
    if arguments.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {arguments.seed}.")
    for name in ("steps", "label"):
        given = getattr(arguments, name)
        if given is not None and len(given) != len(arguments.models):
            raise ConfigError(f"--{name} is given for {len(given)} of {len(arguments.models)} models. Give one for each.")
    if len(set(arguments.label or ())) < len(arguments.label or ()):
        raise ConfigError("--label: every model needs a label of its own.")
    if min(arguments.steps or (0,)) < 0:
        raise ConfigError(f"--steps must be at least 0, got {min(arguments.steps)}.")


def _decoding(arguments: argparse.Namespace) -> Decoding:
    from next_ray.commands.sampling import Decoding, device
    from next_ray.config import DataSection, RewardSection, RolloutSection
    from next_ray.precision import native_dtype
    from next_ray.types import Sampling

    for text in arguments.verifier:
        try:
            RewardSection(verifier=text.partition("=")[2])
        except ValueError as error:
            raise ConfigError(f"--verifier {text}: {str(error).splitlines()[2].strip()}") from None
    dtype = native_dtype(device()) if arguments.dtype == "auto" else arguments.dtype
    return Decoding(
        sampling=Sampling(arguments.temperature, arguments.top_p, arguments.max_tokens),
        num_samples=arguments.samples,
        seed=arguments.seed,
        data=DataSection(system_prompt=arguments.system_prompt, max_prompt_tokens=arguments.max_prompt_tokens),
        rollout=RolloutSection(threads=arguments.threads, dtype=dtype, kv_cache_gib=arguments.kv_cache_gib),
    )


def _settings(sets: Sequence[ProblemSet], decoding: Decoding) -> dict[str, Any]:
    """Whatever a kept block depends on."""
    from next_ray.data.prompts import stable_hash

    problems = {}
    for one in sets:
        text = json.dumps([[list(map(dict, p.messages)), p.answer, p.verifier] for p in one.prompts])
        problems[one.benchmark.name] = {"prompts": len(one.prompts), "sha256": stable_hash(text)}
    return {"sets": problems, "dtype": decoding.rollout.dtype, **_stated(decoding)}


def _stated(decoding: Decoding) -> dict[str, Any]:
    sampling = decoding.sampling
    return {
        "samples": decoding.num_samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "max_prompt_tokens": decoding.data.max_prompt_tokens,
        "system_prompt": decoding.data.system_prompt,
        "seed": decoding.seed,
    }
