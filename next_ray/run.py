"""`python -m next_ray.run [JOB.yaml] [key=value ...]`: the whole job, from prompts to the table of what was gained."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from next_ray import __version__
from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser, program
from next_ray.commands.supervise import RESTARTS_VARIABLE, become_supervisor
from next_ray.commands.words import JOB, job_and_overrides
from next_ray.errors import LeaseError, StoreError, TrainingError
from next_ray.secret_file import kept_secret

if TYPE_CHECKING:
    from next_ray.config import Config
    from next_ray.data.prepare import Read
    from next_ray.models.resolve import PreparedModel
    from next_ray.progress import Progress
    from next_ray.report.report import Report
    from next_ray.store.checkpoints import CheckpointStore
    from next_ray.store.lease import Lease
    from next_ray.types import Manifest

TORN_AFTER_S = 3600.0
"""Objects that no manifest names are remains of a torn commit once they are this old."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    return ended(lambda: _run(argv), "run the same command again to go on from the last checkpoint")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_intermixed_args(argv)
    from next_ray.settings import load_config  # --help and mistakes should not wait for what only a run needs

    if arguments.restarts and not arguments.dry_run:
        become_supervisor(arguments.restarts, [*arguments.job, *(["--baseline"] if arguments.baseline else [])])
    config = load_config(*job_and_overrides(arguments.job))
    if arguments.baseline:
        config = as_baseline(config)
    if arguments.dry_run:
        from rich.console import Console

        from next_ray.model_facts import facts_of
        from next_ray.report.dry_run import dry_run

        Console().print(dry_run(config, facts_of(config.model)))
    else:
        asyncio.run(execute(config))


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "run",
        "[JOB.yaml] [key=value ...] [options]",
        "RLVR that predicts where the weights are going. The same command goes on with a run that was stopped or killed.",
        ["", "jobs/smollm2-135m.yaml run.seed=1", "jobs/tiny.yaml run.steps=20 --dry-run", "run.name=mine --restarts 3"],
    )
    parser.add_argument("job", nargs="*", metavar=JOB, help="a YAML file (none: the embedded default) and settings that override it")
    parser.add_argument("--dry-run", action="store_true", help="print configuration, batch sizes, placement and memory; start nothing")
    parser.add_argument("--baseline", action="store_true", help="the same budget without extrapolation, as run NAME-baseline")
    parser.add_argument(
        "--restarts", type=_count, default=0, metavar="N", help="start the run anew, N times at most, when it is killed or breaks down"
    )
    return parser


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 0 on")
    return int(word)


def as_baseline(config: Config) -> Config:
    """The same run without extrapolation, under its own name."""
    run = config.run.model_copy(update={"name": f"{config.run.name}-baseline"})
    return config.model_copy(update={"run": run, "extrapolation": config.extrapolation.model_copy(update={"enabled": False})})


def protect_embedded_ray(folder: Path) -> None:
    """Make an embedded Ray ask for a token that only this user can read; Ray reads these variables when it is imported."""
    if "RAY_ADDRESS" in os.environ or os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    token = folder / "ray_auth_token"
    kept_secret(token)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


async def execute(config: Config) -> None:
    """Open everything from the outside in, run the loop, and close it from the inside out."""
    from next_ray.models.folder import cache_root

    protect_embedded_ray(cache_root(config.model.cache_dir))
    from next_ray import estimate
    from next_ray.actors.cluster import open_cluster
    from next_ray.actors.launch import Job, launch
    from next_ray.actors.metrics import NAMESPACE, MetricsReporter
    from next_ray.actors.watchdog import watchdog
    from next_ray.course import Course
    from next_ray.data.prepare import Read, chosen_reader, filter_by_length, load_splits, load_tokenizer, with_worked_problems
    from next_ray.precision import resolve_dtypes
    from next_ray.report.final import prompt_scores
    from next_ray.report.report import Report, Reporters
    from next_ray.stopping import Stop, signals_ask
    from next_ray.store.checkpoints import CheckpointStore
    from next_ray.store.layout import CONFIG, SCORES, SUMMARY

    output = Path(config.run.output_dir).expanduser() / config.run.name
    async with AsyncExitStack() as stack:
        report = stack.enter_context(Report(config, output))
        for advice in estimate.advice(config):
            report.say(advice)
        store = CheckpointStore(config.store.url, config.run.name, config.store.endpoint_url)
        await asyncio.to_thread(store.check_access)
        lease = await stack.enter_async_context(_held_lease(store, config.store.lease_s))
        await asyncio.to_thread(store.sweep, TORN_AFTER_S)
        latest = await asyncio.to_thread(store.latest)
        progress = _progress(config, store, latest)
        config = with_worked_problems(config)
        read = Read(*load_splits(config)) if chosen_reader(config) == "local" else None
        if read is not None:
            await _check_read(read, config, report)

        # Only the tiny model needs Ray to be made; any other is checked before anything is started.
        model = None if config.model.name == "tiny" else await _prepare(config, report)
        report.phase("opening Ray")
        gang = config.rollout.engines + config.learner.ranks
        cluster = stack.enter_context(open_cluster(config.cluster, f"{NAMESPACE}{config.run.name}", gang))
        config = resolve_dtypes(config, cluster.device)
        report.say(f"numbers on this {cluster.device}: {config.rollout.dtype} in the engines, {config.learner.dtype} in the learners")
        model = model or await _prepare(config, report)
        rank = config.learner.lora.rank if config.learner.mode == "lora" else 0
        store.claim_identity({"base_fingerprint": model.fingerprint, "model": model.name, "lora_rank": rank})
        store.put_json(CONFIG, {"version": __version__, "device": cluster.device, "config": config.model_dump(mode="json")})
        tokenizer = load_tokenizer(model.path, config.model.trust_remote_code)
        if read is None:
            from next_ray.actors.reading import read_splits

            report.phase("reading the data")
            read = await asyncio.to_thread(read_splits, config, cluster, tokenizer)
            await _check_read(read, config, report)
        splits, length_report = filter_by_length(read.splits, tokenizer, config, read.lengths)
        report.say(length_report)
        verifiers, read = read.verifiers, None  # the prompts that were too long are not kept

        report.track(tracker_id(store))
        report.resume(progress.step, store.read_table("metrics", progress.step) if latest else [], progress.jumps)
        reporters = Reporters([report, MetricsReporter(config.run.name, config.run.steps, store.storage.usage)])
        job = Job(config, cluster, model, store, latest.id if latest else None, lease.token, verifiers, report.say, reporters.fault)
        report.phase("starting engines and learners")
        await stack.enter_async_context(watchdog(config.recovery, output, report.say))
        launched = await stack.enter_async_context(launch(job))
        if latest:
            report.say(f"resuming from step {progress.step} ({latest.id})")
        stop = Stop()
        course = Course(config, splits, store, launched, report, reporters, stop, resume_command())
        with signals_ask(stop, config.recovery.grace_s, resume_command(), report.say):
            results, jumps = await course.run(latest)
        summary = report.finish(results, await launched.trajectory.background_s(), jumps)
        await launched.archive.record(SCORES, prompt_scores(results, splits.test))
        await launched.archive.record(SUMMARY, summary)


