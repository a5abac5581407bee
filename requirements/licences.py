"""Under which licences the pinned requirements come: `python requirements/licences.py [FILE ...]`, in an environment that has them.

Ends with 1 when an installed pin declares a licence that is not in `ALLOWED` and `licences.psv` does not excuse it by name, licence and
reason, when it declares none, and when an excuse has become needless. Pins that are not installed are named; nothing is known of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from audit import pins  # noqa: E402  # beside this file, where no package is

EXCUSES = HERE / "licences.psv"
NONE = "none declared"

ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"),
    *("MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense"),
    "MPL-2.0",  # weak copyleft by file: used as it is, it asks nothing of what uses it
}
"""SPDX identifiers of licences that ask for no more than attribution of a program that uses the package unchanged."""

SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "DFSG approved": "",
    "OSI Approved": "",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
"""What packages write where there is an identifier; empty: says nothing about the licence."""


def declared(name: str) -> str:
    """What an installed package declares, as an SPDX expression where that is known: expression, else classifiers, else its own words.

    Several classifiers are alternatives: packages under one licence or another name both.
    """
    found = metadata.metadata(name)
    if expression := found.get("License-Expression"):
        return expression
    tails = [line.rpartition(" :: ")[2] for line in found.get_all("Classifier") or [] if line.startswith("License ::")]
    if named := [spdx for tail in tails if (spdx := SPDX.get(tail, tail))]:
        return " OR ".join(dict.fromkeys(named))
    words = (found.get("License") or "").strip().partition("\n")[0][:80]
    return SPDX.get(words, words) or NONE


def is_allowed(expression: str) -> bool:
    """Whether one of the alternatives consists of allowed licences."""
    alternatives = expression.replace("(", "").replace(")", "").split(" OR ")
    return any(all(part.strip() in ALLOWED for part in one.split(" AND ")) for one in alternatives)


def excuses(file: Path = EXCUSES) -> dict[str, tuple[str, str]]:
    """Package to licence and reason: a line each, `NAME | LICENCE | REASON`."""
    found: dict[str, tuple[str, str]] = {}
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            parts = [part.strip() for part in line.split("|")]
            if len(parts) != 3 or not all(parts):
                raise SystemExit(f"{file}: {line!r} is not NAME | LICENCE | REASON.")
            found[parts[0]] = (parts[1], parts[2])
    return found


def check(names: Sequence[str], excused: Mapping[str, tuple[str, str]]) -> int:
    """Print what was found; 1 when anything has to be done."""
    bad, absent, used = 0, [], set()
    for name in names:
        try:
            licence = declared(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if is_allowed(licence):
            continue
        if excused.get(name, ("", ""))[0] == licence:
            used.add(name)
            print(f"excused   {name}: {licence}, because {excused[name][1]}")
            continue
        bad += 1
        print(f"LICENCE   {name}: {licence!r} is not among those allowed. Do without it, or excuse it in {EXCUSES.name} with a reason.")
    for name in sorted(set(excused) - used - set(absent)):
        bad += 1
        print(f"NEEDLESS  {name} is excused in {EXCUSES.name}, but no pin needs it any more. Take it out.")
    if absent:
        print(f"not here, so not checked: {', '.join(absent)}")
    print(f"{len(names)} pins, {len(names) - len(absent)} checked, {len(used)} excused, {bad} to act on.")
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the licences of the pinned requirements that are installed.")
    parser.add_argument(
        "files", nargs="*", type=Path, default=[HERE / "bench.txt"], help="requirement files (default: bench.txt, the largest)"
    )
    files = parser.parse_args(argv).files
    return check(sorted({key.rpartition("@")[0] for key in pins(files)}), excuses())


if __name__ == "__main__":
    sys.exit(main())
