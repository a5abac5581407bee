"""Problems from arithmetic, reasoning-gym, files or a mixture of them, as prompts with reference answers."""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from next_ray.config import ArithmeticSource, FileSource, MixtureSource, ReasoningGymSource
from next_ray.data.files import load_file
from next_ray.data.formats import TRAIN, Setting
from next_ray.data.gym import reasoning_gym
from next_ray.data.hub import at_commit
from next_ray.data.places import readable
from next_ray.data.prompts import prompt_text, user_prompt
from next_ray.data.stream import Mixture
from next_ray.errors import DataError
from next_ray.types import Prompt

NUM_EXAMPLES = 3
"""Conflicting answers a report quotes."""
TEXT_LENGTH = 80


@dataclass(frozen=True)
class LoadReport:
    """What became of a source's rows. `conflicts` counts the duplicates whose answer differs from the one that was kept;
    `parts` are the reports of a mixture's sources."""

    origin: str
    rows: int
    prompts: int
    duplicates: int
    conflicts: int
    examples: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = "".join(f"{part}; " for part in self.parts)
        line += f"{self.origin}: {self.prompts} prompts from {self.rows} rows"
        if self.duplicates:
            line += f", {self.duplicates} duplicates dropped"
        if self.conflicts:
            line += f", {self.conflicts} of them with another answer (the first was kept): " + "; ".join(self.examples)
        return line


@dataclass(frozen=True)
class Loaded:
    """Distinct prompts in the source's order, and how they came about."""

    prompts: list[Prompt]
    report: LoadReport
    mixture: Mixture | None = None


FileReader = Callable[[FileSource, str, int, Mapping[str, Any], Setting], Loaded]
"""Reads a file source's distinct prompts: source, verifier, seed, storage options, what the user calls it."""


def load_problems(
    source: ArithmeticSource | ReasoningGymSource | FileSource | MixtureSource,
    seed: int,
    verifier: str = "auto",
    storage_options: Mapping[str, Any] | None = None,
    setting: Setting = TRAIN,
    read_file: FileReader | None = None,
) -> Loaded:
    """All distinct problems of a source.

    Args:
        source: what to load. An address on the hub is read, and named in the report, at the commit that its revision stands for now.
        seed: decides what procedural sources draw, and the order of multiple-choice options; the same seed gives the same prompts.
        verifier: `reward.verifier` of the config; `auto` picks what suits the source.
        storage_options: passed to fsspec for files, for example `{"endpoint_url": ...}` on S3.
        setting: what the user calls the source.
        read_file: reads files; None: in this process, one row after the other.

    Raises:
        DataError: the source is missing, empty or malformed, or asks for what does not exist.
    """
    match source:
        case ArithmeticSource():
            return _distinct("arithmetic", _arithmetic(source, seed, _plain_verifier(verifier, "exact", "arithmetic")))
        case ReasoningGymSource():
            return _distinct(f"reasoning-gym {source.task}", _reasoning_gym(source, seed, verifier))
        case FileSource():
            kind = _plain_verifier(verifier, "math", source.path)
            with readable(source.path, setting.path):
                source = source.model_copy(update={"path": at_commit(source.path)})
            loaded = (read_file or read_in_order)(source, kind, seed, storage_options or {}, setting)
            if not loaded.prompts:
                raise DataError(f"{source.path}: the file holds no problem. One JSON object (or parquet row) per problem is expected.")
            return loaded
        case MixtureSource():
            parts = [
                load_problems(
                    part.source, seed, part.verifier or verifier, storage_options, Setting.of(f"data.train.sources[{i}].source"), read_file
                )
                for i, part in enumerate(source.sources)
            ]
            return _together(source, parts)


def read_in_order(source: FileSource, verifier: str, seed: int, storage_options: Mapping[str, Any], setting: Setting) -> Loaded:
    """A file source's distinct prompts, read in this process."""
    return _distinct(source.path, load_file(source, verifier, seed, storage_options, setting))


def _together(source: MixtureSource, parts: Sequence[Loaded]) -> Loaded:
    """Every source's problems, one source after the other; the first source with a text keeps it."""
    origins = [part.report.origin for part in parts]
    names = tuple(f"{name} (source {i})" if origins.count(name) > 1 else name for i, name in enumerate(origins, start=1))
    whole = _distinct("together", (prompt for part in parts for prompt in part.prompts))
    source_of: dict[str, int] = {}
    for number, part in enumerate(parts):
        for prompt in part.prompts:
            source_of.setdefault(prompt.id, number)
    mixture = Mixture(names, tuple(part.weight for part in source.sources), source_of)
    lines = [str(dataclasses.replace(part.report, origin=name)) for part, name in zip(parts, names, strict=True)]
    report = dataclasses.replace(whole.report, parts=tuple(lines))
    return Loaded(whole.prompts, report, mixture)


