"""The probe on made-up log-probabilities whose cause of disagreement is known."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from next_ray.errors import ProbeError
from next_ray.rollout.probe import ProbeReport, check, compare, make_probe_adapter, probe_adapter
from next_ray.types import Completion, FinishReason, Group, LoraFactors, Prompt

NUM = 400
PROMPT = Prompt("p", ({"role": "user", "content": "1+1="},), "2", "exact")
IDS = np.arange(5, dtype=np.int32)


def group(logprobs: np.ndarray) -> Group:
    completion = Completion(np.zeros(len(logprobs), np.int32), logprobs.astype(np.float32), "", FinishReason.LENGTH, 1)
    return Group(PROMPT, IDS, (completion,))


def report(
    noise: float = 0.01,
    share: float = 1.0,
    base_shift: float = 0.0,
    effect: float = 0.4,
    other: float = 0.0,
    learner_prompt: np.ndarray = IDS,
) -> ProbeReport:
    """The engine applies `share` of the learner's adapter, whose effect has mean |.| `effect`, plus `other` of its own."""
    random = np.random.default_rng(0)
    learner_base, without = -random.exponential(2.0, NUM), -random.exponential(2.0, NUM)
    moved = random.normal(size=NUM) * effect / np.sqrt(2 / np.pi)
    engine_base = learner_base + random.normal(size=NUM) * noise + base_shift
    engine_probe = without + share * moved + random.normal(size=NUM) * np.hypot(noise, other)
    return compare(
        [group(engine_base)], [learner_base], [group(engine_probe)], [without + moved], [without], [learner_prompt, learner_prompt]
    )


def test_numbers() -> None:
    r = compare(
        [group(np.array([-1.0, -2.0]))], [np.array([-1.5, -2.0])], [group(np.array([-3.0]))], [np.array([-2.0])], [np.array([-5.0])]
    )
    assert (r.mean_abs, r.max_abs, r.base_mean_abs, r.base_bias) == (1.0, 1.0, 0.25, 0.25)
    assert (r.adapter_effect, r.num_tokens, r.prompts_differ) == (3.0, 3, None)
    assert r.slope == pytest.approx(2 / 3)
    assert r.residual == pytest.approx(0.0)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_agreement_passes(noise: float) -> None:
    check(report(noise=noise), "bfloat16")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (report(share=0.0), "no effect in the engine"),
        (report(share=0.5), "about 0.50 times"),
        (report(share=2.0), "about 2.00 times"),
        (report(noise=0.25), "less precision"),
        (report(base_shift=1.0), "Different weights, a different temperature"),
        (report(learner_prompt=IDS[1:]), "2 prompts have other token ids"),
        (report(effect=0.01), "too little against noise"),
        (report(effect=0.0, noise=0.0), "too little against noise"),
        (report(other=0.5), "more than its scale"),
        (report(base_shift=float("nan")), "not finite"),
    ],
)
def test_each_cause_has_its_words(made: ProbeReport, words: str) -> None:
    with pytest.raises(ProbeError, match=words) as caught:
        check(made, "bfloat16")
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_format_decides_what_is_noise() -> None:
    check(report(noise=0.02), "bfloat16")
    with pytest.raises(ProbeError, match="less precision"):
        check(report(noise=0.02), "float32")


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ProbeError, match="no tokens"):
        compare([], [], [], [], [])


def test_probe_adapter_has_the_amplitude_asked_for() -> None:
    adapter = probe_adapter(
        {"model.layers.0.mlp.up_proj": (300, 200), "model.layers.0.mlp.down_proj": (200, 300)}, 16, 0.25, seed=3, amplitude=0.2
    )
    random = np.random.default_rng(1)
    for factors in adapter.values():
        x = random.normal(size=(factors.a.shape[1], 500))
        y = factors.scale * factors.b @ (factors.a @ x)
        assert np.sqrt((y**2).mean()) == pytest.approx(0.2, rel=0.1)
        assert factors.rank == 16 and factors.a.dtype == factors.b.dtype == np.float32


def test_probe_adapter_is_seeded_and_copies_shapes() -> None:
    like = {
        "x": LoraFactors(np.zeros((4, 6), np.float32), np.zeros((8, 4), np.float32), 0.5),
        "y": LoraFactors(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), 2.0),
    }
    first, again, other = make_probe_adapter(like, 1), make_probe_adapter(like, 1), make_probe_adapter(like, 2)
    for name, factors in like.items():
        assert first[name].a.shape == factors.a.shape and first[name].b.shape == factors.b.shape and first[name].scale == factors.scale
        assert np.array_equal(first[name].a, again[name].a) and not np.array_equal(first[name].a, other[name].a)
