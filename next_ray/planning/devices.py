"""Devices that the planner knows, with what their vendors say of them, and `8xH100,4xL4` as pools of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from next_ray.errors import ConfigError
from next_ray.planning.rates import CPU, GPU, Rates

GIGA, TERA = 10**9, 10**12
DEVICES_PER_NODE = 8
"""Assumed: so many of them share a node's links, and an engine does not span nodes."""
NETWORK_BYTES_PER_S = 25 * GIGA
"""Assumed: between nodes, per device and direction (200 Gbit/s)."""
NODE_BYTES_PER_S = 12.5 * GIGA
"""Assumed: what Ray's object store gets through between two nodes (100 Gbit/s)."""

CORE = "measured: a core of an AMD EPYC with AVX512-BF16"


@dataclass(frozen=True)
class Device:
    """One accelerator, or one CPU core.

    `flops_per_s` are dense bfloat16, `link_bytes_per_s` go in one direction to the other devices of the
    node. `price_per_hour` is US dollars: a round placeholder unless the user gave it.
    """

    name: str
    flops_per_s: float
    memory_bytes: float
    bytes_per_s: float
    link_bytes_per_s: float
    price_per_hour: float
    source: str
    rates: Rates = GPU
    is_gpu: bool = True
    is_own_price: bool = False


@dataclass(frozen=True)
class Pool:
    """So many of one device."""

    count: int
    device: Device


def _gpu(name: str, teraflops: float, gigabytes: float, gigabytes_per_s: float, link: float, price: float, source: str) -> Device:
    return Device(name, teraflops * TERA, gigabytes * GIGA, gigabytes_per_s * GIGA, link * GIGA, price, source)


DEVICES = {
    device.name.lower(): device
    for device in (
        _gpu("A100", 312, 80, 2039, 300, 2.0, "NVIDIA A100 data sheet, SXM 80 GB"),
        _gpu("H100", 989, 80, 3350, 450, 3.5, "NVIDIA H100 data sheet, SXM, without sparsity"),
        _gpu("H200", 989, 141, 4800, 450, 4.5, "NVIDIA H200 data sheet, SXM, without sparsity"),
        _gpu("B200", 2250, 180, 7700, 900, 6.5, "NVIDIA HGX B200 data sheet, without sparsity"),
        _gpu("L4", 121, 24, 300, 32, 0.8, "NVIDIA L4 data sheet, without sparsity, PCIe"),
        _gpu("L40S", 362, 48, 864, 32, 1.5, "NVIDIA L40S data sheet, without sparsity, PCIe"),
        Device(
            "CPU", 400 * GIGA, 12 * GIGA, 24 * GIGA, 24 * GIGA, 0.05, "measured: a core of an AMD EPYC with AVX512-BF16", CPU, is_gpu=False
        ),
    )
}
"""By name in lower case. NVIDIA states tensor cores with sparsity, twice these numbers; links are half of the two-way figure."""


def parse_pools(text: str, prices: Mapping[str, float] | None = None) -> list[Pool]:
    """Pools from `8xH100,4xL4` (a device alone is one of it), at the user's prices where given; raises `ConfigError`."""
    pools: dict[str, Pool] = {}
    for word in text.split(","):
        found = re.fullmatch(r"(?:(\d{1,6})\s*[xX*]\s*)?([A-Za-z][A-Za-z0-9]*)", word.strip())
        if found is None:
            raise ConfigError(f"--gpus: {word.strip()!r} is not a number of devices. Write it like 8xH100 or 8xH100,4xL4.")
        device, count = device_named(found[2], "--gpus"), int(found[1] or 1)
        if count < 1:
            raise ConfigError(f"--gpus: {word.strip()!r} is no device at all. Give at least one.")
        if device.name.lower() in pools:
            raise ConfigError(f"--gpus names {device.name} twice. Add the numbers up.")
        price = (prices or {}).get(device.name.lower())
        pools[device.name.lower()] = Pool(count, device if price is None else replace(device, price_per_hour=price, is_own_price=True))
    if idle := set(prices or {}) - set(pools):
        raise ConfigError(f"--price names {', '.join(sorted(idle)).upper()}, which --gpus does not have.")
    return list(pools.values())


def parse_prices(words: list[str]) -> dict[str, float]:
    """Device (lower case) to dollars per device and hour from words like `H100=2.9`; raises `ConfigError`."""
    prices = {}
    for word in words:
        name, _, value = word.partition("=")
        device = device_named(name.strip(), "--price")
        if not re.fullmatch(r"\d+(\.\d+)?", value.strip()):
            raise ConfigError(f"--price: {word!r} is no price. Write dollars per device and hour, like {device.name}=2.9.")
        prices[device.name.lower()] = float(value)
    return prices


def device_named(name: str, option: str) -> Device:
    """A device of the table; raises `ConfigError` with what it has."""
    device = DEVICES.get(name.lower())
    if device is None:
        close = get_close_matches(name.lower(), DEVICES, n=1)
        hint = f"; did you mean {DEVICES[close[0]].name}?" if close else "."
        known = ", ".join(d.name for d in DEVICES.values())
        raise ConfigError(f"{option}: no figures for a device {name!r}{hint} Known are {known} (next_ray/planning/devices.py).")
    return device
