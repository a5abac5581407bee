"""NExt's predictor network (arXiv 2604.11446, eq. 8): two encoders, concatenation, decoder.

Shape legend: N vectors, D their dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from next_ray.predict.facts import Inputs


class NextNetwork(nn.Module):
    """(s_G, s_L) [N, D] -> s_T [N, D]; each of the three parts is Lin Lin ReLU Lin Lin with bottlenecks of `hidden`.

    Args:
        dimension: D.
        hidden: width of the bottlenecks (the release has 256).
        generator: source of the uniform initialisation; the global generator is not touched.
        inner: width at the ReLU; D as released when None. A scalar needs more than D = 1 there, or the ReLU may be dead from
            the start for every input.
        inputs: which encoders there are.
    """

    def __init__(self, dimension: int, hidden: int, generator: torch.Generator, inner: int | None = None, inputs: Inputs = "both") -> None:
        super().__init__()
        inner = dimension if inner is None else inner
        self.encode_global = _part(dimension, dimension, hidden, inner) if inputs != "local" else None
        self.encode_local = _part(dimension, dimension, hidden, inner) if inputs != "global" else None
        self.decode = _part(2 * dimension if inputs == "both" else dimension, dimension, hidden, inner)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def forward(self, s_global: Tensor, s_local: Tensor) -> Tensor:
        """The predicted target, not normalised (eq. 11 is the caller's)."""
        parts = (self.encode_global, s_global), (self.encode_local, s_local)
        return self.decode(torch.cat([encode(s) for encode, s in parts if encode is not None], dim=-1))


def _part(in_features: int, out_features: int, hidden: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        _linear(in_features, hidden),
        _linear(hidden, inner),
        nn.ReLU(),
        _linear(inner, hidden),
        _linear(hidden, out_features),
    )


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """A layer with uninitialised parameters: nn.Linear's own initialisation would draw from the global generator."""
    return nn.Linear(in_features, out_features, device="meta").to_empty(device="cpu")
