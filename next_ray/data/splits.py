"""Which problems are trained on, which the gate judges by, and which are reported: three sets without a common text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from next_ray.data.prompts import prompt_text, stable_hash
from next_ray.data.stream import Mixture
from next_ray.errors import DataError
from next_ray.types import Prompt


@dataclass(frozen=True)
class Splits:
    """Disjoint prompts. `overlaps` counts training prompts dropped because the held-out file has them too; `mixture` says whose they are
    when there are several sources."""

    train: list[Prompt]
    gate: list[Prompt]
    test: list[Prompt]
    overlaps: int = 0
    mixture: Mixture | None = None


def split(prompts: Sequence[Prompt], held_out: Sequence[Prompt] | None, gate_prompts: int, test_prompts: int, seed: int) -> Splits:
    """Hold out `test_prompts` and `gate_prompts`, ranked by a stable hash of seed and stripped prompt text.

    The choice depends on texts and seed alone, not on the order of the rows. With `held_out` both sets come from there and
    `prompts` loses whatever it has in common with any of it.

    Raises:
        DataError: fewer problems than the three sets need; the message does the arithmetic.
    """
    pool = prompts if held_out is None else held_out
    distinct = {prompt_text(prompt.messages): prompt for prompt in reversed(pool)}
    needed = gate_prompts + test_prompts
    reserve = 1 if held_out is None else 0
    if len(distinct) < needed + reserve:
        train = " + at least 1 to train on" if reserve else ""
        where = "data.train has" if held_out is None else "data.held_out has"
        raise DataError(
            f"{where} {len(distinct)} distinct prompts, but data.gate_prompts={gate_prompts} + data.test_prompts={test_prompts}{train} "
            f"= {needed + reserve}. Provide {needed + reserve - len(distinct)} more, or lower data.gate_prompts or data.test_prompts."
        )
    ranked = sorted(distinct, key=lambda text: stable_hash(f"{seed} {text}"))
    test, gate = ranked[:test_prompts], ranked[test_prompts:needed]
    withheld = set(test) | set(gate) if held_out is None else set(distinct)
    train_set = [prompt for prompt in prompts if prompt_text(prompt.messages) not in withheld]
    if not train_set:
        raise DataError(f"all {len(prompts)} prompts of data.train are in data.held_out too; nothing is left to train on.")
    overlaps = 0 if held_out is None else len(prompts) - len(train_set)
    return Splits(train_set, [distinct[text] for text in gate], [distinct[text] for text in test], overlaps)
