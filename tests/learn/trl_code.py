"""TRL's own formulas, run on given tensors: its loss method on a bare trainer, and single statements of its long methods."""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings(action="ignore"):  # at import TRL warns of versions of other libraries
    from trl.trainer import grpo_trainer, rloo_trainer


def _statements(module: Any, trainer: type, wanted: Callable[[ast.stmt], bool]) -> Callable[..., dict[str, Any]]:
    """The statements of `_generate_and_score_completions` that are `wanted`, as a function of the names that they read."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(trainer._generate_and_score_completions)))  # type: ignore[attr-defined]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and wanted(node)]
    assert found, "TRL's code has changed"
    code = compile(ast.Module(body=sorted(found, key=lambda node: node.lineno), type_ignores=[]), inspect.getfile(module), "exec")

    def run(**names: Any) -> dict[str, Any]:
        scope = {**vars(module), **names}
        exec(code, scope)  # the installed library's own source
        return scope

    return run


def grpo_advantages(rewards: Tensor, scale: str) -> Tensor:
    """[P, G] -> [P, G]; `scale` as GRPOConfig.scale_rewards."""
    run = _statements(
        grpo_trainer,
        grpo_trainer.GRPOTrainer,
        lambda node: isinstance(node, ast.If) and ast.unparse(node.test) == "self.multi_objective_aggregation == 'sum_then_normalize'",
    )
    trainer = SimpleNamespace(multi_objective_aggregation="sum_then_normalize", scale_rewards=scale, reward_weights=torch.ones(1).double())
    flat = rewards.reshape(-1, 1)
    names = {"device": "cpu", "unscorable_mask": torch.zeros(len(flat), dtype=torch.bool), "num_generations": rewards.shape[1]}
    return run(self=trainer, rewards_per_func=flat, **names)["advantages"].view_as(rewards)


def rloo_advantages(rewards: Tensor) -> Tensor:
    """[P, G] -> [P, G], not normalised."""

    def wanted(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return ast.unparse(node.targets[0]) in ("scorable_counts", "grouped_sum")
        return isinstance(node, ast.If) and "baselines = " in ast.unparse(node)

    run = _statements(rloo_trainer, rloo_trainer.RLOOTrainer, wanted)
    names = {"rewards": rewards.reshape(-1), "grouped_rewards": rewards, "num_generations": rewards.shape[1]}
    return run(**names)["advantages"].view_as(rewards)


def importance_ratio(old: Tensor, sampling: Tensor, mask: Tensor, mode: str, cap: float) -> Tensor:
    """`mode` as GRPOConfig.vllm_importance_sampling_mode; all [S, L]."""

    def wanted(node: ast.stmt) -> bool:
        return isinstance(node, ast.If) and any(ast.unparse(child).startswith("per_token_logps_diff = ") for child in node.body)

    run = _statements(grpo_trainer, grpo_trainer.GRPOTrainer, wanted)
    trainer = SimpleNamespace(
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_clip_max=cap,
    )
    names = {"old_per_token_logps": old, "sampling_per_token_logps": sampling, "completion_mask": mask, "tool_mask": None}
    return run(self=trainer, **names)["vllm_importance_sampling_ratio"]


def bare_trainer(kind: type, logprobs: Tensor, entropies: Tensor, **settings: Any) -> Any:
    """A trainer that never was set up, whose model answers with `logprobs` and `entropies` [S, L]."""
    trainer = object.__new__(kind)
    defaults: dict[str, Any] = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "model": SimpleNamespace(training=True),
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": logprobs.shape[1],
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "_metrics": {"train": defaultdict(list)},
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "accelerator": SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True, gather_for_metrics=lambda x: x
        ),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logprobs, entropies, None),
    }
    vars(trainer).update(defaults | settings)
    vars(trainer)["_entropy_bonus_enabled"] = trainer.entropy_coef != 0.0
    return trainer


def loss(trainer: Any, mask: Tensor, **inputs: Tensor) -> Tensor:
    """The trainer's `_compute_loss` with completions of `mask` [S, L]."""
    ids = torch.zeros_like(mask)
    rows = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask}
    return trainer._compute_loss(None, rows | {"num_items_in_batch": mask.sum()} | inputs)
