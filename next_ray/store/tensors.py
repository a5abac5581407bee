"""A learner's state as bytes: safetensors for factors or weights and moments, JSON for scalars. Nothing else is ever decoded.

Shape legend: R rank, I/O in/out features of a module.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from next_ray.adapter import fold_scale, from_safetensors, to_safetensors
from next_ray.errors import CorruptCheckpointError
from next_ray.types import Adapter, FullPart, LearnerState, LoraFactors, Weights

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_HEADER_BYTES = 16 * 2**20
MAX_SCALARS_BYTES = 2**20
MAX_DIMS = 5
_MOMENT = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.(exp_avg|exp_avg_sq)")


def encode_state(state: LearnerState) -> Iterator[tuple[str, str, bytes]]:
    """The objects of a state one by one: name, file extension and bytes. Raises ValueError for what would not come back."""
    scalars = json.dumps(dict(state.scalars), sort_keys=True, allow_nan=False).encode()
    yield from _encode_adapter(state) if state.adapter else _encode_parts(state)
    if state.scalars:
        yield "scalars", "json", scalars


def _encode_adapter(state: LearnerState) -> Iterator[tuple[str, str, bytes]]:
    _require_factors(state.adapter)
    uniform = len(uniform_scales(state.adapter)) == 1
    if not uniform and state.moments:
        raise ValueError("an adapter of mixed scales cannot be stored with optimizer moments: the moments would not fit the folded factors")
    adapter = state.adapter if uniform else fold_scale(state.adapter)
    check_moments(state.moments, state.adapter, "the learner's state", ValueError)
    yield "adapter", "safetensors", to_safetensors(adapter)
    if state.moments:
        yield "moments", "safetensors", _save(state.moments)


def _encode_parts(state: LearnerState) -> Iterator[tuple[str, str, bytes]]:
    number = -1
    for number, part in enumerate(state.parts):
        check_part(part, f"part {number} of the learner's state", ValueError)
        yield part_name("weights", number), "safetensors", _save(part.weights)
        if part.moments:
            yield part_name("moments", number), "safetensors", _save(part.moments)
    if number < 0:
        raise ValueError("a checkpoint needs an adapter with at least one module, or full weights")


def part_name(kind: str, number: int) -> str:
    """What a part of full weights (or of their moments) is called in a manifest."""
    return f"{kind}_{number:05d}"


def rank_and_scale(adapter: Adapter) -> tuple[int, float]:
    """The largest rank (0: no adapter) and the common scale (1 when scales differ: they are folded into B)."""
    scales = uniform_scales(adapter)
    return max((f.rank for f in adapter.values()), default=0), float(scales.pop()) if len(scales) == 1 else 1.0


def uniform_scales(adapter: Adapter) -> set[float]:
    """The scales that occur."""
    return {float(f.scale) for f in adapter.values()}


def decode_adapter(data: bytes, scale: float, origin: str) -> dict[str, LoraFactors]:
    """Factors float32 [R, I] and [O, R]; raises `CorruptCheckpointError` naming `origin`."""
    check_header(data, origin)
    adapter = from_safetensors(data, scale, origin)
    if not adapter:
        raise CorruptCheckpointError(f"{origin}: holds no LoRA factors.")
    return adapter


def decode_moments(data: bytes, adapter: Adapter, origin: str) -> dict[str, np.ndarray]:
    """Adam moments float32, each shaped like its factor; raises `CorruptCheckpointError` naming `origin`."""
    moments = _load(data, origin)
    check_moments(moments, adapter, origin, CorruptCheckpointError)
    return moments


def decode_weights(data: bytes, origin: str) -> Weights:
    """A part of full weights, float32 and finite; raises `CorruptCheckpointError` naming `origin`."""
    weights = _load(data, origin, dims=range(1, MAX_DIMS + 1))
    check_part(FullPart(weights, {}), origin, CorruptCheckpointError)
    return weights


def decode_part(weights: Weights, data: bytes, origin: str) -> FullPart:
    """The moments that belong to a part's weights; raises `CorruptCheckpointError` naming `origin`."""
    part = FullPart(weights, _load(data, origin, dims=range(1, MAX_DIMS + 1)))
    check_part(part, origin, CorruptCheckpointError)
    return part


def _load(data: bytes, origin: str, dims: range = range(2, 3)) -> dict[str, np.ndarray]:
    check_header(data, origin, dims)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"{origin}: not a readable safetensors file ({error}).") from error


