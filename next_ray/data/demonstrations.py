"""Demonstrations for supervised fine-tuning: rows with a worked answer, as the token ids that a model reads and has to give.

Read are conversations that end in an assistant's turn (`messages`, or a list under `prompt`), and pairs: `prompt` and `completion`,
`question` and `answer`, `problem` and `solution`, `instruction` (or `input`) and `output` or `response`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from next_ray.config import DataSection
from next_ray.config.warmstart import DemonstrationsSection
from next_ray.data.few_shot import with_few_shot, without_shown
from next_ray.data.files import read_rows
from next_ray.data.formats import Setting
from next_ray.data.hub import at_commit
from next_ray.data.places import readable
from next_ray.data.prompts import make_prompt, prompt_text, stable_hash
from next_ray.data.template import PromptEncoder
from next_ray.errors import DataError
from next_ray.types import Prompt

PROMPT_FIELDS = ("messages", "prompt", "question", "problem", "instruction", "input")
COMPLETION_FIELDS = ("completion", "solution", "response", "output", "answer")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Demonstration:
    """A prompt and what the model should say."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class TokenizedDemonstration:
    """Token ids int32 [T] of the prompt, as training and engines see it, and of the completion with the end token."""

    prompt: np.ndarray
    completion: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Demonstrations:
    """Tokenized demonstrations without a common prompt; `report` says what was read, dropped and split."""

    train: list[TokenizedDemonstration]
    held_out: list[TokenizedDemonstration]
    report: str


def load_demonstrations(data: DemonstrationsSection, tokenizer: Any, seed: int) -> Demonstrations:
    """Read, split and tokenize.

    Without `data.held_out`, a share of the prompts is held out by a stable hash of seed and text, the same whatever the order of the
    rows. A demonstration whose prompt is held out is not trained on.

    Raises:
        DataError: a file is missing or malformed (file and line are named), or one of the two sets is empty.
    """
    data = _settled(data, seed)
    rows = _read(data.path, "data.path", data)
    if data.held_out is None:
        texts = sorted({_text(row) for row in rows}, key=lambda text: stable_hash(f"{seed} {text}"))
        if len(texts) < 2:
            raise DataError(f"{data.path}: {len(texts)} distinct prompt(s); at least 2 are needed, one of them to be held out.")
        withheld = set(texts[: min(len(texts) - 1, max(1, round(data.held_out_share * len(texts))))])
        held_out = [row for row in rows if _text(row) in withheld]
    else:
        held_out = _read(data.held_out, "data.held_out", data)
        withheld = {_text(row) for row in held_out}
    train = [row for row in rows if _text(row) not in withheld]
    overlap = 0 if data.held_out is None else len(rows) - len(train)
    encoder = DemonstrationEncoder(tokenizer, data)
    sets = {"train": encoder.encode(train), "held out": encoder.encode(held_out)}
    kept = {name: [row for row in rows if row.num_tokens <= data.max_tokens] for name, rows in sets.items()}
    for name in sets:
        if not kept[name]:
            raise DataError(
                f"No demonstration to {'train on' if name == 'train' else 'hold out'} is left of {data.path}: {len(sets[name])} were read"
                f"{f', {overlap} are in data.held_out too' if overlap else ''}, none has at most data.max_tokens={data.max_tokens} tokens. "
                "Raise it, or give more demonstrations."
            )
    dropped = sum(len(sets[name]) - len(kept[name]) for name in sets)
    report = f"{data.path}: {len(rows)} demonstrations; {len(kept['train'])} to train on, {len(kept['held out'])} held out"
    report += f"; {dropped} longer than {data.max_tokens} tokens left out" if dropped else ""
    report += f"; {overlap} left out whose prompts are held out" if overlap else ""
    return Demonstrations(kept["train"], kept["held out"], report)


