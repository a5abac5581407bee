"""Exported folders in a real vLLM engine, with the `max_lora_rank` that their lineage names, judged by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from next_ray.checkpoints.export import Result, export_adapter, export_merged
from next_ray.config import DataSection, RolloutSection
from next_ray.delta.trajectory import from_adapters
from next_ray.extrapolate.methods.registry import make
from next_ray.extrapolate.plan import Setting
from next_ray.rollout.spec import EngineSpec, engine_arguments, set_environment
from tests.delta.trajectories import wandering_adapters
from tests.export.samples import LINEAGE
from tests.rollout.tiny_model import linear_shapes, save_tiny_model

pytestmark = pytest.mark.vllm


def logprobs_by_transformers(base: Path, adapter: Path | None, prompt: list[int], answer: list[int]) -> np.ndarray:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0].numpy()


def sampled_logprobs(output: Any) -> np.ndarray:
    return np.array([row[token].logprob for row, token in zip(output.logprobs, output.token_ids, strict=True)])


def test_candidates_load_and_say_what_peft_says(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_tiny_model(base)
    adapters = wandering_adapters(np.random.default_rng(3), linear_shapes(base), 6, 3)
    strong = [{name: type(f)(f.a, np.float32(30) * f.b, f.scale) for name, f in adapter.items()} for adapter in adapters]
    trajectory = from_adapters([1, 2, 3], strong)
    plans = make("two-point").fit(trajectory, Setting(horizon=1)).at(1.0)
    folders = {"exact": None, "rank 6": 6}
    needed = set()
    for name, rank in folders.items():
        export_adapter(tmp_path / name, Result(plans, trajectory, LINEAGE), rank=rank)
        needed.add(json.loads((tmp_path / name / "next_ray_lineage.json").read_text())["result"]["vllm_max_lora_rank"])
    export_merged(tmp_path / "merged", Result(plans, trajectory, LINEAGE), base)
    assert needed == {16, 8}

    spec = EngineSpec(
        model_path=str(base),
        base_name="tiny",
        rollout=RolloutSection.model_validate({"kv_cache_gib": 0.0625, "max_num_seqs": 16, "dtype": "float32"}),
        max_lora_rank=max(needed),
        max_adapters=2,
        max_model_len=64,
        seed=0,
        device="cpu",
        deterministic=False,
        data=DataSection(),
    )
    set_environment(spec)
    import vllm
    from vllm.lora.request import LoRARequest

    threads = torch.set_num_threads
    llm = vllm.LLM(**engine_arguments(spec, max(needed)))
    torch.set_num_threads = threads
    try:
        prompt = [3, 4, 12, 5]
        sampling = vllm.SamplingParams(temperature=1.0, max_tokens=8, logprobs=0, seed=0, ignore_eos=True)
        requests: list[Any] = [None, *(LoRARequest(name, index, str(tmp_path / name)) for index, name in enumerate(folders, start=1))]
        outputs = llm.generate([vllm.TokensPrompt(prompt_token_ids=prompt)] * 3, [sampling] * 3, lora_request=requests, use_tqdm=False)
        for request, output in zip(requests, outputs, strict=True):
            answer = list(output.outputs[0].token_ids)
            found = sampled_logprobs(output.outputs[0])
            folder = tmp_path / request.lora_name if request else None
            expected = logprobs_by_transformers(base, folder, prompt, answer)
            np.testing.assert_allclose(found, expected, atol=5e-3)
            if folder is not None:
                assert np.abs(found - logprobs_by_transformers(base, None, prompt, answer)).max() > 0.05
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path / "merged")})
        llm.reset_prefix_cache()
        output = llm.generate([vllm.TokensPrompt(prompt_token_ids=prompt)], [sampling], use_tqdm=False)[0].outputs[0]
        found = sampled_logprobs(output)
        expected = logprobs_by_transformers(base, tmp_path / "exact", prompt, list(output.token_ids))
        np.testing.assert_allclose(found, expected, atol=0.1)  # the merged weights are bfloat16
    finally:
        llm.llm_engine.engine_core.shutdown()
