"""What the documents show: fenced blocks, and the shell commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "jobs").rglob("*.md")])
FENCE = re.compile(r"^ *```+ *([\w-]*).*$")
SHELL = {"bash", "sh", "shell", "console"}
OUTPUT = {"text", "output"}
PROGRAMS = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:(?:\S*/)?python[\d.]*|next-ray|make|ray|git|pip|uv|mkdocs|vllm"
    r"|export|cd|source|eval|sudo|apt-get|curl|ssh|docker|kubectl|helm|kind|aws|gcloud"
    r"|tensorboard|mlflow|wandb|prometheus|promtool|grafana|grafana-server)(?: |$)"
)
"""How a line of an unlabelled block begins that is a command; blocks labelled as a shell's hold nothing else."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of its fence, its language ("" where none is named), its lines."""

    path: Path
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command, continued lines joined, without its comment."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block.path.relative_to(ROOT)}: {self.text}"


def blocks(path: Path) -> Iterator[Block]:
    begun: tuple[int, str] | None = None
    held: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if fence and begun is None:
            begun, held = (number, fence[1]), []
        elif fence and begun is not None and not fence[1]:
            yield Block(path, *begun, tuple(held))
            begun = None
        else:
            held.append(line)
    assert begun is None, f"{path}: the block of line {begun} has no end"


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block; in an unlabelled one the lines that begin like a command, whatever stands between them."""
    if block.language not in SHELL | {""}:
        return
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        words = _without_comment(line).strip().removeprefix("$ ")
        if words and (block.language in SHELL - {"console"} or PROGRAMS.match(line.strip())):
            yield Command(block, re.sub(r"\s+", " ", words))


def _without_comment(line: str) -> str:
    return re.sub(r"(?:^|\s)#.*$", "", line)


def comments(job: Path) -> Block:
    """What the comments of a job file say, as an unlabelled block."""
    lines = [line.lstrip("# ") for line in job.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return Block(job, 1, "", tuple(lines))


def all_commands() -> list[Command]:
    """Every command of every document and job file, each text once a file."""
    shown = [block for path in DOCUMENTS for block in blocks(path)] + [comments(job) for job in sorted((ROOT / "jobs").glob("*.yaml"))]
    return list({str(command): command for block in shown for command in commands(block)}.values())
