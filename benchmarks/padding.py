"""`python -m benchmarks padding`: how much of a learner's computation is padding, at the paper's length distribution.

Response lengths are simulated: lognormal with median 700 and sigma 0.8, cut at 4096 tokens (the paper's limit), which 1 to 2 % of them
reach; prompt lengths lognormal with median 150 and sigma 0.5, cut at 1024. The plan is `plan_update`'s own, as a run makes it: 128
prompts x 8 samples in mini batches of 64 prompts. Beside it stands what the same micro batches cost in the order of the samples.
"""

from __future__ import annotations

import argparse
import json
import statistics

import numpy as np

from next_ray.learn.packing import Versions, plan_update
from next_ray.types import GroupSize, MicroBatch, Ref, Shard

PROMPT_LIMIT, RESPONSE_LIMIT = 1024, 4096
GOAL = 0.10


def main(argv: list[str]) -> int:
    """Print the padding's share and the ranks' imbalance as JSON; exit code 1 when a median misses the goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks padding", description=__doc__)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--mini-batch-prompts", type=int, default=64)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--median", type=float, default=700.0, help="median response length, tokens")
    parser.add_argument("--sigma", type=float, default=0.8, help="standard deviation of the logarithm of response lengths")
    arguments = parser.parse_args(argv)
    rows = [measured(arguments, budget, ranks) for budget in arguments.budgets for ranks in arguments.ranks]
    worst = max(row["padding"] for row in rows)
    print(json.dumps({"goal": GOAL, "worst_median": worst, "met": worst < GOAL, "rows": rows}, indent=2))
    return 0 if worst < GOAL else 1


def measured(arguments: argparse.Namespace, budget: int, ranks: int) -> dict[str, float]:
    """Medians over the seeds; `largest` is the worst seed's padding, `unsorted` the padding without sorting by length."""
    padding, unsorted, imbalance, at_limit = [], [], [], []
    for seed in range(arguments.seeds):
        shard = simulated(arguments, seed)
        lengths = [[size.prompt_tokens + tokens for tokens in size.completion_tokens] for size in shard.sizes]
        advantages = [[1.0] * arguments.samples for _ in shard.sizes]
        plan = plan_update([shard], advantages, Versions(0, 0), ranks, arguments.mini_batch_prompts, budget, False)
        per_rank = np.zeros(ranks)
        useful = padded = 0
        for mini in plan.mini_batches:
            for rank, micros in enumerate(mini.per_rank):
                for micro in micros:
                    own = [lengths[i.group][i.sample] for i in micro.samples]
                    useful += sum(own)
                    padded += padded_size(micro, own)
                    per_rank[rank] += padded_size(micro, own)
        padding.append(1 - useful / padded)
        unsorted.append(1 - useful / in_order([n for group in lengths for n in group], budget))
        imbalance.append(float(per_rank.max() / per_rank.mean()) - 1)
        at_limit.append(np.mean([n == RESPONSE_LIMIT for size in shard.sizes for n in size.completion_tokens]))
    return {
        "micro_batch_tokens": budget,
        "ranks": ranks,
        "padding": round(statistics.median(padding), 4),
        "largest": round(max(padding), 4),
        "unsorted": round(statistics.median(unsorted), 4),
        "rank_imbalance": round(statistics.median(imbalance), 4),
        "share_at_limit": round(float(statistics.median(at_limit)), 4),
    }


def simulated(arguments: argparse.Namespace, seed: int) -> Shard:
    """One RL step's lengths. Samples of a prompt share half of the logarithm's variance: hard problems have long answers."""
    rng = np.random.default_rng(seed)
    sizes = []
    for prompt, shared in zip(
        rng.lognormal(np.log(150), 0.5, arguments.prompts), rng.normal(size=arguments.prompts) * arguments.sigma / np.sqrt(2), strict=True
    ):
        own = rng.normal(size=arguments.samples) * arguments.sigma / np.sqrt(2)
        tokens = np.clip(np.exp(np.log(arguments.median) + shared + own), 1, RESPONSE_LIMIT).astype(int)
        prompt_tokens = int(min(max(prompt, 1), PROMPT_LIMIT))
        sizes.append(GroupSize(prompt_tokens, tuple(tokens.tolist()), (0,) * arguments.samples, (False,) * arguments.samples))
    return Shard(Ref([]), tuple(sizes))


def padded_size(micro: MicroBatch, lengths: list[int]) -> int:
    """Tokens of a micro batch's rectangle; an empty one runs a single token."""
    return max(lengths) * len(micro.samples) if lengths else 1


def in_order(lengths: list[int], budget: int) -> int:
    """Padded tokens of micro batches that are filled in the samples' order."""
    total, batch = 0, []
    for length in lengths:
        if batch and max(*batch, length) * (len(batch) + 1) > budget:
            total, batch = total + max(batch) * len(batch), []
        batch.append(length)
    return total + max(batch) * len(batch)
