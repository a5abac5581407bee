"""`python -m benchmarks NAME [options]` runs one benchmark; without a name it lists them."""

from __future__ import annotations

import sys

from benchmarks import alpha_sweep, dense, embedded, fitting, memory, sharding, smollm2, triplets

BENCHMARKS = {
    "alpha_sweep": alpha_sweep.main,
    "embedded": embedded.main,
    "fitting": fitting.main,
    "memory": memory.main,
    "smollm2": smollm2.main,
    "dense": dense.main,
    "sharding": sharding.main,
    "triplets": triplets.main,
}


def main() -> int:
    """Dispatch."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        print(f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        return 2
    return BENCHMARKS[name](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
