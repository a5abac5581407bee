"""How much of a device the stages make use of, and what they take beside it: measured on CPU, assumed for GPUs.

`python -m benchmarks plan` measures the CPU's; docs/planning.md says on which runs, and how far the planner is off on others.
"""

from __future__ import annotations

from dataclasses import dataclass

VERIFIED_PER_S = 5000.0
"""Measured: short answers that one verifier process judges in a second (docs/benchmarks.md)."""
DRIVER_S = 0.01
"""Measured: what the driver takes for a step with one engine."""
DRIVER_ENGINE_S = 0.0005
"""Measured: what it takes for each further engine (`python -m benchmarks controller`)."""
DELTA_MODULE_S = 1e-4
"""Measured: what the triplets of one module take on a core whatever its size."""
DELTA_UNIT_S = 1e-10
"""Measured: seconds of a core for a unit of `delta.sharding.module_cost`."""
DENSE_UNIT_S = 2e-9
"""Measured: seconds of a core for an entry of a full matrix (docs/benchmarks.md, dense deltas)."""
STORE_BYTES_PER_S = 150 * 10**6
"""Measured: a checkpoint's way into an S3 server on the same machine; AWS from one node is of the same order (assumed)."""


@dataclass(frozen=True)
class Rates:
    """Shares of what a device can do at most, and seconds that no arithmetic explains.

    Attributes:
        decode: share of the arithmetic that sampling reaches when it is bound by it.
        bandwidth: share of the memory bandwidth that sampling reaches when it is bound by it.
        prefill: share of the arithmetic that reading prompts reaches.
        update: share of the arithmetic that an update reaches.
        token_s: what an engine takes for one step (a token of every sequence).
        layer_token_s: what every layer takes in it.
        sequence_token_s: what every sequence takes in it.
        update_s: what an optimizer step takes.
        layer_s: what every layer takes in a micro batch, forward and backward.
        copy_bytes_per_s: how fast adapters, weights and states get into and out of the object store.
        load_s: what a hand-over takes however little there is to hand over.
        snapshot_s: what a snapshot takes likewise.
    """

    decode: float
    bandwidth: float
    prefill: float
    update: float
    token_s: float
    layer_token_s: float
    sequence_token_s: float
    update_s: float
    layer_s: float
    copy_bytes_per_s: float
    load_s: float
    snapshot_s: float


CPU = Rates(
    decode=0.6,
    bandwidth=0.8,
    prefill=0.6,
    update=0.6,
    token_s=0.002,
    layer_token_s=0.0005,
    sequence_token_s=0.0001,
    update_s=0.02,
    layer_s=0.002,
    copy_bytes_per_s=1e9,
    load_s=0.008,
    snapshot_s=0.01,
)
"""Measured on one core of machine E by `python -m benchmarks plan`."""

GPU = Rates(
    decode=0.4,
    bandwidth=0.6,
    prefill=0.5,
    update=0.35,
    token_s=0.004,
    layer_token_s=0.0,
    sequence_token_s=0.00002,
    update_s=0.05,
    layer_s=0.001,
    copy_bytes_per_s=2e9,
    load_s=0.1,
    snapshot_s=0.1,
)
"""Assumed, all of it: usual figures of well-kept engines and trainers, not measured by this project."""
