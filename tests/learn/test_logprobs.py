import pytest
import torch

from next_ray.learn import logprobs as module
from next_ray.learn.attention import causal_attention
from next_ray.learn.logprobs import token_logprobs


@pytest.mark.parametrize("chunk", [1, 20, 1 << 22])
def test_values_and_gradient_equal_log_softmax(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    logits = (3 * torch.randn(9, 7)).requires_grad_()
    targets, upstream, temperature = torch.randint(0, 7, (9,)), torch.randn(9), 0.7
    values, entropies = token_logprobs(logits, targets, temperature)
    values.backward(upstream)
    reference = logits.detach().double().requires_grad_()
    full = torch.log_softmax(reference / temperature, -1)
    full.gather(1, targets[:, None]).squeeze(1).backward(upstream.double())
    torch.testing.assert_close(values.double(), full.gather(1, targets[:, None]).squeeze(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), -(full.exp() * full).sum(-1), atol=1e-5, rtol=1e-5)
    assert logits.grad is not None and reference.grad is not None
    torch.testing.assert_close(logits.grad.double(), reference.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("both", [True, False])
def test_gradient_of_the_entropy(monkeypatch, both):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 20)
    torch.manual_seed(3)
    logits = (3 * torch.randn(9, 7)).requires_grad_()
    targets, upstream, temperature = torch.randint(0, 7, (9,)), torch.randn(9), 0.7
    values, entropies = token_logprobs(logits, targets, temperature)
    ((entropies * upstream).sum() + (values.sum() if both else 0.0)).backward()
    reference = logits.detach().double().requires_grad_()
    full = torch.log_softmax(reference / temperature, -1)
    picked = full.gather(1, targets[:, None]).sum() if both else 0.0
    ((-(full.exp() * full).sum(-1) * upstream.double()).sum() + picked).backward()
    assert logits.grad is not None and reference.grad is not None
    torch.testing.assert_close(logits.grad.double(), reference.grad, atol=1e-5, rtol=1e-5)


def test_bfloat16_logits_are_only_rounded_once():
    torch.manual_seed(1)
    logits = torch.randn(5, 11).bfloat16().requires_grad_()
    targets = torch.randint(0, 11, (5,))
    values, _ = token_logprobs(logits, targets, 1.0)
    expected = torch.log_softmax(logits.detach().double(), -1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    values.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 5), (6, 2, 9), (3, 1, 1)])
def test_causal_attention_equals_torch(heads, kv_heads, length):
    torch.manual_seed(2)
    shapes = [(3, h, length, 8) for h in (heads, kv_heads, kv_heads)]
    ours = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    q, k, v = theirs
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    result = causal_attention(ours[0], ours[1], ours[2])
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)  # our softmax is float32
    upstream = torch.randn_like(expected)
    result.backward(upstream)
    expected.backward(upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
