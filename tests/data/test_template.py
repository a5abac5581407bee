"""What the model reads, with real tokenizers: byte-level with and without a chat template, and the tiny model's."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from next_ray.config import DataSection
from next_ray.data.prompts import make_prompt, user_prompt
from next_ray.data.template import PromptEncoder
from next_ray.errors import ConfigError, DataError

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nDefault<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(chat: bool, closing: bool = False) -> Any:
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    end = " </s>" if closing else ""
    core.post_processor = processors.TemplateProcessing(single=f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:])
    fast.chat_template = CHATML if chat else None
    return fast


def section(**fields: Any) -> DataSection:
    return DataSection(**fields)


def read(fast: Any, prompt: Any, **fields: Any) -> str:
    return fast.decode(PromptEncoder(fast, section(**fields)).encode(prompt))


ASK = user_prompt("a {b} é", "1", "math")


@pytest.mark.parametrize("closing", [False, True])
def test_plain_text_gets_the_tokenizers_start_and_no_end(closing: bool) -> None:
    assert read(tokenizer(False, closing), ASK) == "<s>a {b} é"
    assert read(tokenizer(False, closing), ASK, system_prompt="Be brief.", template="Q: {prompt} {x}\nA:") == (
        "<s>Be brief.\n\nQ: a {b} é {x}\nA:"
    )


def test_chat_ends_with_the_generation_prompt() -> None:
    default = "<|im_start|>system\nDefault<|im_end|>\n<|im_start|>user\na {b} é<|im_end|>\n<|im_start|>assistant\n"
    assert read(tokenizer(True), ASK) == default
    own = read(tokenizer(True), ASK, system_prompt="S", template="{prompt}!")
    assert own == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na {b} é!<|im_end|>\n<|im_start|>assistant\n"
    assert read(tokenizer(True), ASK, chat=False) == "<s>a {b} é"


def test_only_the_last_message_is_wrapped_and_the_config_replaces_the_system_message() -> None:
    turns = [("system", "old"), ("user", "u1"), ("assistant", "a1"), ("user", "u2")]
    prompt = make_prompt([{"role": role, "content": content} for role, content in turns], "1", "math")
    text = read(tokenizer(True), prompt, template="<{prompt}>")
    assert "system\nold" in text and "user\nu1<|im_end|>" in text and "user\n<u2>" in text and "Default" not in text
    assert "old" not in read(tokenizer(True), prompt, system_prompt="new")
    assert prompt.messages[-1]["content"] == "u2"


def test_length_filter_counts_and_keeps_order() -> None:
    encoder = PromptEncoder(tokenizer(False), section())
    prompts = [user_prompt("x" * length, "1", "exact") for length in (3, 10, 1, 4, 5)]
    fit = encoder.fits(prompts, 5)
    assert fit.kept == [prompts[0], prompts[2], prompts[3]] and fit.dropped == 2
    assert [len(encoder.encode(prompt)) for prompt in prompts] == [4, 11, 2, 5, 6]
    with pytest.raises(DataError, match=r"none of 5 .*shortest has 2"):
        encoder.fits(prompts, 1)
    assert encoder.fits([], 1) == ([], 0)


def test_the_tiny_models_tokenizer() -> None:
    from next_ray.models.tiny import build_tokenizer

    fast = build_tokenizer()
    ids = PromptEncoder(fast, section()).encode(user_prompt("12+7=", "19", "exact"))
    assert len(ids) == 6 and ids[0] == fast.bos_token_id
    assert len(set(ids[1:])) == 5 and fast.unk_token_id not in ids


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no \{prompt\}"):
        PromptEncoder(tokenizer(False), section(template="solve"))
    with pytest.raises(ConfigError, match="no chat template"):
        PromptEncoder(tokenizer(False), section(chat=True))
