"""What `python -m next_ray.plan` does: a job and devices in, tables out; nothing is started."""

from __future__ import annotations

from collections.abc import Sequence

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.words import JOB, job_and_overrides
from next_ray.config import Config
from next_ray.errors import ConfigError
from next_ray.model_facts import ModelFacts, facts_of
from next_ray.planning.devices import DEVICES, Pool, parse_pools, parse_prices
from next_ray.planning.splits import Splits, find_splits
from next_ray.planning.workload import workload_of
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and plan; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was started")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_intermixed_args(argv)
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


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "plan",
        "[JOB.yaml] [key=value ...] --gpus 8xH100,...",
        "Memory, time by phase, bottleneck, cost and best split of a job, foretold. Nothing is started; what you do not say is assumed.",
        ["jobs/qwen2.5-7b-next.yaml --gpus 8xH100", "--gpus 4xH100,16xL4 --price L4=0.8", "--gpus 2xcpu run.steps=20"],
    )
    parser.add_argument("job", nargs="*", metavar=JOB, help="a YAML file and settings that override it, as in a run")
    known = ", ".join(device.name for device in DEVICES.values())
    parser.add_argument("--gpus", required=True, metavar="8xH100,...", help=f"devices: {known}")
    parser.add_argument("--price", action="append", default=[], metavar="H100=2.9", help="dollars per device and hour")
    parser.add_argument("--prompt-tokens", type=float, metavar="MEAN", help="of a prompt (half of the most allowed)")
    parser.add_argument("--response-tokens", type=float, metavar="MEAN", help="of a completion (half of the most allowed)")
    parser.more.add_argument("--signal", type=float, metavar="SHARE", help="groups with unequal rewards, which are trained on (1)")
    parser.more.add_argument("--jump-saves", type=float, default=0.0, metavar="SHARE", help="steps that jumps save, your assumption (0)")
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
