"""Prompts computed once give what prompts computed for every sample give; models for which they would not are left alone."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from next_ray.config import LoraSection
from next_ray.learn.batches import token_batch
from next_ray.learn.policy import PolicySpec, load_policy
from next_ray.learn.sharing import fold, unfold
from tests.learn.harness import VOCABULARY

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}


def batch_of(pairs):
    """Sequences (prompt length, prompt seed, completion length)."""
    prompts = [np.random.default_rng(seed).integers(0, VOCABULARY, length) for length, seed, _ in pairs]
    completions = [np.random.default_rng(100 + i).integers(0, VOCABULARY, n) for i, (_, _, n) in enumerate(pairs)]
    return token_batch(prompts, completions, CPU)


def shared_of(pairs):
    shared = batch_of(pairs).shared
    assert shared is not None
    return shared


MIXED = [(5, 1, 4), (3, 2, 1), (5, 1, 7), (1, 3, 2), (5, 1, 1), (3, 2, 6), (4, 4, 1)]


def policy_of(config, folder, dtype=torch.float32, checkpointing=False):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    lora = LoraSection(rank=4, alpha=8.0)
    policy = load_policy(PolicySpec(str(folder), lora, dtype, 0.8, checkpointing, trust_remote_code=False))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


def logprobs_and_gradients(policy, tokens):
    policy.zero_grad()
    logprobs, entropies = policy(tokens)
    (logprobs * torch.linspace(-1.0, 2.0, len(logprobs))).sum().backward()
    return logprobs.detach(), entropies, [p.grad.clone() for p in policy.parameters() if p.requires_grad]


def test_different_tokens_are_laid_out_once():
    tokens, shared = batch_of(MIXED), shared_of(MIXED)
    # 5 + 3 + 1 + 4 tokens of four prompts, and all but the last token of every completion.
    assert shared.ids.shape == shared.positions.shape == (1, 13 + 3 + 6 + 1 + 5)
    unfolded = shared.ids[0][shared.unfolding].view_as(tokens.input_ids)
    for row, (prompt, _, completion) in enumerate(MIXED):
        length = prompt + completion - 1
        assert torch.equal(unfolded[row, :length], tokens.input_ids[row, :length])
        assert torch.equal(shared.positions[0][shared.unfolding].view_as(unfolded)[row, :length], torch.arange(length))


def test_unfolding_sums_the_gradients_of_copies_and_folding_takes_one_of_them():
    shared = shared_of(MIXED)
    values = torch.randn(1, 2, shared.ids.shape[1], 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(fold(unfold(values, shared).transpose(1, 2), shared), values.transpose(1, 2))
    assert torch.autograd.gradcheck(lambda v: fold((unfold(v, shared) ** 2).transpose(1, 2), shared), values)
    weights = torch.zeros(shared.unfolding.numel(), dtype=torch.float64)
    for places in shared.copies:
        weights[places.flatten()] = torch.arange(1.0, places.numel() + 1, dtype=torch.float64)
    rows = unfold(values, shared)
    (rows * weights.view(rows.shape[0], 1, -1, 1)).sum().backward()
    expected = torch.cat([weights[places].sum(0) for places in shared.copies])
    assert values.grad is not None and torch.equal(values.grad, expected.view(1, 1, -1, 1).expand_as(values))


@pytest.mark.parametrize("config", [Qwen2Config(**SIZES), LlamaConfig(**SIZES), Qwen3Config(**SIZES)], ids=lambda c: c.model_type)
@pytest.mark.parametrize("pairs", [MIXED, [(90, 1, 60), (90, 1, 2), (90, 1, 45)]], ids=["short", "beyond the plain products"])
def test_shared_prompts_give_the_same_logprobs_and_gradients(tmp_path, config, pairs):
    policy, tokens = policy_of(config, tmp_path), batch_of(pairs)
    plain = logprobs_and_gradients(policy, tokens)
    policy.share_prompts(CPU)
    assert policy.shares_prompts
    shared = logprobs_and_gradients(policy, tokens)
    torch.testing.assert_close(shared, plain, atol=2e-4, rtol=1e-4)
    assert max(g.abs().max() for g in plain[2]) > 0.1


def test_gradient_checkpointing_recomputes_with_the_layout_of_its_own_batch(tmp_path):
    policy, tokens = policy_of(Qwen2Config(**SIZES), tmp_path, checkpointing=True), batch_of(MIXED)
    plain = logprobs_and_gradients(policy, tokens)
    policy.share_prompts(CPU)
    logprobs, _ = policy(tokens)
    policy.zero_grad()
    policy(batch_of(MIXED[:3]))  # another batch between forward and backward pass
    (logprobs * torch.linspace(-1.0, 2.0, len(logprobs))).sum().backward()
    torch.testing.assert_close([p.grad for p in policy.parameters() if p.requires_grad], plain[2], atol=2e-4, rtol=1e-4)


def test_bfloat16_shares_within_its_rounding(tmp_path):
    policy = policy_of(Qwen2Config(**SIZES), tmp_path, dtype=torch.bfloat16)
    policy.share_prompts(CPU)
    assert policy.shares_prompts


def test_models_with_attention_windows_do_not_share(tmp_path):
    policy = policy_of(MistralConfig(**SIZES, sliding_window=4), tmp_path)
    policy.share_prompts(CPU)
    assert not policy.shares_prompts


def test_models_whose_layers_look_at_neighbours_do_not_share(tmp_path):
    """As convolutions and states do; nothing in the configuration says so."""
    policy = policy_of(Qwen2Config(**SIZES), tmp_path)
    layer = policy.model.get_base_model().model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _args, output: output + 0.5 * torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1])
    policy.share_prompts(CPU)
    assert not policy.shares_prompts


def test_models_that_do_not_hand_the_layout_to_attention_do_not_share(tmp_path):
    policy = policy_of(Qwen2Config(**SIZES), tmp_path)
    for layer in policy.model.get_base_model().model.layers:
        whole = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, shared=None, whole=whole, **kwargs: whole(*args, **kwargs)
    policy.share_prompts(CPU)
    assert not policy.shares_prompts
