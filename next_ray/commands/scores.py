"""From judged samples to the numbers of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from next_ray.commands.contestants import Contestant
from next_ray.commands.problems import ProblemSet
from next_ray.evaluate.comparing import compare
from next_ray.evaluate.metrics import bootstrap, icer, pass_per_prompt
from next_ray.evaluate.voting import maj_per_prompt
from next_ray.types import Prompt

Rows = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Model to set to samples, in the prompts' order."""


@dataclass(frozen=True)
class Judged:
    """A model and what it is measured against: `reference` is the position of that model, None where there is none."""

    contestant: Contestant
    steps: int | None
    reference: int | None


def with_references(contestants: Sequence[Contestant], steps: Sequence[int | None]) -> list[Judged]:
    """Every model with the one it is measured against: an adapter with its base where that is judged too, any other with the first.

    The base of an adapter is measured against nothing, and so is an adapter on another base than the first model's whose own is not
    judged: a difference would say nothing.
    """
    bare = {one.base.fingerprint: i for i, one in reversed([*enumerate(contestants)]) if one.adapter is None}
    trained = {one.base.fingerprint for one in contestants if one.adapter is not None}
    first = contestants[0].base.fingerprint
    judged = []
    for number, (one, known) in enumerate(zip(contestants, steps, strict=True)):
        base = one.base.fingerprint
        known_base = bare.get(base) if one.adapter is not None else None
        comparable = base == first if one.adapter is not None else base not in trained
        reference = known_base if known_base is not None else (0 if comparable else None)
        judged.append(Judged(one, known, None if reference == number else reference))
    return judged


def document(judged: Sequence[Judged], sets: Sequence[ProblemSet], rows: Rows, ks: Sequence[int], seed: int) -> dict[str, Any]:
    """All numbers: every model on every set and group, averages over sets, gain and ICER against the reference, paired comparison.

    ICER is given where the reference is a base (steps 0, or none known) and the model's own steps are known.
    """
    models: list[dict[str, Any]] = []
    for one in judged:
        by_set = rows[one.contestant.name]
        results = {each.benchmark.name: _result(each, by_set[each.benchmark.name], ks, seed) for each in sets}
        macro = float(np.mean([result["avg"]["mean"] for result in results.values()]))
        facts = {"model": one.contestant.name, "label": one.contestant.label, "base": one.contestant.base.name, "steps": one.steps}
        models.append({**facts, "sets": results, "macro_avg": macro})
    for model, one in zip(models, judged, strict=True):
        if one.reference is None:
            continue
        reference = models[one.reference]
        gain = model["macro_avg"] - reference["macro_avg"]
        ratio = icer(one.steps, gain) if one.steps is not None and not reference["steps"] else None
        model |= {"against": reference["label"], "gain": gain, "icer": ratio}
    comparisons = _comparisons(sets, rows, seed) if len(models) == 2 else {}
    return {"models": models, "comparison": comparisons}


def _result(problems: ProblemSet, rows: Sequence[Mapping[str, Any]], ks: Sequence[int], seed: int) -> dict[str, Any]:
    correct, votes = _table(problems.prompts, rows, "correct"), _table(problems.prompts, rows, "vote")
    result = _scores(correct, votes, ks, seed)
    result["truncated"] = sum(row["finish"] == "length" for row in rows) / len(rows)
    result["unjudged"] = sum(row["verdict"] != "ok" for row in rows)
    field = problems.benchmark.group_field
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(problems.prompts if field else ()):
        groups.setdefault(str(prompt.metadata.get(str(field), "")), []).append(index)
    result["groups"] = {
        name: _scores([correct[i] for i in chosen], [votes[i] for i in chosen], ks, seed) for name, chosen in sorted(groups.items())
    }
    if groups:
        result["macro_over_groups"] = float(np.mean([found["avg"]["mean"] for found in result["groups"].values()]))
    return result


def _table(prompts: Sequence[Prompt], rows: Sequence[Mapping[str, Any]], column: str) -> list[list[Any]]:
    samples = len(rows) // len(prompts)
    assert samples * len(prompts) == len(rows), "every prompt has the same number of samples"
    assert [row["prompt_id"] for row in rows[::samples]] == [prompt.id for prompt in prompts], "samples are in the prompts' order"
    return [[row[column] for row in rows[start : start + samples]] for start in range(0, len(rows), samples)]


def _scores(correct: list[list[float]], votes: list[list[str | None]], ks: Sequence[int], seed: int) -> dict[str, Any]:
    return {
        "prompts": len(correct),
        "avg": asdict(bootstrap(np.mean(correct, axis=1), seed)),
        "pass": {str(k): asdict(bootstrap(pass_per_prompt(correct, k), seed)) for k in ks},
        "maj": {str(k): asdict(bootstrap(np.array(maj_per_prompt(votes, correct, k, seed)), seed)) for k in ks},
    }


def _comparisons(sets: Sequence[ProblemSet], rows: Rows, seed: int) -> dict[str, Any]:
    """The second model against the first, per set."""
    first, second = rows.values()
    return {
        one.benchmark.name: asdict(
            compare(*(_table(one.prompts, found[one.benchmark.name], "correct") for found in (first, second)), seed=seed)
        )
        for one in sets
    }
