"""Full weights handed to a real vLLM engine, judged by transformers; adapters beside them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from next_ray.errors import ConfigError, StaleCompletionError
from next_ray.rollout.engine import VllmEngine
from next_ray.rollout.probe import probe_adapter
from next_ray.types import BASE_VERSION, Group, RolloutRequest, Sampling, Weights
from next_ray.weights import plan_parts, to_array
from tests.rollout.test_engine import make_spec
from tests.rollout.tiny_model import linear_shapes, prompt

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_tokens=8)
TEXT = "12+34=46 " * 8  # longer than a block of the prefix cache


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    spec = make_spec(model, tmp_path_factory.mktemp("scratch"))
    with VllmEngine(replace(spec, rollout=spec.rollout.model_copy(update={"dtype": "float32"}))) as built:
        yield built


def moved(model: Path, seed: int) -> Any:
    """The model with every parameter, norms and biases included, moved a little."""
    torch.manual_seed(seed)
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.3 * parameter.abs().mean() * torch.randn_like(parameter)
    return found


def parts_of(model: Any, dtype: str = "float32") -> Iterator[Weights]:
    parameters = dict(model.named_parameters())
    for names in plan_parts({name: tuple(p.shape) for name, p in parameters.items()}, 20_000):
        part = {name: to_array(parameters[name], dtype) for name in names}
        for values in part.values():
            values.flags.writeable = False  # as what comes from Ray's object store
        yield part


def difference(groups: list[Group], judge: Any, adapter: Any = None) -> float:
    """Mean |engine - transformers| over the sampled tokens, in nats."""
    handles = []
    for name, factors in (adapter or {}).items():
        delta = torch.from_numpy(factors.scale * factors.b @ factors.a)
        handles.append(judge.get_submodule(name).register_forward_hook(lambda _m, args, out, d=delta: out + args[0] @ d.T))
    gaps = []
    for group in groups:
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt_token_ids, completion.token_ids])).long()
            with torch.no_grad():
                logits = judge(ids[None]).logits[0, len(group.prompt_token_ids) - 1 : -1] / SAMPLING.temperature
            chosen = torch.from_numpy(completion.token_ids).long()[:, None]
            gaps.append(logits.log_softmax(-1).gather(-1, chosen)[:, 0].numpy() - completion.logprobs)
    for handle in handles:
        handle.remove()
    return float(np.abs(np.concatenate(gaps)).mean())


def sample(engine: VllmEngine, *versions: int) -> list[Group]:
    return engine.generate([RolloutRequest(prompt(TEXT), version, seed=3, num_samples=4) for version in versions], SAMPLING)


def test_every_parameter_arrives_and_the_base_comes_back(engine: VllmEngine, model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    first, second = moved(model, 1), moved(model, 2)
    assert difference(sample(engine, BASE_VERSION), base) < 1e-3
    for version, policy in ((1, first), (2, second)):
        engine.reload(version, parts_of(policy))
        groups = sample(engine, version)
        assert {c.version for g in groups for c in g.completions} == {version}
        assert difference(groups, policy) < 1e-3
        assert difference(groups, base) > 0.05  # nor is anything of the old weights left in the prefix cache
    engine.reload(BASE_VERSION)
    assert difference(sample(engine, BASE_VERSION), base) < 1e-3


def test_bfloat16_parts_arrive_rounded_once(engine: VllmEngine, model: Path) -> None:
    policy = moved(model, 3)
    engine.reload(3, parts_of(policy, "bfloat16"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(parameter.bfloat16().float())
    assert difference(sample(engine, 3), policy) < 1e-3


def test_only_the_present_version_is_served_and_adapters_go_beside_it(engine: VllmEngine, model: Path) -> None:
    policy = moved(model, 4)
    adapter = probe_adapter(linear_shapes(model), 1, 1.0, seed=5, amplitude=0.5)
    engine.load({9: adapter})
    engine.reload(4, parts_of(policy))
    for gone in (9, BASE_VERSION):
        with pytest.raises(StaleCompletionError):
            sample(engine, gone)
    with pytest.raises(ConfigError, match="without an adapter"):
        engine.load({4: adapter})
    engine.load({9: adapter})
    plain, beside = sample(engine, 4, 9)
    assert difference([plain], policy) < 1e-3
    assert difference([beside], policy, adapter) < 1e-3
    assert difference([beside], policy) > 0.05


def test_a_repeated_version_reads_nothing(engine: VllmEngine, model: Path) -> None:
    engine.reload(5, parts_of(moved(model, 6)))

    def never() -> Iterator[Weights]:
        raise AssertionError("read again")
        yield {}

    engine.reload(5, never())
    sample(engine, 5)


# From here on each test has an engine of its own: closing one ends the process groups that the module's shares with it.


def test_a_tied_head_is_reloaded_with_its_embedding(model: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    shutil.copytree(model, tied)
    source = AutoModelForCausalLM.from_pretrained(model)
    source.config.tie_word_embeddings = True
    source.tie_weights()
    source.save_pretrained(tied)
    policy = moved(tied, 9)
    assert "lm_head.weight" not in dict(policy.named_parameters())
    spec = make_spec(tied, tmp_path)
    with VllmEngine(replace(spec, rollout=spec.rollout.model_copy(update={"dtype": "float32"}))) as engine:
        engine.reload(1, parts_of(policy))
        assert difference(sample(engine, 1), policy) < 1e-3
        engine.reload(BASE_VERSION)
        assert difference(sample(engine, BASE_VERSION), AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)) < 1e-3


def test_without_candidates_there_are_no_adapter_slots(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model, tmp_path)
    policy = moved(model, 7)
    with VllmEngine(replace(spec, max_adapters=0, rollout=spec.rollout.model_copy(update={"dtype": "float32"}))) as engine:
        engine.reload(1, parts_of(policy))
        assert difference(sample(engine, 1), policy) < 1e-3
        with pytest.raises(ConfigError, match="max_adapters"):
            engine.load({2: probe_adapter(linear_shapes(model), 1, 1.0, seed=5)})


def test_worker_processes_read_the_weights_from_a_folder(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model, tmp_path)
    policy = moved(model, 8)
    two = spec.rollout.model_copy(update={"dtype": "float32", "tensor_parallel_size": 2})
    with VllmEngine(replace(spec, rollout=two)) as engine:
        engine.reload(1, parts_of(policy))
        assert difference(sample(engine, 1), policy) < 1e-3
        assert not list(tmp_path.rglob("weights-*"))