def _save(tensors: Weights) -> bytes:
    return save({name: np.ascontiguousarray(values, dtype=np.float32) for name, values in sorted(tensors.items())})


def decode_scalars(data: bytes, origin: str) -> dict[str, float]:
    """The scalars: finite JSON numbers by name."""
    if len(data) > MAX_SCALARS_BYTES:
        raise CorruptCheckpointError(f"{origin}: {len(data)} bytes of scalars, more than {MAX_SCALARS_BYTES}.")
    scalars = _parse_object(data, origin)
    for name, value in scalars.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CorruptCheckpointError(f"{origin}: scalar {name!r} is not a finite number.")
    return scalars


def check_header(data: bytes, origin: str, dims: range = range(2, 3)) -> None:
    """Refuse a safetensors file whose header is oversized, no JSON object, or names anything but float32 tensors of so many dimensions."""
    if len(data) < 8:
        raise CorruptCheckpointError(f"{origin}: {len(data)} bytes are too few for a safetensors file.")
    length = int.from_bytes(data[:8], "little")
    limit = min(MAX_HEADER_BYTES, len(data) - 8)
    if length > limit:
        raise CorruptCheckpointError(f"{origin}: claims a safetensors header of {length} bytes; at most {limit} are accepted.")
    header = _parse_object(data[8 : 8 + length], origin)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or len(shape) not in dims or entry.get("dtype") != "F32":
            kind = "matrix" if len(dims) == 1 else f"tensor of {dims[0]} to {dims[-1]} dimensions"
            raise CorruptCheckpointError(f"{origin}: tensor {name[:200]!r} is not a float32 {kind}.")


def check_moments(moments: Mapping[str, np.ndarray], adapter: Adapter, origin: str, error: type[Exception]) -> None:
    """Every moment belongs to a factor, has its shape and is finite; raises `error` otherwise."""
    for name, moment in moments.items():
        match = _MOMENT.fullmatch(name)
        factors = adapter.get(match["module"]) if match else None
        if match is None or factors is None:
            raise error(f"{origin}: moment {name[:200]!r} belongs to no factor of the adapter.")
        factor = factors.a if match["factor"] == "A" else factors.b
        if moment.shape != factor.shape:
            raise error(f"{origin}: moment {name!r} has shape {list(moment.shape)}, its factor {list(factor.shape)}.")
        if not np.isfinite(moment).all():
            raise error(f"{origin}: moment {name!r} holds NaN or infinity.")


def check_part(part: FullPart, origin: str, error: type[Exception]) -> None:
    """Weights are finite, and every moment belongs to one, has its shape and is finite; raises `error` otherwise."""
    if not part.weights:
        raise error(f"{origin}: holds no weights.")
    for name, values in (*part.weights.items(), *part.moments.items()):
        if values.dtype != np.float32 or not 1 <= values.ndim <= MAX_DIMS or not np.isfinite(values).all():
            raise error(f"{origin}: {name[:200]!r} is not a tensor of finite float32 numbers; such weights are not stored.")
    for name, moment in part.moments.items():
        parameter = part.weights.get(name.rpartition(".")[0]) if name.endswith((".exp_avg", ".exp_avg_sq")) else None
        if parameter is None or parameter.shape != moment.shape:
            raise error(f"{origin}: moment {name[:200]!r} belongs to no parameter of its part and shape.")


def _require_factors(adapter: Adapter) -> None:
    for name, factor, array in _arrays(adapter):
        if array.ndim != 2 or not np.isfinite(array).all():
            raise ValueError(f"{name}.lora_{factor}: not a finite matrix; such an adapter is not stored")
    for name, f in adapter.items():
        if f.a.shape[0] != f.b.shape[1] or not math.isfinite(f.scale):
            raise ValueError(f"{name}: lora_A {list(f.a.shape)} and lora_B {list(f.b.shape)} do not multiply, or the scale is not finite")


def _arrays(adapter: Adapter) -> Iterable[tuple[str, str, np.ndarray]]:
    for name, f in adapter.items():
        yield name, "A", f.a
        yield name, "B", f.b


def _parse_object(data: bytes, origin: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{origin}: its JSON cannot be read ({type(error).__name__}).") from None
    if not isinstance(parsed, dict):
        raise CorruptCheckpointError(f"{origin}: its JSON is not an object.")
    return parsed
