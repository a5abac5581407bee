"""A documented command before the program's own parser: it reads all words, and nothing is done."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from typing import Any
from unittest import mock

from next_ray.commands.words import job_and_overrides
from next_ray.config import Config
from next_ray.config.warmstart import WarmstartConfig
from next_ray.settings import load_as
from tests.docs.blocks import ROOT

JOBS = {"run": Config, "warmstart": WarmstartConfig}
"""Commands that take a job file and settings."""
WRAPPERS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:ray job submit (?:--\S+(?: [^-\s]\S*)? )*-- )?")
"""What may stand before the command: variables, and Ray's way to start it on a cluster."""
VARIABLES = re.compile(r"^(?:[A-Z_]+=\S+ )*")
REDIRECTED = re.compile(r"\s(?:\d?>>?|\|)\s.*$")
"""Where the output goes is the shell's affair."""
PYTHON = re.compile(r"^(?:\S*/)?python[\d.]*$")


class Read(BaseException):
    """The parser has read the words; not an Exception, so that no command takes it for a failure of its own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def own_command(text: str) -> tuple[str, list[str]] | None:
    """(`next_ray.run`, its words) of `python -m next_ray.run ...`; ("next-ray", words) of the script; None: another program."""
    words = shlex.split(REDIRECTED.sub("", WRAPPERS.sub("", text, count=1)))
    if len(words) > 2 and PYTHON.match(words[0]) and words[1] == "-m" and words[2].partition(".")[0] == "next_ray":
        return words[2], words[3:]
    return ("next-ray", words[1:]) if words[:1] == ["next-ray"] else None


def check(program: str, words: Sequence[str]) -> argparse.Namespace:
    """Read the words as the program does; raises AssertionError with its complaint, `ConfigError` for a job that is wrong."""
    entry = entry_point(program)
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", _read(argparse.ArgumentParser.parse_args)),
        mock.patch.object(argparse.ArgumentParser, "parse_intermixed_args", _read(argparse.ArgumentParser.parse_intermixed_args)),
        redirect_stderr(StringIO()) as complaint,
    ):
        try:
            entry(list(words))
        except Read as read:
            arguments = read.arguments
        except SystemExit as end:
            raise AssertionError(f"{program} {shlex.join(words)}: {complaint.getvalue()}") from end
        else:
            raise AssertionError(f"{program} did not read its words with argparse")
    name = program.rpartition(".")[2] if program != "next-ray" else words[0]
    if name in JOBS:
        job, overrides = job_and_overrides(arguments.job)
        load_as(JOBS[name], str(ROOT / job) if job else None, overrides)
    return arguments


def entry_point(program: str) -> Any:
    """The function that `python -m program` or the installed script calls."""
    if program == "next-ray":
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
        assert "next-ray" in scripts, "pyproject.toml installs no script next-ray"
        module, _, name = scripts["next-ray"].partition(":")
        return getattr(importlib.import_module(module), name)
    assert find_spec(program) is not None, f"there is no module {program}"
    module = importlib.import_module(program)
    return module.main if hasattr(module, "main") else importlib.import_module(f"{program}.__main__").main


def check_ray(words: Sequence[str]) -> None:
    """Read the words of `ray ...` as its command line does, down to the last subcommand; raises AssertionError with its complaint."""
    import click
    from ray.scripts.scripts import cli

    command: click.Command = cli
    context: click.Context | None = None
    name, rest = "ray", list(words)
    try:
        while True:
            context = command.make_context(name, rest, parent=context)
            if not isinstance(command, click.Group):
                return
            found, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert chosen is not None
            name, command = found or "", chosen
    except click.ClickException as error:
        raise AssertionError(f"ray {shlex.join(words)}: {error.format_message()}") from error


def _read(parse: Any) -> Any:
    def reading(parser: argparse.ArgumentParser, *arguments: Any, **named: Any) -> argparse.Namespace:
        raise Read(parse(parser, *arguments, **named))

    return reading
