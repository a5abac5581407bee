"""Do engine and learner mean the same model? A comparison of their log-probabilities of the same tokens.

Two sets of completions, sampled by the engine under the base and under a random probe adapter, are scored by the learner. The
engine's change under the adapter is regressed on the learner's: slope 1 when both apply the same adapter, 0 when the engine
ignores it. To first order log-probabilities are linear in an adapter's scale, so the slope is the share that is applied.

Shape legend: T tokens (of one completion), N tokens in all, I/O in/out features, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.errors import ProbeError
from next_ray.types import Adapter, Group, LoraFactors

AMPLITUDE = 0.2
"""Root mean square of a probe adapter's output for an input of root mean square 1."""
MIN_SIGNAL = 3.0
"""The probe adapter must move the learner's log-probabilities by this many times the noise of the base."""
SLOPE_BAND = 0.25
"""Largest distance of the slope from 1."""
TOLERANCE = {"float32": 0.005, "float16": 0.03, "bfloat16": 0.1}
"""Largest mean |difference| between two implementations of one model, by number format (the coarser side's), in nats."""

Rows = Sequence[np.ndarray]


@dataclass(frozen=True)
class ProbeReport:
    """How far engine and learner are apart, in nats.

    `mean_abs` and `max_abs` are of the probe completions, both sides with the adapter; `base_mean_abs` and `base_bias` (signed mean,
    engine minus learner) of the base completions. `adapter_effect` is the learner's mean change by the adapter, `slope` the
    engine's change in units of it, `residual` what the slope leaves unexplained (mean |.|). `prompts_differ` counts prompts
    that the two sides tokenize differently; None when the learner's ids were not given.
    """

    mean_abs: float
    max_abs: float
    base_mean_abs: float
    base_bias: float
    adapter_effect: float
    slope: float
    residual: float
    num_tokens: int
    prompts_differ: int | None = None


def compare(
    base: Sequence[Group],
    learner_base: Rows,
    probe: Sequence[Group],
    learner_probe: Rows,
    learner_probe_without: Rows,
    learner_prompts: Rows | None = None,
) -> ProbeReport:
    """Compare the engine's groups with the learner's log-probabilities of the same completions, float32 [T] each, in order.

    Args:
        base: sampled under the base; `learner_base` is the learner's view, adapter off.
        probe: sampled under the probe adapter; `learner_probe` with the adapter, `learner_probe_without` with it off.
        learner_prompts: the learner's token ids of the prompts of `base` then `probe`, one a group, where it tokenizes them itself.
    """
    engine_base, engine_probe = _engine_rows(base), _engine_rows(probe)
    base_N = _flat(engine_base) - _flat(learner_base)
    with_N, without_N = _flat(learner_probe), _flat(learner_probe_without)
    probe_N = _flat(engine_probe)
    if not len(base_N) or not len(probe_N):
        raise ProbeError("the probe sampled no tokens, so engine and learner cannot be compared. Give it at least one prompt.")
    moved_N = with_N - without_N
    energy = float(moved_N @ moved_N)
    slope = float(moved_N @ (probe_N - without_N)) / energy if energy > 0 else float("nan")
    return ProbeReport(
        mean_abs=float(np.abs(probe_N - with_N).mean()),
        max_abs=float(np.abs(probe_N - with_N).max()),
        base_mean_abs=float(np.abs(base_N).mean()),
        base_bias=float(base_N.mean()),
        adapter_effect=float(np.abs(moved_N).mean()),
        slope=slope,
        residual=float(np.abs(probe_N - without_N - slope * moved_N).mean()),
        num_tokens=len(base_N) + len(probe_N),
        prompts_differ=None if learner_prompts is None else _count_different([*base, *probe], learner_prompts),
    )


def check(report: ProbeReport, dtype: str) -> None:
    """Raise `ProbeError` with a diagnosis unless engine and learner agree within what `dtype` (the coarser side's) explains."""
    diagnosis = diagnose(report, TOLERANCE[dtype])
    if diagnosis:
        raise ProbeError(f"engine and learner disagree about the probabilities of the same tokens: {diagnosis} [{_numbers(report)}]")


