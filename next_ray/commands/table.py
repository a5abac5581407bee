"""Which commands there are, and the way from a word to the module that does what it says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from next_ray.commands.ending import USER_ERROR, ended, printable
from next_ray.commands.parser import did_you_mean


@dataclass(frozen=True)
class Command:
    """A command: its name, the module whose `main` does it (and whose `parser` reads its words), and a summary for the help text."""

    name: str
    module: str
    summary: str

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(self.module)


@dataclass(frozen=True)
class Table:
    """Commands of one program, its description and examples."""

    commands: tuple[Command, ...]
    description: str
    examples: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Of all commands."""
        return [command.name for command in self.commands]

    def command(self, name: str) -> Command:
        """The command of that name; raises KeyError when there is none."""
        return {command.name: command for command in self.commands}[name]

    def help(self, program: str) -> str:
        """The help text of the whole program."""
        width = max(map(len, self.names))
        rows = [f"  {command.name:<{width}}  {command.summary}" for command in self.commands]
        examples = [f"  {program} {example}" for example in self.examples]
        return "\n".join([f"usage: {program} COMMAND ...  (each has --help)", "", self.description, *rows, "examples:", *examples])

    def dispatch(self, words: Sequence[str], program: str) -> int:
        """Do what the words say; returns the exit code.

        `sys.argv` becomes what the command would see as a program of its own, so that its messages name the way it was called.
        """
        if not words:
            print(self.help(program), file=sys.stderr)
            return USER_ERROR
        if words[0] in ("-h", "--help"):
            return ended(lambda: print(self.help(program)), "nothing was done")
        if words[0] not in self.names:
            print(f"error: {printable(self._unknown(words[0], program))}", file=sys.stderr)
            return USER_ERROR
        found = self.command(words[0])
        sys.argv = [f"{program} {found.name}", *words[1:]]
        loaded: list[ModuleType] = []
        if code := ended(lambda: loaded.append(found.load()), "nothing was done"):
            return code
        return loaded[0].main(words[1:])

    def _unknown(self, word: str, program: str) -> str:
        what = "an option" if word.startswith("-") else "a command"
        if "run" in self.names and (word.endswith((".yaml", ".yml")) or ("=" in word and not word.startswith("-"))):
            return f"{word!r} is a job or a setting, not a command. Write: {program} run {word}"
        near = did_you_mean(word, self.names)
        return f"{word!r} is not {what} of {program}.{near} There are: {', '.join(self.names)}."