class DemonstrationEncoder:
    """Token ids: the prompt exactly as a run gives it to its engines, then the completion's text, then the end token.

    Prompt and completion are tokenized apart, as they are when an engine goes on from a prompt; the end token is the tokenizer's, at
    which engines stop.

    Raises:
        ConfigError: see `PromptEncoder`.
        DataError: the tokenizer has no end token, so a model could not learn to stop.

    The turns of `data.few_shot` must have been written out.
    """

    def __init__(self, tokenizer: Any, data: DemonstrationsSection) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("The model's tokenizer has no end token (eos_token): nothing would teach it to stop. Set one in its folder.")
        self._tokenizer = tokenizer
        self._prompts = PromptEncoder(tokenizer, _wording(data))
        known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        self._characters = known if all(len(token) == 1 for token in known) else None

    def encode(self, rows: Iterable[Demonstration]) -> list[TokenizedDemonstration]:
        """In the rows' order; raises `DataError` for text that a character tokenizer would drop."""
        return [self._one(row) for row in rows]

    def _one(self, row: Demonstration) -> TokenizedDemonstration:
        if self._characters is not None:
            text = self._prompts.render(row.prompt) + row.completion
            if unknown := sorted(set(text) - self._characters):
                raise DataError(
                    f"Demonstration {text[:80]!r} has the character {unknown[0]!r}, which the model at {self._tokenizer.name_or_path} "
                    "cannot read. Take another model (model.name), or other demonstrations."
                )
        completion = [*self._tokenizer(row.completion, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]
        return TokenizedDemonstration(np.array(self._prompts.encode(row.prompt), np.int32), np.array(completion, np.int32))


def read_demonstration(row: Any, prompt_field: str | None = None, completion_field: str | None = None) -> Demonstration:
    """One row understood; named fields win over the search. Raises `ValueError` saying what was expected and what was there.

    Of a conversation the last assistant's turn is the completion; earlier ones are context.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}.")
    name, value = _find(row, PROMPT_FIELDS, prompt_field, "a prompt", "data.prompt_field")
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else _turns(name, value)
    if turns[-1]["role"] == "assistant" and completion_field is None:
        completion = turns.pop()["content"]
    else:
        completion = _completion(*_find(row, COMPLETION_FIELDS, completion_field, "an answer text", "data.completion_field"))
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise ValueError(f"expected a user's question in {name!r} before the answer.")
    if not completion.strip():
        raise ValueError("the answer is blank.")
    return Demonstration(make_prompt(turns, "", "exact"), completion)


def _wording(data: DemonstrationsSection) -> DataSection:
    return DataSection(system_prompt=data.system_prompt, template=data.template, chat=data.chat, few_shot=data.few_shot)


def _options(data: DemonstrationsSection) -> dict[str, str]:
    return {"endpoint_url": data.endpoint_url} if data.endpoint_url else {}


def _settled(data: DemonstrationsSection, seed: int) -> DemonstrationsSection:
    """With the commits of sets on the hub, and the worked problems of a file written out."""
    settled: dict[str, Any] = {"few_shot": with_few_shot(_wording(data), seed, _options(data)).few_shot}
    for name in ("path", "held_out"):
        if (path := getattr(data, name)) is not None:
            with readable(path, f"data.{name}"):
                settled[name] = at_commit(path)
    return data.model_copy(update=settled)


def _read(path: str, setting: str, data: DemonstrationsSection) -> list[Demonstration]:
    found: list[Demonstration] = []
    for row in read_rows(path, _options(data), setting=Setting(setting)):
        try:
            found.append(read_demonstration(row.value, data.prompt_field, data.completion_field))
        except ValueError as error:
            raise DataError(f"{path}, {row.place}: {error}") from error
    if not found:
        raise DataError(f"{path}: the file holds no demonstration. One JSON object (or parquet row) per demonstration is expected.")
    kept = {prompt.id for prompt in without_shown([row.prompt for row in found], data.few_shot)}
    return [row for row in found if row.prompt.id in kept]


def _find(row: Mapping[str, Any], candidates: Sequence[str], wanted: str | None, what: str, option: str) -> tuple[str, Any]:
    for name in candidates if wanted is None else (wanted,):
        if row.get(name) not in (None, "", []):
            return name, row[name]
    where = f"one of {', '.join(candidates)}" if wanted is None else f"the field {wanted!r}"
    raise ValueError(f"expected {what} in {where}; the row has {', '.join(map(str, row)) or 'nothing'}. Name the field with {option}.")


def _turns(name: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"expected text or a list of messages in {name!r}, found {type(value).__name__}.")
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise ValueError(f"message {number} in {name!r}: expected an object with role (one of {', '.join(ROLES)}) and content as text.")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _completion(name: str, value: Any) -> str:
    """Text, a number, or TRL's list of one assistant message."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = _turns(name, value)[0]["content"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text in {name!r}, found {type(value).__name__}.")
    return value


def _text(row: Demonstration) -> str:
    return prompt_text(row.prompt.messages)
