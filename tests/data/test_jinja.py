"""A served conversation is worded as training words a prompt: the Jinja template against `PromptEncoder`, on real tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

from next_ray.config import DataSection
from next_ray.data.jinja import chat_template
from next_ray.data.prompts import make_prompt
from next_ray.data.template import PromptEncoder
from tests.data.test_template import tokenizer

HARD = 'a {b} "é" \\n {{ c }} 😀\nnext'


def rendered(fast: Any, turns: list[dict[str, str]], **words: Any) -> list[int]:
    template = chat_template(fast, words.get("system_prompt"), words.get("template", "{prompt}"))
    text = fast.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    return list(fast(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize(
    "words", [{}, {"template": f"{HARD} {{prompt}}!"}, {"system_prompt": HARD}, {"system_prompt": "S", "template": "Q: {prompt}\nA:"}]
)
def test_it_is_the_wording_of_training(chat: bool, closing: bool, words: dict[str, str]) -> None:
    fast = tokenizer(chat, closing)
    for turns in (
        [{"role": "user", "content": HARD}],
        [{"role": r, "content": c} for r, c in (("user", "1"), ("assistant", "2"), ("user", "3"))],
    ):
        expected = PromptEncoder(fast, DataSection.model_validate(words)).encode(make_prompt(turns, "", "math"))
        assert rendered(fast, turns, **words) == expected


def test_a_clients_own_system_message_stays() -> None:
    turns = [{"role": "system", "content": "mine"}, {"role": "user", "content": "1"}]
    text = tokenizer(True).decode(rendered(tokenizer(True), turns, system_prompt="ours"))
    assert "mine" in text and "ours" not in text


def test_a_chat_model_without_wishes_keeps_its_template() -> None:
    assert chat_template(tokenizer(True), None, "{prompt}") is None
