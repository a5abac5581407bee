"""`next-ray completion SHELL`: the script that completes commands, options, job files and settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.words import JOB

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("DIR", "FOLDER")
FILES = ("FILE", "FILE.json", "PATH", "MODEL", "RUN", "RUN2", "RUN[@STEP]", "STORE")

BASH_JOB = """
_next_ray_{command}_job() {{
  compgen -W "{keys}" -- "$1"
  compgen -f -X '!*.y*ml' -- "$1"
  compgen -d -S / -- "$1"
}}
"""
ZSH_JOB = """
_next_ray_{command}_job() {{
  _alternative 'jobs:job:_files -g "*.(yaml|yml)"' 'settings:setting:compadd -S "" -- {keys}'
}}
"""
FISH_JOB = """
function _next_ray_{command}_job
  for candidate in (__fish_complete_path (commandline -ct))
    string match -rq '(\\\\.ya?ml|/)(\\t|$)' -- $candidate; and printf '%s\\\\n' $candidate
  end
  printf '%s\\\\n' {keys}
end
"""
BASH_END = """
_next_ray() {
  _shtab_next_ray "$@"
  [[ ${#COMPREPLY[@]} -gt 0 && "${COMPREPLY[0]}" == *[=/] ]] && compopt -o nospace
  return 0
}
complete -o bashdefault -F _next_ray next-ray
"""
"""No space behind a key's `=` and a folder's `/`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and print; returns the exit code."""
    return ended(lambda: print(script(parser().parse_args(argv).shell)), "nothing was done")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "completion",
        "SHELL",
        "A script that completes commands, options, job files and settings. bash reads it by `source FILE` in ~/.bashrc, zsh from a folder "
        "of $fpath, fish from ~/.config/fish/completions.",
        ["bash > ~/.next-ray.bash", "zsh > ~/.zfunc/_next-ray", "fish > ~/.config/fish/completions/next-ray.fish"],
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    return parser


def script(shell: str) -> str:
    """The completion script for a shell."""
    import shtab

    from next_ray.commands.main import TABLE

    root = argparse.ArgumentParser(prog="next-ray")
    root.add_argument("--version", action="version", version="", help="print the version")
    _add_commands(root, TABLE)
    text = shtab.complete(root, shell=shell, root_prefix="next_ray")
    return f"{text}\n{BASH_END}" if shell == "bash" else text


def _add_commands(root: argparse.ArgumentParser, table: Any) -> None:
    under = root.add_subparsers(parser_class=argparse.ArgumentParser)
    for command in table.commands:
        module = command.load()
        if nested := getattr(module, "TABLE", None):
            _add_commands(under.add_parser(command.name, help=command.summary), nested)
            continue
        added = under.add_parser(command.name, help=command.summary, add_help=False, parents=[module.parser()])
        for action in added._actions:
            if (how := _how(command.name, str(action.metavar))) is not None:
                action.complete = how  # type: ignore[attr-defined]  # what shtab looks for


def _how(command: str, metavar: str) -> Any:
    """How shtab is to complete an argument; None where nothing is known."""
    import shtab

    if metavar in FOLDERS:
        return shtab.DIRECTORY
    if metavar in FILES:
        return shtab.FILE
    return _job(command) if metavar == JOB else None


def _job(command: str) -> dict[str, Any]:
    function, keys = f"_next_ray_{command}_job", " ".join(f"{key}=" for key in _keys(command))
    templates = {"bash": BASH_JOB, "zsh": ZSH_JOB, "fish": FISH_JOB}
    preamble = {shell: template.format(command=command, keys=keys) for shell, template in templates.items()}
    return {"bash": function, "zsh": function, "fish": f"({function})", "preamble": preamble}


def _keys(command: str) -> Iterator[str]:
    from next_ray.config import Config
    from next_ray.config.warmstart import WarmstartConfig
    from next_ray.settings.problems import keys

    yield from keys(WarmstartConfig if command == "warmstart" else Config)
