"""`python -m next_ray.extrapolate PATH... --output DIR`: the command line."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from next_ray.commands.accuracies import read_accuracies
from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.request import Choice, Method, Target
from next_ray.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and do; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was written")


def _run(argv: Sequence[str] | None) -> None:
    words = parser()
    arguments = words.parse_args(argv)
    if arguments.list:
        from next_ray.extrapolate.methods.registry import describe

        print(describe())
        return
    if not arguments.paths or (arguments.output is None and not arguments.dry_run):
        words.error("checkpoints (PATH...) and --output DIR are needed")
    choice, target = _choice(arguments), _target(arguments)
    from next_ray.commands.candidates import extrapolate, plan  # --help and mistakes should not wait for it

    _print((plan if arguments.dry_run else extrapolate)(arguments.paths, choice, target))


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "extrapolate",
        "PATH... [options] --output DIR",
        "One adapter or model for every method and alpha. PATH is a PEFT, TRL, verl, OpenRLHF or Hugging Face checkpoint, a folder of "
        "them, or a run of our store.",
        ["grpo/checkpoint-* --output jumped", "grpo --method expo --alpha 1 2 --output out"],
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help=argparse.SUPPRESS)
    add("--output", type=Path, metavar="DIR", help="folder to make; of several candidates a folder each")
    add("--method", nargs="+", default=["next"], metavar="NAME", help="methods (default: next); --list describes them")
    add("--alpha", nargs="+", type=_finite, metavar="A", help="how far to go, in horizons (default: the method's)")
    add("--horizon", type=int, metavar="K", help="checkpoints that alpha 1 goes ahead (default: a third)")
    add("--merge", action="store_true", help="write merged models instead of adapters")
    add("--base", metavar="MODEL", help="the base: a folder, for adapters also a hub name")
    add("--dry-run", action="store_true", help="say what would be done")
    add("--list", action="store_true", help="describe the methods and their settings")
    more = parser.more.add_argument
    more("--overwrite", action="store_true", help="replace DIR if it holds an earlier result")
    more("--set", nargs="+", default=[], metavar="KEY=VALUE", help="the method's settings; METHOD.KEY=VALUE with several methods")
    width = parser.more.add_mutually_exclusive_group()
    width.add_argument("--rank", type=int, metavar="R", help="recompress adapters to rank R, with the error reported")
    width.add_argument("--exact", action="store_true", help="adapters as wide as exactness needs (the default)")
    more("--dtype", choices=("float32", "bfloat16", "float16"), help="of adapters (default: float32); merged models keep the base's")
    more("--no-verify", action="store_true", help="do not compare a merged model with base + adapter (two models are loaded)")
    more("--accuracies", type=Path, metavar="FILE", help='JSON of held-out accuracies by step, 0 for the base: {"0": 0.31, "10": 0.35}')
    more("--evaluator", metavar="MODULE:FUNC", help="function from the folder of a result to its accuracy, for soup-greedy")
    more("--segment", type=int, metavar="STEP", help="of a store's run that jumped: the trajectory that began at STEP")
    more("--endpoint-url", metavar="URL", help="S3 server other than AWS")
    more("--seed", type=int, default=0, metavar="N", help="for methods that draw numbers (default: 0)")
    more("--workers", type=int, default=0, metavar="N", help="Ray workers that compute singular triplets (default: this process)")
    return parser


def _choice(arguments: argparse.Namespace) -> Choice:
    names = list(dict.fromkeys(arguments.method))
    return Choice(
        methods=tuple(Method(name, _settings(name, names, arguments.set)) for name in names),
        alphas=tuple(dict.fromkeys(arguments.alpha)) if arguments.alpha else None,
        horizon=arguments.horizon,
        seed=arguments.seed,
        accuracies=read_accuracies(arguments.accuracies) if arguments.accuracies else None,
        evaluator=arguments.evaluator,
        workers=arguments.workers,
        segment=arguments.segment,
        endpoint_url=arguments.endpoint_url,
    )


def _target(arguments: argparse.Namespace) -> Target:
    if arguments.merge and (arguments.rank is not None or arguments.exact):
        raise ConfigError("--rank and --exact are about adapters; a merged model (--merge) has no rank. Leave one of them out.")
    if arguments.merge and arguments.dtype:
        raise ConfigError("--dtype is about adapters; a merged model (--merge) keeps the base's dtype. Leave one of them out.")
    if arguments.rank is not None and arguments.rank < 1:
        raise ConfigError(f"--rank must be at least 1, got {arguments.rank}.")
    return Target(
        folder=arguments.output or Path("OUTPUT"),
        base=arguments.base,
        merge=arguments.merge,
        rank=arguments.rank,
        dtype=arguments.dtype or "float32",
        verify=not arguments.no_verify,
        overwrite=arguments.overwrite,
    )


def _settings(method: str, methods: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """The settings of one method out of `key=value` and `method.key=value`."""
    settings: dict[str, Any] = {}
    for word in words:
        path, found, text = word.partition("=")
        owner, dot, key = path.rpartition(".")
        if not found or not key:
            raise ConfigError(f"--set {word}: settings are written KEY=VALUE, without spaces.")
        if dot and owner not in methods:
            raise ConfigError(f"--set {word}: {owner} is none of the methods that run ({', '.join(methods)}).")
        if not dot and len(methods) > 1:
            raise ConfigError(f"--set {word}: several methods run; say whose setting it is, for example {method}.{key}={text}.")
        if not dot or owner == method:
            settings[key] = _scalar(text)
            if isinstance(settings[key], float) and not math.isfinite(settings[key]):
                raise ConfigError(f"--set {word}: {text} is not a finite number.")
    return settings


def _finite(text: str) -> float:
    """A number for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _scalar(text: str) -> Any:
    """A number, true, false or null, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return None if text == "none" else text
    return text if isinstance(value, dict | list) else value


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)
