"""Prompts: where they come from, what is held out, how they are worded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from next_ray.config.rewards import check_verifier
from next_ray.config.section import Address, Section


class ArithmeticSource(Section):
    """Additions and subtractions, written `a+b=` for the tiny model."""

    kind: Literal["arithmetic"] = "arithmetic"
    digits: int = Field(default=2, ge=1, le=9)
    """Largest number of digits of each operand."""
    size: int = Field(default=10000, ge=1)
    """Distinct problems drawn."""
    operations: str = Field(default="+", pattern=r"^[+\-]{1,2}$")
    """Operations used: `+`, `-` or `+-`."""
    question: str = "{a}{op}{b}="
    """Text of a problem; `{a}`, `{op}` and `{b}` are replaced."""


class ReasoningGymSource(Section):
    """A procedural task of reasoning-gym, deterministic from the run's seed."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    task: str
    """Name of the task, for example `chain_sum`."""
    size: int = Field(default=2000, ge=1)
    """Problems generated (duplicates are dropped)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, for example `{min_terms: 2, max_terms: 2}`."""


class FileSource(Section):
    """Problems from JSONL, JSON, parquet or CSV files, local, on S3 or on the Hugging Face hub."""

    kind: Literal["file"] = "file"
    path: Address
    """File, folder or pattern (`shards/*.parquet`), local or as fsspec URL (`s3://`, `hf://datasets/org/name/file`).

    The extension decides the format: .jsonl, .json, .parquet or .csv.
    """
    prompt_field: str | None = None
    """Field of the prompt; found by itself when unset (prompt, messages, question, problem, input)."""
    answer_field: str | None = None
    """Field of the answer; found by itself when unset (reward_model.ground_truth, ground_truth, answer, label, solution)."""


SingleSource = Annotated[ArithmeticSource | ReasoningGymSource | FileSource, Field(discriminator="kind")]


class MixtureEntry(Section):
    """One source of a mixture."""

    source: SingleSource
    """Where its prompts come from."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the prompts trained on, in proportion to the other weights."""
    verifier: str | None = None
    """How its answers are judged, named as in reward.verifier; null: as reward.verifier says."""

    @field_validator("verifier")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name is None else check_verifier(name)


class MixtureSource(Section):
    """Several sources, trained on in proportion to their weights whatever their sizes."""

    kind: Literal["mixture"] = "mixture"
    sources: tuple[MixtureEntry, ...] = Field(min_length=1)
    """The sources; a problem that several of them hold belongs to the first."""


Source = Annotated[ArithmeticSource | ReasoningGymSource | FileSource | MixtureSource, Field(discriminator="kind")]


class FewShotTurn(Section):
    """A problem and its answer, shown before every prompt."""

    prompt: str = Field(min_length=1)
    """Text of the problem; `data.template` is put around it."""
    answer: str = Field(min_length=1)
    """What the model is shown to have answered, word for word."""


class FewShotFile(Section):
    """Problems of a file, shown with their worked answers before every prompt."""

    path: Address
    """File or fsspec URL, in any of the layouts that `data.train` reads."""
    count: int = Field(default=4, ge=1)
    """Distinct problems taken from the file's start."""
    answer_template: str = "{answer}"
    """Text of the model's turn; `{answer}` is replaced by the solution, or by the answer where there is no solution."""
    prompt_field: str | None = None
    """Field of the problem; found by itself when unset."""
    answer_field: str | None = None
    """Field of the answer; unset: the text of solution or answer, whole."""


class DataSection(Section):
    """Prompts: where they come from, what is held out, how they are worded."""

    train: Source = ArithmeticSource()
    """Where training prompts come from."""
    reader: Literal["auto", "local", "ray"] = "auto"
    """Who reads files: `local` the driver, one row after the other, before anything is started; `ray` Ray Data tasks on all cores, with the
    same result; `auto` the tasks where files are large and cores are many."""
    held_out: FileSource | None = None
    """A file of held-out problems; when unset they are split off `train` by a hash of the prompt."""
    gate_prompts: int = Field(default=96, ge=1)
    """Held-out prompts the gate judges candidates on."""
    test_prompts: int = Field(default=256, ge=1)
    """Held-out prompts of the evaluations that are reported; disjoint from the gate's."""
    system_prompt: str | None = None
    """System message put before each prompt; None keeps the chat template's own."""
    template: str = "{prompt}"
    """Text of the user message; `{prompt}` is replaced by the problem."""
    chat: bool | None = None
    """Apply the tokenizer's chat template; None: when the tokenizer has one."""
    max_prompt_tokens: int = Field(default=64, ge=1)
    """Longer prompts are left out, and counted."""
    few_shot: tuple[FewShotTurn, ...] | FewShotFile = ()
    """Worked problems before each prompt: a list of `{prompt, answer}`, or a file's first ones. They occur in none of the three sets."""
