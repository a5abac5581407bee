"""How much of a device the stages make use of, and what they take beside it: measured on CPU, as far as tiny shows it, assumed for GPUs.

`python -m benchmarks plan` measures the CPU's; docs/planning.md says on which runs, and how far the planner is off on others.
"""

from __future__ import annotations

from dataclasses import dataclass

VERIFIED_PER_S = 5000.0
"""Measured: short answers that one verifier process judges in a second (docs/benchmarks.md)."""
DRIVER_S = 0.007
"""Measured: what the driver takes for a step with one engine, on a busy machine."""
DRIVER_ENGINE_S = 0.0015
"""Measured up to 100 engines: its processor time for each further one (`python -m benchmarks controller`)."""
DELTA_MODULE_S = 4.35e-4
"""Measured: what the triplets of one module of a checkpoint take on a core whatever its size."""
DELTA_CORE_S = 3.6e-8
"""Measured: what they take for each entry of a cube of side R."""
DELTA_FEATURE_S = 1.8e-8
"""Measured: what they take for each entry of the factors, (O + I) R."""
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
    decode=1.0,
    bandwidth=0.8,
    prefill=1.0,
    update=0.314,
    token_s=0.0,
    layer_token_s=4.9e-4,
    sequence_token_s=7.2e-5,
    update_s=0.0,
    layer_s=4.65e-3,
    copy_bytes_per_s=1e9,
    load_s=0.008,
    snapshot_s=0.01,
)
"""A core of an AMD EPYC with AVX512-BF16, measured on tiny alone.

`decode`, `prefill`, `bandwidth` and `copy_bytes_per_s`, which tiny cannot show, are assumed.
"""

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
