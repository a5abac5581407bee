"""`python -m benchmarks NAME [options]` runs one benchmark; without a name it lists them."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks

HELPERS = {"__main__", "calibration", "grpo_runs", "rows", "shapes", "stored_runs", "toy_engines", "trajectories", "watched"}


def main() -> int:
    """Dispatch."""
    names = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - HELPERS)
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in names:
        print(f"usage: python -m benchmarks {{{','.join(names)}}} [options]", file=sys.stderr)
        return 2
    return importlib.import_module(f"benchmarks.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
