"""What `python -m next_ray.plan` does: a job and devices in, tables out; nothing is started."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from next_ray.commands.ending import ended
from next_ray.commands.words import job_and_overrides
from next_ray.config import Config
from next_ray.errors import ConfigError
from next_ray.model_facts import ModelFacts, facts_of
from next_ray.planning.devices import DEVICES, Pool, parse_pools, parse_prices
from next_ray.planning.splits import Splits, find_splits
from next_ray.planning.workload import workload_of
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config

EXAMPLES = """examples:
  python -m next_ray.plan jobs/qwen2.5-7b-next.yaml --gpus 8xH100 --price H100=2.9
  python -m next_ray.plan jobs/qwen2.5-7b-next.yaml --gpus 4xH100,16xL4 --response-tokens 900 rollout.max_staleness=1

Lengths, the share of groups with something to learn from and prices are yours to say; what is not said is assumed, and the
output says so. How the numbers come about and how far they were off: docs/planning.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and plan; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was started")


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    config = load_config(*job_and_overrides(arguments.job))
    pools = parse_pools(arguments.gpus, parse_prices(arguments.price))
    config = resolve_dtypes(config, "gpu" if pools[0].device.is_gpu else "cpu")
    if not 0 <= arguments.jump_saves < 1:
        raise ConfigError(f"--jump-saves {arguments.jump_saves:g} must be from 0 to less than 1: a share of the steps.")
    facts = _facts(config)
    work = workload_of(config, arguments.prompt_tokens, arguments.response_tokens, arguments.signal)
    splits = find_splits(config, facts, pools, work)
    if not splits.best:
        raise ConfigError(_no_room(config, pools, splits))
    from rich.console import Console

    from next_ray.report.planned import planned

    said = {name for name in ("prompt_tokens", "response_tokens", "signal") if getattr(arguments, name) is not None}
    Console().print(planned(config, facts, pools, work, splits, said, arguments.jump_saves))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m next_ray.plan",
        description="Memory, time by phase, bottleneck, cost and the best engine:learner split of a job, foretold; nothing is started.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(device.name for device in DEVICES.values())
    parser.add_argument("job", nargs="*", metavar="JOB.yaml | key=value", help="a YAML file and settings that override it, as in a run")
    parser.add_argument("--gpus", required=True, metavar="8xH100,...", help=f"the devices there are: {known} (a core)")
    parser.add_argument("--price", action="append", default=[], metavar="H100=2.9", help="dollars per device and hour; may be repeated")
    parser.add_argument("--prompt-tokens", type=float, metavar="MEAN", help="of a prompt (default: half of the most allowed)")
    parser.add_argument("--response-tokens", type=float, metavar="MEAN", help="of a completion (default: half of the most allowed)")
    parser.add_argument("--signal", type=float, metavar="SHARE", help="groups with unequal rewards, which are trained on (default: 1)")
    parser.add_argument("--jump-saves", type=float, default=0.0, metavar="SHARE", help="steps that jumps save, your assumption (0)")
    return parser


def _facts(config: Config) -> ModelFacts:
    facts = facts_of(config.model)
    if facts is None:
        raise ConfigError(
            f"The shapes of {config.model.name} are not known here: not in the table, no local folder with a config.json, not in the "
            "hub's cache, or no dense decoder of the Llama and Qwen2 families. Set model.name to a folder that holds its config.json."
        )
    return facts


def _no_room(config: Config, pools: Sequence[Pool], splits: Splits) -> str:
    there = ",".join(f"{pool.count}x{pool.device.name}" for pool in pools)
    misfit = splits.misfit
    if misfit is None:
        return f"--gpus {there}: no engine and learner rank of {config.model.name} can be laid out on them. Give more devices."
    need = max(misfit.needs, key=lambda need: need.num_bytes / need.has)
    lack = (
        f"The closest ({misfit.layout.settings}) needs {need.num_bytes / 2**30:,.1f} GiB a {need.who}, which has {need.has / 2**30:,.1f}"
        if not need.fits
        else f"The closest ({misfit.layout.settings}) leaves an engine no room for the keys and values of one full sequence"
    )
    return (
        f"--gpus {there}: no split holds {config.model.name} as the job has it. {lack}. Give more or larger devices, or lower "
        "learner.micro_batch_tokens, rollout.max_response_tokens or the adapter's rank."
    )
