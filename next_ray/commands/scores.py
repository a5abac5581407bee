"""From judged samples to the numbers of an evaluation, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from next_ray.commands.problems import ProblemSet
from next_ray.evaluate.comparing import compare
from next_ray.evaluate.metrics import bootstrap, icer, pass_per_prompt
from next_ray.evaluate.voting import maj_per_prompt
from next_ray.types import Prompt

Rows = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Model to set to samples, in the prompts' order."""


def document(sets: Sequence[ProblemSet], rows: Rows, ks: Sequence[int], steps: Mapping[str, int | None], seed: int) -> dict[str, Any]:
    """All numbers: every model on every set and group, macro averages with steps and ICER against the first model, paired comparison.

    ICER is given where the first model is a base (steps 0, or none known) and the other's steps are known.
    """
    models = []
    for label, by_set in rows.items():
        results = {one.benchmark.name: _result(one, by_set[one.benchmark.name], ks, seed) for one in sets}
        macro = float(np.mean([result["avg"]["mean"] for result in results.values()]))
        models.append({"model": label, "steps": steps[label], "sets": results, "macro_avg": macro})
    first = models[0]
    for model in models[1:]:
        gain = model["macro_avg"] - first["macro_avg"]
        known = not first["steps"] and model["steps"] is not None
        model["gain"] = gain
        model["icer"] = icer(model["steps"], gain) if known else None
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


def show(result: Mapping[str, Any]) -> None:
    """Tables on stdout."""
    console = Console()
    decoding, models = result["decoding"], result["models"]
    title = f"{decoding['samples']} samples, temperature {decoding['temperature']:g}, top_p {decoding['top_p']:g}, "
    title += f"{decoding['max_tokens']} tokens; percent, 95 % intervals over prompts"
    ks = list(next(iter(models[0]["sets"].values()))["pass"])
    table = Table(title=title, title_justify="left")
    table.add_column("set")
    table.add_column("model", overflow="fold")
    for column in ("prompts", f"avg@{decoding['samples']}", *(f"{what}@{k}" for what in ("pass", "maj") for k in ks)):
        table.add_column(column, justify="right")
    for name in models[0]["sets"]:
        for model in models:
            scores = model["sets"][name]
            for group, found in ((name, scores), *((f"  {group}", found) for group, found in scores["groups"].items())):
                cells = [found["avg"], *(found[what][k] for what in ("pass", "maj") for k in ks)]
                table.add_row(group, model["model"], str(found["prompts"]), *map(_interval, cells))
    console.print(table)
    console.print(_summary(models))
    for name, found in result["comparison"].items():
        interval = f"[{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
        console.print(
            f"{name}: the second model minus the first {100 * found['difference']:+.1f} {interval}, p = {found['p_value']:.4f}",
            markup=False,
        )


def _summary(models: Sequence[Mapping[str, Any]]) -> Table:
    """One line a model, as in the paper's tables 3 and 4: every set, the average over sets, steps and ICER."""
    table = Table(title="average over sets; ICER: steps per point gained over the first model", title_justify="left")
    table.add_column("model", overflow="fold")
    for column in (*models[0]["sets"], "average", "steps", "ICER"):
        table.add_column(column, justify="right")
    for model in models:
        means = [f"{100 * scores['avg']['mean']:.1f}" for scores in model["sets"].values()]
        steps = "" if model["steps"] is None else str(model["steps"])
        table.add_row(model["model"], *means, f"{100 * model['macro_avg']:.1f}", steps, _icer(model))
    return table


def _icer(model: Mapping[str, Any]) -> str:
    if model.get("icer") is not None:
        return f"{model['icer']:.1f}"
    return "no gain" if model.get("gain", 1.0) <= 0 else ""


def _interval(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"
