"""One real vLLM engine on a tiny random model, judged by transformers and PEFT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from next_ray.config import DataSection, RolloutSection
from next_ray.errors import ConfigError, DataError, ProbeError, StaleCompletionError
from next_ray.rollout.engine import EngineSpec, VllmEngine
from next_ray.rollout.probe import ProbeReport, check, compare, probe_adapter
from next_ray.types import Adapter, FinishReason, Group, RolloutRequest, Sampling
from tests.rollout.tiny_model import END, SecondOpinion, linear_shapes, prompt, rescaled

pytestmark = pytest.mark.vllm

RANK = 8
SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_tokens=8)
LONG = "12+34=46 " * 8  # 72 tokens: more than one block of the prefix cache


def make_spec(model: Path, adapter_dir: Path, deterministic: bool = False) -> EngineSpec:
    return EngineSpec(
        model_path=str(model),
        base_name="tiny",
        rollout=RolloutSection.model_validate({"kv_cache_gib": 0.0625, "max_num_seqs": 64, "dtype": "bfloat16"}),
        max_lora_rank=RANK + 1,
        max_adapters=3,
        max_model_len=96,
        seed=0,
        device="cpu",
        deterministic=deterministic,
        data=DataSection.model_validate({}),
        adapter_dir=str(adapter_dir),
    )


@pytest.fixture(scope="module")
def adapters(model: Path) -> dict[int, Adapter]:
    """Versions 1 and 2 of the trained rank, version 3 one rank wider and of another scale."""
    shapes = linear_shapes(model)
    return {
        1: probe_adapter(shapes, RANK, scale=0.5, seed=1, amplitude=0.5),
        2: probe_adapter(shapes, RANK, scale=0.5, seed=2, amplitude=0.5),
        3: probe_adapter(shapes, RANK + 1, scale=1.0, seed=3, amplitude=0.5),
    }


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    with VllmEngine(make_spec(model, tmp_path_factory.mktemp("adapters"))) as built:
        yield built


@pytest.fixture(scope="module")
def opinion(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SecondOpinion:
    return SecondOpinion(model, tmp_path_factory.mktemp("peft"))


def requests_for(versions: list[int], text: str = "12+3=", samples: int = 4) -> list[RolloutRequest]:
    return [RolloutRequest(prompt(text), version, seed=100, num_samples=samples) for version in versions]


def tokens(group: Group) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in group.completions]


def judged(opinion: SecondOpinion, adapter: Adapter | None, groups: list[Group]) -> list[np.ndarray]:
    return [opinion.logprobs(adapter, g.prompt_token_ids, c, SAMPLING.temperature) for g in groups for c in g.completions]


def flat(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows)


def engine_rows(groups: list[Group]) -> list[np.ndarray]:
    return [c.logprobs for g in groups for c in g.completions]


def test_groups_carry_what_was_asked(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine.load(adapters)
    groups = engine.generate(requests_for([0, 1, 2, 3]), SAMPLING)
    assert [c.version for g in groups for c in g.completions] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    for group in groups:
        assert group.prompt_token_ids.dtype == np.int32
        assert group.prompt_token_ids.tolist() == [3, 4, 12, 5, 14]
        for completion in group.completions:
            ended = completion.token_ids[-1] == END
            assert completion.token_ids.dtype == np.int32 and completion.logprobs.dtype == np.float32
            assert completion.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
            assert len(completion.token_ids) <= SAMPLING.max_tokens
            assert END not in completion.token_ids[:-1]
            visible = [t for t in completion.token_ids.tolist() if t > END]
            assert completion.text == "".join("0123456789+-= "[t - 2] for t in visible)
    assert {c.finish_reason for g in groups for c in g.completions} == set(FinishReason)


def test_versions_side_by_side_equal_peft(engine: VllmEngine, adapters: dict[int, Adapter], opinion: SecondOpinion) -> None:
    """All slots are taken, so base rows that met an adapter's weights would show; version 3 has rank r+1."""
    engine.load(adapters)
    groups = engine.generate(requests_for([0, 1, 2, 3, 0], samples=8), SAMPLING)
    for group, adapter in zip(groups, [None, *adapters.values(), None], strict=True):
        expected = flat(judged(opinion, adapter, [group]))
        assert np.abs(flat(engine_rows([group])) - expected).mean() < 0.03
        for other in [None, *adapters.values()]:
            if other is not adapter:
                assert np.abs(flat(engine_rows([group])) - flat(judged(opinion, other, [group]))).mean() > 0.15


