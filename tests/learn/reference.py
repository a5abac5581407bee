"""An independent learner to compare with: PEFT's own LoRA, one sequence at a time, eager attention, plain autograd and AdamW."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from next_ray.learn.spec import LearnerSpec
from next_ray.types import Group, LoraFactors, UpdatePlan


class ReferenceLearner:
    def __init__(self, spec: LearnerSpec, adapter: Mapping[str, LoraFactors]) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        lora, cfg = spec.learner.lora, spec.learner
        base = AutoModelForCausalLM.from_pretrained(
            spec.model_path, dtype=torch.float32, attn_implementation="eager", attention_dropout=0.0
        )
        config = LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(base, config).eval()
        self.spec = spec
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.load(adapter)
        self.adam = torch.optim.AdamW(self.parameters.values(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)

    def load(self, adapter: Mapping[str, LoraFactors]) -> None:
        assert len(self.parameters) == 2 * len(adapter)
        with torch.no_grad():
            for module, factors in adapter.items():
                self.parameters[f"base_model.model.{module}.lora_A.default.weight"].copy_(torch.from_numpy(factors.a))
                self.parameters[f"base_model.model.{module}.lora_B.default.weight"].copy_(torch.from_numpy(factors.b))

    def factors(self, adapter: Mapping[str, LoraFactors]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        def weight(module: str, factor: str) -> np.ndarray:
            return self.parameters[f"base_model.model.{module}.lora_{factor}.default.weight"].detach().numpy()

        return {module: (weight(module, "A"), weight(module, "B")) for module in adapter}

    def logprobs(self, group: Group, sample: int) -> torch.Tensor:
        return self.logprobs_and_entropy(group, sample)[0]

    def logprobs_and_entropy(self, group: Group, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        completion = group.completions[sample].token_ids.astype(np.int64)
        ids = torch.from_numpy(np.concatenate([group.prompt_token_ids.astype(np.int64), completion]))[None]
        logits = self.model(input_ids=ids).logits[0, len(group.prompt_token_ids) - 1 : -1] / self.spec.temperature
        full = torch.log_softmax(logits.float(), -1)
        return full[torch.arange(len(completion)), torch.from_numpy(completion)], -(full.exp() * full).sum(-1)

    def update(self, plan: UpdatePlan, shards: list[list[Group]]) -> None:
        """All mini batches of a plan made without dropping; only the plan's memberships and counts are used."""
        algorithm = self.spec.algorithm
        old = {}
        for mini in plan.mini_batches:
            for index, _ in _samples(mini):
                with torch.no_grad():
                    old[index] = self.logprobs(shards[index.shard][index.group], index.sample)
        for mini in plan.mini_batches:
            losses = []
            for index, advantage in _samples(mini):
                group = shards[index.shard][index.group]
                logprobs = self.logprobs(group, index.sample)
                ratio = (logprobs - old[index]).exp()
                token_loss = -torch.min(
                    ratio * advantage, ratio.clip(1 - algorithm.recipe.clip_low, 1 + algorithm.recipe.clip_high) * advantage
                )
                if algorithm.kl_coef:
                    with torch.no_grad(), self.model.disable_adapter():
                        reference = self.logprobs(group, index.sample)
                    d = reference - logprobs
                    token_loss = token_loss + algorithm.kl_coef * (d.exp() - d - 1)
                losses.append(token_loss)
            means = [x.mean() for x in losses]
            loss = torch.cat(losses).mean() if algorithm.recipe.aggregation == "token-mean" else torch.stack(means).mean()
            self.step(loss)

    def step(self, loss: torch.Tensor) -> float:
        """One optimizer step; the gradient's norm before clipping."""
        self.adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.spec.learner.max_grad_norm)
        self.adam.step()
        return float(norm)


def _samples(mini):
    return [(i, a) for rank in mini.per_rank for micro in rank for i, a in zip(micro.samples, micro.advantages, strict=True)]
