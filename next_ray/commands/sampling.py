"""Sampling and judging: all adapters of one base side by side on one engine, block by block of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from next_ray.commands.contestants import Contestant
from next_ray.commands.kept import KeptResults
from next_ray.commands.problems import ProblemSet
from next_ray.commands.progress import Progress
from next_ray.config import DataSection, RewardSection, RolloutSection
from next_ray.data.prepare import check_characters, load_tokenizer
from next_ray.data.splits import Splits
from next_ray.data.template import PromptEncoder
from next_ray.errors import ConfigError
from next_ray.reward.final_number import final_number
from next_ray.reward.math_answers import clean, explicit_answer
from next_ray.reward.pool import VerifierPool
from next_ray.reward.stated import stated_letter
from next_ray.rollout.engine import EngineSpec, VllmEngine
from next_ray.types import BASE_VERSION, Prompt, RolloutRequest, Sampling

BLOCK = 32
"""Prompts of a block: what is sampled in one call, and lost at most when the command is stopped."""
MAX_ANSWER_CHARS = 2000


@dataclass(frozen=True)
class Decoding:
    """How every model answers. `data` holds system prompt, chat and `max_prompt_tokens`; the sets' wording is in their prompts."""

    sampling: Sampling
    num_samples: int
    seed: int
    data: DataSection
    rollout: RolloutSection


def device() -> Literal["cpu", "gpu"]:
    """What engines run on here."""
    return "gpu" if Path("/dev/nvidiactl").exists() else "cpu"


def fitting(sets: Sequence[ProblemSet], contestants: Sequence[Contestant], decoding: Decoding) -> tuple[list[ProblemSet], list[str]]:
    """The sets without prompts that are too long for any of the models, and what was left out.

    Raises:
        DataError: a set has no prompt left, or a model cannot read a character. ConfigError: a model takes fewer tokens.
    """
    notes: list[str] = []
    limit, total = decoding.data.max_prompt_tokens, decoding.data.max_prompt_tokens + decoding.sampling.max_tokens
    for base in {contestant.base.path: contestant.base for contestant in contestants}.values():
        if total > base.max_positions:
            raise ConfigError(
                f"{base.name} takes {base.max_positions} tokens; --max-prompt-tokens and --max-tokens together ask for {total}. Lower one."
            )
        tokenizer = load_tokenizer(base.path, trust_remote_code=False)
        encoder = PromptEncoder(tokenizer, decoding.data)
        for index, problems in enumerate(sets):
            check_characters(Splits([], [], list(problems.prompts)), encoder, tokenizer)
            fit = encoder.fits(problems.prompts, limit)
            if fit.dropped:
                notes.append(f"{problems.benchmark.name}: {fit.dropped} prompts of more than {limit} tokens left out ({base.name})")
                sets = [*sets[:index], replace(problems, prompts=tuple(fit.kept)), *sets[index + 1 :]]
    return list(sets), notes


def sample_all(
    contestants: Sequence[Contestant], sets: Sequence[ProblemSet], decoding: Decoding, kept: KeptResults, progress: Progress
) -> None:
    """Bring every (model, set, block) that is not kept yet into the folder; an engine starts only where something is missing."""
    bases = dict.fromkeys(contestant.base.path for contestant in contestants)
    total = sum(len(_blocks(problems)) for problems in sets) * len(bases)
    done = 0
    for path in bases:
        group = [contestant for contestant in contestants if contestant.base.path == path]
        missing = [
            (problems, number, block, left)
            for problems in sets
            for number, block in enumerate(_blocks(problems))
            if (left := [one for one in group if kept.read(one.identity, problems.benchmark.name, number) is None])
        ]
        done += total // len(bases) - len(missing)
        if not missing:
            continue
        progress(f"starting an engine on {group[0].base.name}", done, total)
        with VllmEngine(_spec(group, decoding)) as engine, VerifierPool(RewardSection()) as pool:
            versions = {one.label: number for number, one in enumerate((o for o in group if o.adapter is not None), start=BASE_VERSION + 1)}
            engine.load({versions[one.label]: one.adapter for one in group if one.adapter is not None})
            for problems, number, block, left in missing:
                progress(f"{problems.benchmark.name} on {group[0].base.name}", done, total)
                requests = [
                    RolloutRequest(prompt, versions.get(one.label, BASE_VERSION), _seed(decoding, number * BLOCK + i), decoding.num_samples)
                    for one in left
                    for i, prompt in enumerate(block)
                ]
                rows = _judged(engine.generate(requests, decoding.sampling), pool)
                for position, one in enumerate(left):
                    part = rows[position * len(block) : (position + 1) * len(block)]
                    kept.keep(one.identity, problems.benchmark.name, number, [row for prompt_rows in part for row in prompt_rows])
                done += 1


def read_all(contestant: Contestant, problems: ProblemSet, kept: KeptResults) -> list[dict[str, Any]]:
    """All samples of a model on a set, in the prompts' order."""
    rows: list[dict[str, Any]] = []
    for number in range(len(_blocks(problems))):
        part = kept.read(contestant.identity, problems.benchmark.name, number)
        assert part is not None, "sample_all comes first"
        rows += part
    return rows


def vote(prompt: Prompt, text: str) -> str | None:
    """The answer of a completion as it counts in a majority vote; None when it states none."""
    family = prompt.verifier.partition(":")[0]
    if family == "choice":
        return stated_letter(text)
    readers: dict[str, Callable[[str], str | None]] = {"number": final_number, "math": explicit_answer, "gsm8k": _marked}
    stated = readers.get(family, str.strip)(text)
    if not stated or len(stated) > MAX_ANSWER_CHARS:
        return None
    return "".join(clean(stated).split()) or None


def _marked(text: str) -> str | None:
    return text.rpartition("####")[2].partition("\n")[0] if "####" in text else explicit_answer(text)


def _judged(groups: Sequence[Any], pool: VerifierPool) -> list[list[dict[str, Any]]]:
    judgements = iter(pool.score([(completion.text, group.prompt) for group in groups for completion in group.completions]))
    return [
        [
            {
                "prompt_id": group.prompt.id,
                "sample": index,
                "answer": group.prompt.answer,
                "completion": completion.text,
                "vote": vote(group.prompt, completion.text),
                "correct": float((judgement := next(judgements)).is_correct),
                "verdict": judgement.verdict.value,
                "finish": completion.finish_reason.value,
                "tokens": len(completion.token_ids),
            }
            for index, completion in enumerate(group.completions)
        ]
        for group in groups
    ]


def _spec(group: Sequence[Contestant], decoding: Decoding) -> EngineSpec:
    adapters = [one.adapter for one in group if one.adapter is not None]
    base = group[0].base
    return EngineSpec(
        model_path=base.path,
        base_name=base.name,
        rollout=decoding.rollout,
        max_lora_rank=max((factors.rank for adapter in adapters for factors in adapter.values()), default=1),
        max_adapters=max(1, len(adapters)),
        max_model_len=decoding.data.max_prompt_tokens + decoding.sampling.max_tokens,
        seed=decoding.seed,
        device=device(),
        deterministic=False,
        data=decoding.data,
    )


def _seed(decoding: Decoding, position: int) -> int:
    """Sample i of a request uses its seed + i, so prompts lie a whole group apart; models share them, which pairs the comparison."""
    return decoding.seed * 1_000_003 + position * decoding.num_samples


def _blocks(problems: ProblemSet) -> list[tuple[Prompt, ...]]:
    return [problems.prompts[start : start + BLOCK] for start in range(0, len(problems.prompts), BLOCK)]
