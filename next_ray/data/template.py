"""Prompts as the token ids a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from next_ray.config import DataSection, FewShotFile
from next_ray.errors import ConfigError, DataError
from next_ray.types import Prompt

PLACEHOLDER = "{prompt}"
AT_ONCE = 1000
"""Prompts that are tokenized together."""


class Fit(NamedTuple):
    """Prompts that are short enough, and how many were not."""

    kept: list[Prompt]
    dropped: int


class PromptEncoder:
    """Applies system prompt, template and, for chat models, the tokenizer's chat template with the generation prompt.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: `system_prompt` replaces a system message of the data; `template` wraps the last user message; `few_shot` turns
            (written out by `few_shot.with_few_shot`) come between system message and problem.

    Raises:
        ConfigError: the template has no `{prompt}`, or `data.chat=true` without a chat template.
    """

    def __init__(self, tokenizer: Any, config: DataSection) -> None:
        if PLACEHOLDER not in config.template:
            raise ConfigError(f"data.template={config.template!r} has no {PLACEHOLDER}, so every prompt would read the same. Add it.")
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if config.chat and not has_template:
            raise ConfigError("data.chat=true, but the tokenizer has no chat template. Set data.chat=false, or use a chat model.")
        self._tokenizer = tokenizer
        self._config = config
        assert not isinstance(config.few_shot, FewShotFile), "with_few_shot comes first"
        self._shown = config.few_shot
        self._chat = has_template if config.chat is None else config.chat
        # Some tokenizers close every text with an end token; a completion cannot go on from there.
        special = [] if self._chat else list(tokenizer("")["input_ids"])
        self._drop_end = special[-1:] == [tokenizer.eos_token_id] and (len(special) > 1 or tokenizer.bos_token_id != tokenizer.eos_token_id)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt."""
        return self._tokenize([self.render(prompt)])[0]

    def render(self, prompt: Prompt) -> str:
        """The text that is tokenized. Plain text is the contents joined by blank lines, without roles; a shown answer follows its
        question at once, as the model's own will."""
        messages = self._with_config(prompt.messages)
        start = next(index for index, message in enumerate(messages) if message["role"] != "system")
        system, turns = messages[:start], messages[start:]
        if not self._chat:
            shown = [self._wrapped(turn.prompt) + turn.answer for turn in self._shown]
            return "\n\n".join([*(m["content"] for m in system), *shown, *(m["content"] for m in turns)])
        for turn in self._shown:
            system += [{"role": "user", "content": self._wrapped(turn.prompt)}, {"role": "assistant", "content": turn.answer}]
        return self._tokenizer.apply_chat_template(system + turns, tokenize=False, add_generation_prompt=True)

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt; the token ids of a thousand prompts are held at a time."""
        blocks = (prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE))
        return [len(ids) for block in blocks for ids in self._tokenize([self.render(prompt) for prompt in block])]

    def fits(self, prompts: Sequence[Prompt], max_tokens: int, known: Mapping[str, int] = MappingProxyType({})) -> Fit:
        """Leave out prompts of more than `max_tokens` tokens; raises `DataError` when none is left.

        `known` are lengths by prompt id that need no tokenizer any more.
        """
        counted = iter(self.lengths([prompt for prompt in prompts if prompt.id not in known]))
        lengths = [known[prompt.id] if prompt.id in known else next(counted) for prompt in prompts]
        kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_tokens]
        if prompts and not kept:
            raise DataError(
                f"none of {len(prompts)} prompts fits data.max_prompt_tokens={max_tokens}; the shortest has {min(lengths)}. Raise it."
            )
        return Fit(kept, len(prompts) - len(kept))

    def _with_config(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        result = [dict(message) for message in messages]
        if self._config.system_prompt is not None:
            result = [message for message in result if message["role"] != "system"]
            result.insert(0, {"role": "system", "content": self._config.system_prompt})
        result[-1]["content"] = self._wrapped(result[-1]["content"])
        return result

    def _wrapped(self, problem: str) -> str:
        # replace, not format: problems are full of braces
        return self._config.template.replace(PLACEHOLDER, problem)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """A chat template writes its special tokens itself; plain text gets the tokenizer's own (a `<bos>`, say), but no end token."""
        if not texts:
            return []
        rows = self._tokenizer(list(texts), add_special_tokens=not self._chat)["input_ids"]
        return [list(row[:-1] if self._drop_end and row else row) for row in rows]
