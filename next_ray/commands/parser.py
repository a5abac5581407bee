"""How every command reads its words: help that fits a screen and ends in examples, mistakes that are answered with what was meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

from next_ray.commands.ending import USER_ERROR, printable

WIDTH = 80
"""Columns of a help text; the usual terminal has 24 lines of so many."""


def program(name: str) -> str:
    """How the user called the command `name`: `next-ray NAME`, or by its module."""
    called = sys.argv[0] if sys.argv else ""
    return called if called.endswith(f" {name}") else f"python -m next_ray.{name.replace(' ', '.')}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """` Did you mean ...?` with the nearest of the known words; empty when none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """An argument parser of one command.

    Args:
        name: of the command.
        usage: what follows the program's name.
        description: one or two sentences.
        examples: command lines without the program's name.
    """

    def __init__(self, name: str, usage: str, description: str, examples: Sequence[str]) -> None:
        prog = program(name)
        super().__init__(
            prog=prog,
            usage=f"%(prog)s {usage}",
            description=description,
            epilog="\n".join(["examples:", *(f"  {prog} {example}".rstrip() for example in examples)]),
            formatter_class=lambda prog: _Formatter(prog, max_help_position=24, width=WIDTH),
        )

    @cached_property
    def more(self) -> argparse._ArgumentGroup:
        """Options that only `--help-all` shows; asking for the group adds that option."""
        self.add_argument("--help-all", action=_HelpAll, help="show the other options too")
        return self.add_argument_group("more options")

    def format_help(self, everything: bool = False) -> str:
        """The help text, without the options of `more` unless `everything` is wanted."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        hidden = None if everything else self.__dict__.get("more")
        for group in self._action_groups:
            if group is not hidden:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """One paragraph with what was perhaps meant, and exit code 2."""
        hint = self._hint(message)
        text = f"{message}.{hint} `{self.prog} --help` shows what there is."
        print(f"error: {printable(text)}", file=sys.stderr)
        sys.exit(USER_ERROR)

    def _hint(self, message: str) -> str:
        if wrong := re.match(r"unrecognized arguments: .*?(-[^ =]+)", message):
            return did_you_mean(wrong[1], list(self._option_string_actions))
        if wrong := re.match(r"argument ([^:]+): invalid choice: '([^']*)'", message):
            choices = next((action.choices for action in self._actions if _called(action) == wrong[1]), None) or ()
            return did_you_mean(wrong[2], [str(choice) for choice in choices])
        return ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples and fills those of the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:  # `A ...`, where argparse says `A [A ...]`
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


class _HelpAll(argparse.Action):
    """`--help-all`."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        print(parser.format_help(everything=True), end="")
        parser.exit()


def _called(action: argparse.Action) -> str:
    """As argparse names an argument in its messages."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)
