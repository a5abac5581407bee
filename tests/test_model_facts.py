"""Shapes without loading, checked against models that transformers and peft build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from next_ray.config import ModelSection
from next_ray.model_facts import ModelFacts, facts_from_config, facts_of


def model_section(name: str) -> ModelSection:
    return ModelSection.model_validate({"name": name})


def known(name: str) -> ModelFacts:
    facts = facts_of(model_section(name))
    assert facts is not None
    return facts


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("smollm2-135m", 134_515_008),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, published: int) -> None:
    assert known(name).num_parameters == published


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_counts_agree_with_transformers_and_peft(family: str) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    config_class = transformers.Qwen2Config if family == "qwen2" else transformers.LlamaConfig
    config = config_class(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=33,
        tie_word_embeddings=False,
    )
    facts = facts_from_config("x", config.to_dict())
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert facts is not None and facts.num_parameters == sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        tuned = get_peft_model(model, LoraConfig(r=5, target_modules="all-linear"))
    assert facts.lora_parameters(5) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def test_the_tiny_model_is_the_one_that_is_built() -> None:
    tiny = pytest.importorskip("next_ray.models.tiny")
    model = tiny.build_model(tiny.TinySpec())
    assert known("tiny").num_parameters == sum(p.numel() for p in model.parameters())


def test_the_papers_adapter_has_161_million_parameters() -> None:
    """196 linear layers of Qwen2.5-7B at rank 64."""
    facts = known("Qwen/Qwen2.5-7B-Instruct")
    assert sum(shape.count for shape in facts.linears) == 196
    assert facts.lora_parameters(64) == 161_480_704
    # q_proj alone: 28 layers x 64 x (3584 + 3584)
    assert facts.lora_parameters(64, ["q_proj"]) == 12_845_056


def test_local_folders_are_read_and_what_is_unknown_is_not_guessed(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen2",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = facts_of(model_section(str(tmp_path)))
    # embeddings 2 x 80, attention 4 x 64 + 3 x 8 biases, MLP 3 x 128, norms 3 x 8
    assert facts is not None and facts.num_parameters == 160 + 256 + 24 + 384 + 24
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    assert facts_of(model_section(str(tmp_path))) is None
    (tmp_path / "config.json").write_text("{")
    assert facts_of(model_section(str(tmp_path))) is None
    assert facts_of(model_section("nobody/has-this-in-the-cache")) is None
