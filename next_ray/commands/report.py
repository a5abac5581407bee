"""What `python -m next_ray.report` does: read runs from their stores and write one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.writing import check_file, write_whole
from next_ray.errors import ConfigError

MAX_RUNS = 6
MEASURED_MIB = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and write; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was written")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    if len(arguments.runs) > MAX_RUNS:
        raise ConfigError(f"At most {MAX_RUNS} runs fit side by side, got {len(arguments.runs)}.")
    if arguments.measure < 0:
        raise ConfigError(f"--measure is a number of MiB and must be at least 0, got {arguments.measure}.")
    output = arguments.output or Path(f"{'-vs-'.join(map(_name, arguments.runs))}-report.html")
    check_file(output, "--output")
    print(f"{write(arguments.runs, output, arguments.measure, arguments.endpoint_url)} in {output}")


def _name(place: str) -> str:
    """The run's own name, without where it is."""
    return place.rstrip("/").rpartition("/")[2]


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "report",
        "RUN ... [options]",
        "One HTML page about a run, during it and afterwards, or about several side by side, from the checkpoint store alone.",
        ["tiny", "s3://bucket/runs/math --output math.html", "store/math store/math-baseline"],
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="its name in the default store, its folder or its URL")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="where to write (default: RUN-report.html here)")
    parser.add_argument(
        "--measure", type=int, default=MEASURED_MIB, metavar="MIB", help=f"adapters to measure, at most (default {MEASURED_MIB}; 0: none)"
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 server other than AWS")
    return parser


def write(runs: Sequence[str], output: Path, measure_mib: int = MEASURED_MIB, endpoint_url: str | None = None) -> str:
    """Write the page of these runs; returns what it is, in words.

    Raises:
        ConfigError: there is no run, or the file cannot be written. StoreError: a store cannot be read.
    """
    from next_ray.commands.progress import shown
    from next_ray.commands.runs.opening import located
    from next_ray.commands.stored_run import read_run
    from next_ray.report.page.page import page

    with shown() as progress:
        found = []
        for done, run in enumerate(runs):
            progress(f"reading {_name(run)}", done, len(runs))
            found.append(read_run(located(run), measure_mib * 2**20, endpoint_url))
    text = page(found, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    write_whole(output, text, "--output")
    return f"the report of {' and '.join(run.name for run in found)} ({len(text.encode()) / 2**20:.2f} MiB)"


if __name__ == "__main__":
    sys.exit(main())
