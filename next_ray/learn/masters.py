"""DeepSpeed's float32 master weights and Adam moments, unpartitioned, whatever the ZeRO stage.

Who holds them: stage 0 float32 the parameter itself; stage 0 bfloat16 `FP16_UnfusedOptimizer` (one master per parameter);
stages 1 and 2 a flat partition per rank; stage 3 flat partitions per sub group. Names are `<module>.lora_A|lora_B`, or
those of the model's own parameters where all of them are trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Masters(ABC):
    """Reads and writes masters and moments. Every method is collective: all ranks call it with the same arguments."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self.engine = engine
        self.parameters = parameters
        for master in self._state_owners():
            state = engine.basic_optimizer.state[master]
            for key in MOMENTS:
                state[key] = torch.zeros_like(master, dtype=torch.float32).detach()
            state["step"] = torch.zeros((), dtype=torch.float32)

    @abstractmethod
    def _state_owners(self) -> list[Tensor]:
        """The tensors that the torch optimizer updates, as it knows them."""

    @abstractmethod
    def _get(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        """The whole master (moment None) or moment of a parameter."""

    @abstractmethod
    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Write this rank's part of a master or moment."""

    @abstractmethod
    def _refresh_model(self, weights: Mapping[str, Tensor]) -> None:
        """Bring the model's own copies in line with the masters just written."""

    def weights(self) -> dict[str, Tensor]:
        """All masters, float32 on CPU."""
        return {name: self.fetch(name) for name in self.parameters}

    def moments(self) -> dict[str, Tensor]:
        """All moments as `<name>.exp_avg` and `<name>.exp_avg_sq`, float32 on CPU."""
        return {f"{name}.{key}": self.fetch(name, key) for name in self.parameters for key in MOMENTS}

    def adam_step(self) -> int:
        """Steps Adam has counted since its moments were last reset: the exponent of its bias correction."""
        return int(self.engine.basic_optimizer.state[self._state_owners()[0]]["step"].item())

    @torch.no_grad()
    def write_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the masters that are named and the model's copies of them."""
        for name, value in weights.items():
            self._set(self.parameters[name], value, None)
        self._refresh_model(weights)

    @torch.no_grad()
    def write_moments(self, moments: Mapping[str, Tensor] | None, adam_step: int) -> None:
        """Replace all moments (None: zeros) and Adam's step count."""
        for master in self._state_owners():
            state = self.engine.basic_optimizer.state[master]
            state["step"].fill_(adam_step)
            for key in MOMENTS:
                state[key].zero_()
        if moments is not None:
            self.update_moments(self.parameters, moments)

    @torch.no_grad()
    def update_moments(self, names: Iterable[str], moments: Mapping[str, Tensor]) -> None:
        """Replace the moments of some parameters."""
        for name in names:
            for key in MOMENTS:
                self._set(self.parameters[name], moments[f"{name}.{key}"], key)

    def fetch(self, name: str, moment: str | None = None) -> Tensor:
        """A whole master (moment None) or moment, float32 on CPU, the caller's own."""
        return self.gathered(name, moment).to("cpu", torch.float32, copy=True)

    def gathered(self, name: str, moment: str | None = None) -> Tensor:
        """The same where it is, float32, perhaps the master itself: to be read at once and not to be kept."""
        return self._get(self.parameters[name], moment).detach()


class WholeMasters(Masters):
    """Stage 0: every rank holds one whole master per parameter."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        low = getattr(engine.optimizer, "fp16_groups", None)
        if low is None:
            self._master = {p: p for p in parameters.values()}
        else:
            pairs = zip(low, engine.optimizer.fp32_groups, strict=True)
            self._master = {p: m for ps, ms in pairs for p, m in zip(ps, ms, strict=True)}
            for parameter in parameters.values():
                parameter.grad_dtype = torch.float32  # micro batches add up in float32, not on the bfloat16 grid
        super().__init__(engine, parameters)

    def _state_owners(self) -> list[Tensor]:
        return list(self._master.values())

    def _get(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        master = self._master[parameter]
        return master if moment is None else self.engine.basic_optimizer.state[master][moment]

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        self._get(parameter, moment).data.copy_(value)

    def _refresh_model(self, weights: Mapping[str, Tensor]) -> None:
        for name in weights:
            parameter = self.parameters[name]
            parameter.data.copy_(self._master[parameter].data)


class FlatMasters(Masters):
    """Stages 1 and 2: a flat partition per rank, linked to the parameters by DeepSpeed's fragments."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(engine, parameters)
        engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _state_owners(self) -> list[Tensor]:
        optimizer = self.engine.optimizer
        flat = getattr(optimizer, "fp32_groups_flat_partition", None)
        return list(optimizer.single_partition_of_fp32_groups if flat is None else flat)

    def _get(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        full = safe_get_full_fp32_param(parameter) if moment is None else safe_get_full_optimizer_state(parameter, moment)
        assert full is not None
        return full

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(parameter.device)
        if moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _refresh_model(self, weights: Mapping[str, Tensor]) -> None:
        self.engine.optimizer.update_lp_params()


class ShardedMasters(FlatMasters):
    """Stage 3: parameters themselves are partitioned; each rank writes its padded slice."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        Masters.__init__(self, engine, parameters)

    def _state_owners(self) -> list[Tensor]:
        return list(self.engine.optimizer.fp32_partitioned_groups_flat)

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        part = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        world = torch.distributed.get_world_size()
        padded = nn.functional.pad(value.flatten(), (0, part * world - value.numel())).to(parameter.ds_tensor.device)  # type: ignore[attr-defined]
        mine = padded[part * torch.distributed.get_rank() :][:part]
        if moment is None:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, moment)

    def _refresh_model(self, weights: Mapping[str, Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        named = {name: self.parameters[name] for name in weights}
        with GatheredParameters(list(named.values()), modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                for name, parameter in named.items():
                    parameter.data.copy_(weights[name])


def open_masters(engine: Any, parameters: Mapping[str, nn.Parameter], zero_stage: int) -> Masters:
    """The view that fits the stage; moments start at zero, whatever DeepSpeed did to them when it started."""
    kinds: dict[int, type[Masters]] = {0: WholeMasters, 1: FlatMasters, 2: FlatMasters, 3: ShardedMasters}
    return kinds[zero_stage](engine, parameters)