def diagnose(report: ProbeReport, tolerance: float) -> str | None:
    """What is wrong and what to do, in a few sentences; None when nothing is. The first cause that explains the numbers wins."""
    r = report
    if r.prompts_differ:
        return (
            f"{r.prompts_differ} prompts have other token ids on the two sides. Tokenizer, chat template or data.template differ; use one "
            "model folder and one data section for both."
        )
    if not np.isfinite([r.mean_abs, r.base_mean_abs, r.adapter_effect]).all():
        return "some log-probabilities are not finite. Try bfloat16 or float32 as rollout.dtype and learner.dtype; float16 can overflow."
    if r.base_mean_abs > tolerance:
        return _base_cause(r, tolerance)
    if r.adapter_effect < MIN_SIGNAL * max(r.base_mean_abs, 1e-5):
        return (
            f"the probe adapter moves the learner's log-probabilities by {r.adapter_effect:.4f}, too little against noise "
            f"of {r.base_mean_abs:.4f}. Either the learner ignores the adapter (check its names), or the probe needs a larger amplitude."
        )
    if abs(r.slope) < SLOPE_BAND:
        return (
            "the base agrees, but the adapter has no effect in the engine. Its module names are not the engine's, so vLLM skipped it, or "
            "the requests were served by the base. Compare the adapter's names with those of the base model's weight file."
        )
    if abs(r.slope - 1) > SLOPE_BAND:
        return (
            f"the base agrees, but the engine applies about {r.slope:.2f} times the adapter that the learner has. The scale (alpha / rank, "
            "or rank-stabilised scaling) differs, or the engine knows only some of the modules."
        )
    if r.mean_abs > tolerance or r.residual > 0.5 * r.adapter_effect:
        return (
            "the base agrees, but the adapter's effect differs in more than its scale. The two sides hold different factors: an old "
            "version, or names that are swapped."
        )
    return None


def _base_cause(r: ProbeReport, tolerance: float) -> str:
    if r.base_mean_abs < 8 * tolerance and abs(r.base_bias) < 0.5 * r.base_mean_abs:
        return (
            f"without any adapter they differ by {r.base_mean_abs:.4f} on average where {tolerance:.4f} is expected, in both directions. "
            "That looks like numbers of less precision than configured: check rollout.dtype, learner.dtype and quantized weights."
        )
    return (
        f"without any adapter they differ by {r.base_mean_abs:.4f} on average where {tolerance:.4f} is expected (engine minus learner: "
        f"{r.base_bias:+.4f}). Different weights, a different temperature or prompt: check that both sides have one model folder and the "
        "temperature of rollout.temperature."
    )


def _numbers(r: ProbeReport) -> str:
    return (
        f"mean |d| {r.mean_abs:.4f}, max {r.max_abs:.4f}, base {r.base_mean_abs:.4f}, adapter effect {r.adapter_effect:.4f}, "
        f"slope {r.slope:.2f}, residual {r.residual:.4f}, {r.num_tokens} tokens"
    )


def _engine_rows(groups: Sequence[Group]) -> Rows:
    return [completion.logprobs for group in groups for completion in group.completions]


def _flat(rows: Rows) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows]) if len(rows) else np.empty(0)


def _count_different(groups: Sequence[Group], prompts: Rows) -> int:
    return sum(not np.array_equal(group.prompt_token_ids, ids) for group, ids in zip(groups, prompts, strict=True))


def probe_adapter(
    shapes: Mapping[str, tuple[int, int]], rank: int, scale: float, seed: int, amplitude: float = AMPLITUDE
) -> dict[str, LoraFactors]:
    """A random adapter whose effect is far above bfloat16 noise and which leaves the model's predictions recognisable.

    Args:
        shapes: module name to (O, I).
        rank: R.
        scale: the factors' scale; the delta `scale * b a` does not depend on it.
        seed: of the factors; each module's depend on the seed and its place in the sorted names.
        amplitude: root mean square of `delta x` for x of root mean square 1.
    """
    generator = np.random.default_rng(seed)
    adapter: dict[str, LoraFactors] = {}
    for name in sorted(shapes):
        num_out, num_in = shapes[name]
        a = generator.normal(size=(rank, num_in)) / np.sqrt(num_in)
        b = generator.normal(size=(num_out, rank)) * amplitude / (scale * np.sqrt(rank))
        adapter[name] = LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32), scale=scale)
    return adapter


def make_probe_adapter(like: Adapter, seed: int, amplitude: float = AMPLITUDE) -> dict[str, LoraFactors]:
    """A probe adapter with the modules, ranks and scales of `like`."""
    adapter: dict[str, LoraFactors] = {}
    for index, (name, factors) in enumerate(sorted(like.items())):
        shape = {name: (factors.b.shape[0], factors.a.shape[1])}
        adapter |= probe_adapter(shape, factors.rank, factors.scale, seed + index, amplitude)
    return adapter
