"""How answers are judged, and what a verifier process may use up."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from next_ray.config.section import Section

VERIFIERS = ("auto", "exact", "number", "math", "gsm8k", "choice", "reasoning-gym")
"""Verifiers that are named by a word."""
FORMATS = ("think", "think-answer", "boxed")
"""What may stand after `format:`."""
FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
MAX_WEIGHT = 100.0


def check_verifier(name: str) -> str:
    """`name` if it is a verifier; raises ValueError that says what exists."""
    family, _, rest = name.partition(":")
    if name in VERIFIERS:
        return name
    if family == "regex" and rest:
        try:
            re.compile(rest)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"the pattern of the verifier {name!r} is no regular expression: {error}.") from error
        return name
    if family == "format" and rest in FORMATS:
        return name
    if family == "python" and FUNCTION.fullmatch(rest):
        return name
    forms = f"{', '.join(VERIFIERS)}, regex:PATTERN, {', '.join(f'format:{f}' for f in FORMATS)} and python:MODULE:FUNCTION"
    raise ValueError(f"there is no verifier {name!r}; {forms} exist.")


class RewardPart(Section):
    """One summand of a reward."""

    verifier: str = "auto"
    """A verifier as in reward.verifier; what auto and reasoning-gym mean for a source is possible in the first part only."""
    weight: float = Field(default=1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)
    """What the verifier's 0 to 1 is multiplied by; negative for what is to be avoided."""

    _known = field_validator("verifier")(check_verifier)


class RewardSection(Section):
    """Verifiers and their limits."""

    verifier: str = "auto"
    """How answers are judged (docs/verifiers.md): auto, exact, number, math, gsm8k, choice, reasoning-gym, regex:PATTERN,
    format:think, format:think-answer, format:boxed or python:MODULE:FUNCTION.

    auto: exact for arithmetic, the task's own for reasoning-gym, math for files.
    """
    parts: tuple[RewardPart, ...] = ()
    """A weighted sum instead of one verifier; the first part alone decides whether an answer is correct, in gate and evaluation too."""
    actors: int = Field(default=1, ge=1)
    """Verifier actors."""
    workers: int = Field(default=1, ge=1)
    """Disposable verifier processes of each actor."""
    wall_clock_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of one answer, seconds."""
    cpu_s: int = Field(default=600, ge=1)
    """CPU time after which a verifier process is replaced, seconds."""
    memory_mib: int = Field(default=2048, ge=256)
    """Address space of a verifier process, MiB."""

    _known = field_validator("verifier")(check_verifier)

    @property
    def deciding(self) -> str:
        """The verifier that says whether an answer is correct."""
        return self.parts[0].verifier if self.parts else self.verifier

    @property
    def further(self) -> tuple[str, ...]:
        """Verifiers of the other parts."""
        return tuple(part.verifier for part in self.parts[1:])

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each part, the deciding one first."""
        return tuple(part.weight for part in self.parts) or (1.0,)

    @model_validator(mode="after")
    def _parts_fit(self) -> RewardSection:
        if self.parts and self.verifier != "auto":
            raise ValueError(
                f"reward.verifier={self.verifier} and reward.parts exclude each other. Leave reward.verifier at auto; "
                "the first part decides whether an answer is correct."
            )
        if self.parts and self.parts[0].weight <= 0:
            raise ValueError("the first of reward.parts decides whether an answer is correct: its weight must be above 0.")
        for name in self.further:
            if name in ("auto", "reasoning-gym"):
                raise ValueError(f"only the first of reward.parts can be {name}, because it depends on the source. Put it first.")
        return self