def tracker_id(store: CheckpointStore) -> str:
    """What trackers know the run by: made once, kept in the store, so that a resumed run goes on in the same curves."""
    from next_ray.store.layout import TRACKERS

    known = store.get_json(TRACKERS) or {}
    if known.get("run") != store.run or not re.fullmatch("[0-9a-f]{16}", str(known.get("id"))):
        known = {"run": store.run, "id": secrets.token_hex(8)}  # a new run, or the copy of another one
        store.put_json(TRACKERS, known)
    return known["id"]


def resume_command() -> str:
    """What to type to go on with this run."""
    restarts = os.environ.get(RESTARTS_VARIABLE)
    return shlex.join([*program("run").split(), *([f"--restarts={restarts}"] if restarts else []), *sys.argv[1:]])


async def _check_read(read: Read, config: Config, report: Report) -> None:
    """Say what was read, and call the user's own verifiers once before anything depends on them."""
    from next_ray.reward.pool import check_functions

    report.say(read.report)
    await asyncio.to_thread(check_functions, config.reward, read.verifiers)


def _progress(config: Config, store: CheckpointStore, latest: Manifest | None) -> Progress:
    """Where the run goes on; raises `TrainingError` when it has ended."""
    from next_ray.progress import progress_at
    from next_ray.store.layout import SUMMARY

    progress = progress_at(latest, config)
    if progress.step >= config.run.steps and store.get_json(SUMMARY) is not None:
        raise TrainingError(
            f"Run {config.run.name!r} already has all of its {config.run.steps} steps, so there was nothing to train. "
            "Raise run.steps to train on, or choose another run.name to start anew."
        )
    return progress


async def _prepare(config: Config, report: Report) -> PreparedModel:
    from next_ray.actors.warmstart import train_tiny_with_ray
    from next_ray.models.resolve import prepare_model

    report.phase("preparing the model")
    return await asyncio.to_thread(prepare_model, config.model, train_tiny_with_ray)


@asynccontextmanager
async def _held_lease(store: CheckpointStore, lease_s: float) -> AsyncIterator[Lease]:
    """Hold the run's lease and renew it in the background; losing it ends the run."""
    from next_ray.store.lease import Lease

    lease = Lease(store.storage, store.run, lease_s)
    await asyncio.to_thread(lease.acquire)
    owner = asyncio.current_task()
    lost: list[StoreError] = []

    async def renew() -> None:
        """Renew in good time; a store that does not answer is asked again until the lease has run out."""
        renewed = time.monotonic()
        while True:
            late = time.monotonic() - renewed
            await asyncio.sleep(lease_s / 3 if late < 1 else 1)
            try:
                await asyncio.to_thread(lease.renew)
                renewed = time.monotonic()
            except StoreError as error:
                if not isinstance(error, LeaseError) and time.monotonic() - renewed < lease_s:
                    continue
                lost.append(error)
                if owner is not None:
                    owner.cancel()
                return

    renewal = asyncio.create_task(renew())
    try:
        yield lease
    except asyncio.CancelledError:
        if lost:
            raise lost[0] from None
        raise
    finally:
        renewal.cancel()
        if not lost:
            await asyncio.to_thread(lease.release)


if __name__ == "__main__":
    sys.exit(main())
