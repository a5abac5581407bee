"""Ask the advisory database about every pinned requirement: `python requirements/audit.py [--uv PATH] [--service-url URL] [FILE ...]`.

Ends with 1 when a pin has a known vulnerability that `ignored-advisories.txt` does not excuse, and when an excuse has become needless.
Without a network to the database it says that nothing was audited, loudly, and ends with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IGNORED = HERE / "ignored-advisories.txt"
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;]+)")


def pins(files: Sequence[Path]) -> dict[str, str]:
    """Name to version, of all files together, and files that name two versions of one package count both (`name@version`)."""
    found: dict[str, str] = {}
    for file in files:
        for line in file.read_text().splitlines():
            text = line.partition("#")[0].strip()
            if not text:
                continue
            match = _PIN.match(text)
            if match is None:
                raise SystemExit(f"{file}: {text!r} is no exact pin, so it cannot be audited. Run make lock.")
            found[f"{match[1].lower()}@{match[2]}"] = match[2]
    return found


def ignored(file: Path = IGNORED) -> dict[str, str]:
    """Advisory to reason: a line each, `ID  reason`."""
    excuses: dict[str, str] = {}
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            advisory, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise SystemExit(f"{file}: {advisory} is ignored without a reason. Write one behind it.")
            excuses[advisory] = reason.strip()
    return excuses


def project(folder: Path, versions: dict[str, str]) -> None:
    """A project whose lock file holds the pins, which is what `uv audit` reads; nothing is resolved or fetched for it."""
    (folder / "pyproject.toml").write_text('[project]\nname = "pinned"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = []\n')
    names = [(key.rpartition("@")[0], version) for key, version in sorted(versions.items())]
    needs = ", ".join(f'{{ name = "{name}", version = "{version}", source = {_SOURCE} }}' for name, version in names)
    packages = [f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = {_SOURCE}\n' for name, version in names]
    own = f'[[package]]\nname = "pinned"\nversion = "0"\nsource = {{ virtual = "." }}\ndependencies = [{needs}]\n'
    (folder / "uv.lock").write_text("\n".join(['version = 1\nrequires-python = ">=3.11"\n', own, *packages]))


_SOURCE = '{ registry = "https://index.invalid/simple" }'
"""Any: only names and versions are asked about."""


def audit(uv: str, files: Sequence[Path], service_url: str | None, excuses: dict[str, str]) -> int:
    """Ask, tell, and return the exit code."""
    versions = pins(files)
    with tempfile.TemporaryDirectory() as folder:
        project(Path(folder), versions)
        command = [uv, "audit", "--frozen", "--no-progress", "--output-format", "json", "--preview-features", "audit-command,json-output"]
        command += ["--service-url", service_url] if service_url else []
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "UV_HTTP_RETRIES": "1"})
    try:
        report = json.loads(done.stdout)
    except ValueError:
        if "error sending request" in done.stderr or "Request failed" in done.stderr:
            reason = next((line.partition("cause: ")[2] for line in done.stderr.splitlines()[::-1] if "cause: " in line), "no answer")
            print(f"AUDIT SKIPPED: the advisory database cannot be reached ({reason}). {len(versions)} pins were NOT audited.")
            return 0
        print(f"The audit failed:\n{done.stderr}")
        return 1
    if (asked := report["summary"]["audited_packages"]) != len(versions):
        print(f"Only {asked} of {len(versions)} pins were audited. This is a defect of requirements/audit.py.")
        return 1
    return tell(report["vulnerabilities"], excuses, len(versions))


def tell(vulnerabilities: list[dict[str, Any]], excuses: dict[str, str], count: int) -> int:
    """Print what was found; 1 when anything has to be done."""
    used: set[str] = set()
    bad = 0
    for found in vulnerabilities:
        dependency = found["dependency"]
        names = {str(found["id"]), str(found["display_id"]), *map(str, found["aliases"] or [])}
        pin = f"{dependency['name']} {dependency['version']}"
        if excused := names & set(excuses):
            used |= excused
            print(f"ignored   {pin}: {found['display_id']}, because {excuses[next(iter(excused))]}")
            continue
        bad += 1
        print(f"VULNERABLE {pin}: {found['display_id']} {found['summary']} (fixed in {found['fix_versions'] or 'no version yet'})")
    for advisory in sorted(set(excuses) - used):
        bad += 1
        print(f"NEEDLESS  {advisory} is in {IGNORED.name}, but no pin has it any more. Take it out.")
    print(f"{count} pins audited, {len(vulnerabilities)} advisories, {bad} to act on.")
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and audit; returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask the advisory database about the pinned requirements.")
    parser.add_argument("files", nargs="*", type=Path, default=sorted(HERE.glob("*.txt")), help="requirement files (default: all)")
    parser.add_argument("--uv", default=str(Path(sys.executable).with_name("uv")))
    parser.add_argument("--service-url", help="another server of the same kind of database (OSV)")
    parser.add_argument("--ignored", type=Path, default=IGNORED)
    arguments = parser.parse_args(argv)
    files = [file for file in arguments.files if file.name not in (IGNORED.name, "override.txt")]
    return audit(arguments.uv, files, arguments.service_url, ignored(arguments.ignored))


if __name__ == "__main__":
    sys.exit(main())