def test_logprobs_are_of_the_scaled_distribution(engine: VllmEngine, opinion: SecondOpinion) -> None:
    groups = engine.generate(requests_for([0]), SAMPLING)
    unscaled = flat([opinion.logprobs(None, g.prompt_token_ids, c, 1.0) for g in groups for c in g.completions])
    assert np.abs(flat(engine_rows(groups)) - unscaled).mean() > 0.15


def test_a_sample_depends_on_its_seed_alone(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine.load(adapters)
    (four,) = engine.generate(requests_for([1]), SAMPLING)
    assert tokens(four) == tokens(engine.generate(requests_for([1]), SAMPLING)[0])
    moved = [RolloutRequest(prompt("12+3="), 1, seed=100 + i, num_samples=1) for i in range(4)]
    assert tokens(four) == [tokens(group)[0] for group in engine.generate([*requests_for([2, 0]), *moved], SAMPLING)[2:]]
    assert len({tuple(row) for row in tokens(four)}) > 1


def test_a_new_version_never_meets_the_old_ones_cache(engine: VllmEngine, adapters: dict[int, Adapter], opinion: SecondOpinion) -> None:
    """The same version number loaded with other weights: same prompt, longer than a cache block."""

    def cached_tokens() -> int:
        batch = engine.begin(requests_for([1], LONG), SAMPLING)
        while not batch.done:
            engine.step()
        return batch.outputs[0].num_cached_tokens

    engine.load({1: adapters[1]})
    cached_tokens()
    assert cached_tokens() >= 32, "the prefix cache is not in use, so this test would show nothing"
    engine.load({1: adapters[2]})
    assert cached_tokens() == 0
    groups = engine.generate(requests_for([1], LONG), SAMPLING)
    assert np.abs(flat(engine_rows(groups)) - flat(judged(opinion, adapters[2], groups))).mean() < 0.03


def test_loading_drops_what_was_there(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine.load({1: adapters[1], 2: adapters[2]})
    engine.load({3: adapters[3]})
    assert engine.info().versions == (3,)
    assert len(engine._llm.llm_engine.list_loras()) == 1
    assert len([p for p in engine._scratch.path.iterdir() if p.is_dir()]) == 1
    with pytest.raises(StaleCompletionError, match=r"versions \[1\].*serves \[0, 3\]"):
        engine.generate(requests_for([0, 1]), SAMPLING)
    engine.load({})
    assert not engine._llm.llm_engine.list_loras()
    assert engine.generate(requests_for([0]), SAMPLING)


def test_what_does_not_fit_is_refused_and_changes_nothing(engine: VllmEngine, adapters: dict[int, Adapter], model: Path) -> None:
    engine.load({1: adapters[1]})
    too_wide = probe_adapter(linear_shapes(model), engine.info().max_lora_rank + 1, 0.5, seed=0)
    for bad in ({0: adapters[1]}, {2: too_wide}, dict.fromkeys(range(1, 5), adapters[1])):
        with pytest.raises(ConfigError):
            engine.load(bad)
    assert engine.info().versions == (1,)
    with pytest.raises(DataError, match="has 90 tokens"):
        engine.generate([RolloutRequest(prompt("1" * 90), 0, 0, 1)], SAMPLING)


def probe(engine: VllmEngine, in_engine: Adapter, in_learner: Adapter, opinion: SecondOpinion) -> ProbeReport:
    engine.load({7: in_engine})
    base, probed = engine.generate(requests_for([0], samples=12), SAMPLING), engine.generate(requests_for([7], samples=12), SAMPLING)
    return compare(base, judged(opinion, None, base), probed, judged(opinion, in_learner, probed), judged(opinion, None, probed))


def test_probe_accepts_the_same_adapter(engine: VllmEngine, model: Path, opinion: SecondOpinion) -> None:
    adapter = probe_adapter(linear_shapes(model), RANK, 0.5, seed=5)
    report = probe(engine, adapter, adapter, opinion)
    check(report, "bfloat16")
    assert report.adapter_effect > 5 * report.base_mean_abs


def test_probe_sees_names_the_engine_skips(engine: VllmEngine, model: Path, opinion: SecondOpinion) -> None:
    adapter = probe_adapter(linear_shapes(model), RANK, 0.5, seed=5)
    misnamed = {name.removeprefix("model."): factors for name, factors in adapter.items()}
    with pytest.raises(ProbeError, match="no effect in the engine"):
        check(probe(engine, misnamed, adapter, opinion), "bfloat16")


def test_probe_sees_another_scale(engine: VllmEngine, model: Path, opinion: SecondOpinion) -> None:
    adapter = probe_adapter(linear_shapes(model), RANK, 0.5, seed=5)
    with pytest.raises(ProbeError, match=r"scale .* differs"):
        check(probe(engine, rescaled(adapter, 0.5), adapter, opinion), "bfloat16")


def test_grouped_lora_equals_one_token_at_a_time() -> None:
    from next_ray.rollout.cpu_worker import add_lora, rows_by_slot

    torch.manual_seed(0)
    slots = torch.tensor([-1, 2, 2, 0, -1, 0, 1])
    x, y = torch.randn(7, 6), torch.randn(7, 5)
    a = tuple(torch.randn(3, 1, 4, 6) for _ in range(2))
    b = (torch.randn(3, 1, 3, 4), torch.randn(3, 1, 2, 4))
    expected = y.clone()
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            deltas = [0.5 * b_i[slot, 0] @ (a_i[slot, 0] @ x[t]) for a_i, b_i in zip(a, b, strict=True)]
            expected[t] += torch.cat(deltas)
    add_lora(y, x, a, b, 0.5, (3, 2), rows_by_slot(slots))
    torch.testing.assert_close(y, expected)
    assert isinstance(rows_by_slot(slots)[2][1], slice), "a contiguous group needs no gather"


SCRIPT = """
import json, sys
from pathlib import Path
import psutil
from next_ray.rollout.engine import VllmEngine
from next_ray.rollout.probe import probe_adapter
from tests.rollout.test_engine import LONG, RANK, SAMPLING, make_spec, requests_for, tokens
from tests.rollout.tiny_model import linear_shapes

def main():
    model, scratch, history = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    shapes = linear_shapes(model)
    engine = VllmEngine(make_spec(model, scratch, deterministic=True))
    for step in range(history):
        engine.load({1: probe_adapter(shapes, RANK, 0.5, seed=50 + step)})
        engine.generate(requests_for([1, 0], LONG) + requests_for([0], LONG + "1"), SAMPLING)
    engine.load({4: probe_adapter(shapes, RANK, 0.5, seed=1), 5: probe_adapter(shapes, RANK + 1, 0.5, seed=2)})
    groups = engine.generate(requests_for([0, 4, 5], LONG) + requests_for([4, 0]), SAMPLING)
    result = {"tokens": [tokens(g) for g in groups], "logprobs": [c.logprobs.tobytes().hex() for g in groups for c in g.completions]}
    engine.close()
    engine.close()
    result["left"] = [p.name() for p in psutil.Process().children(recursive=True)] + [p.name for p in scratch.iterdir()]
    print("RESULT" + json.dumps(result))

main()
"""


def test_deterministic_whatever_came_before_and_nothing_left(model: Path, tmp_path: Path) -> None:
    """Two fresh processes, one with a history: equal to the last bit. After close() no process and no folder is left."""
    results = []
    for history in (0, 2):
        command = [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "scratch"), str(history)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": str(history)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        assert done.returncode == 0 and lines, done.stderr[-3000:]
        results.append(json.loads(lines[0].removeprefix("RESULT")))
    assert results[0] == results[1]
    assert results[0]["left"] == []
