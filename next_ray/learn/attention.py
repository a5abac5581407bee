"""Causal attention for short sequences on CPU, where torch's fused kernel is slow going backward (20 times in bfloat16).

Shape legend: S sequences, H heads, K key/value heads, G = H / K, L length, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from next_ray.learn.sharing import SharedTokens, fold, unfold

NAME = "next_ray_short_causal"
LONGEST = 128
"""Up to this length the plain products are faster than torch's fused kernel; beyond it that one is used."""


def register_short_causal() -> str:
    """Make the implementation known to transformers and return its name, for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, short_causal_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def short_causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared: SharedTokens | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' interface: query [S, H, L, E], key and value [S, K, L, E] to [S, L, H, E].

    Falls back to transformers' `sdpa` on a GPU, for long sequences and wherever a mask says more than "causal". With `shared` the
    arguments are those of its different tokens, [1, H, N, E], and so is the result; the mask is then not looked at.
    """
    if shared is not None:
        queries, keys, values = (unfold(part, shared) for part in (query, key, value))
        return fold(short_causal_attention(module, queries, keys, values, None, **kwargs)[0], shared), None
    length = query.shape[2]
    suits = query.device.type == "cpu" and length <= LONGEST and key.shape[2] == length
    if attention_mask is not None or not suits or kwargs.get("position_bias") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return causal_attention(query, key, value, kwargs.get("scaling")).transpose(1, 2), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """`softmax(q k^T * scale + causal mask) v` with the softmax in float32; [S, H, L, E] in and out, K divides H."""
    num_seqs, num_heads, length, size = query.shape
    num_kv = key.shape[1]
    factor = size**-0.5 if scale is None else scale
    # Heads that share keys become rows of one product.
    rows = query.reshape(num_seqs, num_kv, (num_heads // num_kv) * length, size) * factor
    scores = (rows @ key.transpose(-1, -2)).float().view(num_seqs, num_kv, num_heads // num_kv, length, length)
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1).to(value.dtype)
    mixed = weights.view(num_seqs, num_kv, -1, length) @ value
    return mixed.view(num_seqs, num_heads, length, -1)