def _plain_verifier(verifier: str, automatic: str, origin: str) -> str:
    if verifier == "reasoning-gym":
        raise DataError(
            f"{origin}: reward.verifier=reasoning-gym judges only what reasoning-gym generated in this run, because its scorers "
            "evaluate the reference entry. Set reward.verifier to auto, exact, number, math, gsm8k or choice (docs/verifiers.md)."
        )
    return automatic if verifier == "auto" else verifier


def _distinct(origin: str, prompts: Iterable[Prompt]) -> Loaded:
    """Drop repeated texts; the first stays. Answers are compared stripped."""
    kept: dict[str, Prompt] = {}
    rows = conflicts = 0
    examples: list[str] = []
    for prompt in prompts:
        rows += 1
        text = prompt_text(prompt.messages)
        first = kept.setdefault(text, prompt)
        if first is not prompt and first.answer.strip() != prompt.answer.strip():
            conflicts += 1
            if len(examples) < NUM_EXAMPLES:
                examples.append(conflict(first, prompt))
    report = LoadReport(origin, rows, len(kept), rows - len(kept), conflicts, tuple(examples))
    return Loaded(list(kept.values()), report)


def conflict(first: Prompt, other: Prompt) -> str:
    """Two answers to one text, for a report."""
    answers = f"{first.answer[:TEXT_LENGTH]!r} and {other.answer[:TEXT_LENGTH]!r}"
    return f"{prompt_text(first.messages)[:TEXT_LENGTH]!r}: {answers}"


def _arithmetic(source: ArithmeticSource, seed: int, verifier: str) -> Iterable[Prompt]:
    """Distinct problems, uniform over operands 0..10^digits - 1 and operations, without replacement."""
    operations = sorted(set(source.operations))
    operands = 10**source.digits
    available = operands * operands * len(operations)
    if source.size > available:
        raise DataError(
            f"data.train.size={source.size}: only {operands} x {operands} x {len(operations)} operation(s) = {available} distinct "
            f"problems exist with digits={source.digits}. Lower size or raise digits."
        )
    # A text seed is hashed with sha512 by the standard library, so neighbouring seeds draw unrelated problems.
    for index in random.Random(f"arithmetic {seed}").sample(range(available), source.size):
        pair, which = divmod(index, len(operations))
        a, b = divmod(pair, operands)
        value = a + b if operations[which] == "+" else a - b
        yield user_prompt(_worded(source.question, a, operations[which], b), str(value), verifier)


def _worded(question: str, a: int, operation: str, b: int) -> str:
    for name, value in (("{a}", str(a)), ("{op}", operation), ("{b}", str(b))):
        question = question.replace(name, value)
    return question


def _reasoning_gym(source: ReasoningGymSource, seed: int, verifier: str) -> Iterable[Prompt]:
    """Items of `create_dataset(task, size=size, seed=seed, **options)`; metadata holds what the task's scorer needs."""
    library = reasoning_gym()
    _check_gym_options(source, library.factory.DATASETS)
    try:
        dataset = library.create_dataset(source.task, size=source.size, seed=seed, **source.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"reasoning-gym {source.task}: options {source.options} are refused: {error}. Mend data.train.options.") from error
    kind = f"reasoning-gym:{source.task}" if verifier in ("auto", "reasoning-gym") else verifier
    for index in range(source.size):
        entry = dataset[index]
        try:
            facts = json.loads(json.dumps(entry["metadata"]))
        except (TypeError, ValueError) as error:
            raise DataError(f"reasoning-gym {source.task}: item {index} is not JSON ({error}); choose another task.") from error
        answer = entry["answer"]
        scored = kind.startswith("reasoning-gym:")
        metadata = {"options": dict(source.options), "answer": answer, "metadata": facts} if scored else {}
        yield user_prompt(entry["question"], "" if answer is None else str(answer), kind, metadata)


def _check_gym_options(source: ReasoningGymSource, registry: Mapping[str, Any]) -> None:
    tasks = [name for name in registry if name != "composite"]
    if source.task not in tasks:
        raise DataError(f"reasoning-gym has no task {source.task!r}{_nearest(source.task, tasks)} (data.train.task).")
    fixed = ("size", "seed")
    known = [field.name for field in dataclasses.fields(registry[source.task][1]) if field.name not in fixed]
    for option in source.options:
        if option in fixed:
            where = "data.train.size" if option == "size" else "run.seed"
            raise DataError(f"reasoning-gym {source.task}: {option!r} is not an option; set {where}.")
        if option not in known:
            raise DataError(f"reasoning-gym {source.task} has no option {option!r}{_nearest(option, known)} (data.train.options).")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}"
