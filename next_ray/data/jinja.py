"""The wording of training as a chat template that vLLM renders: what `template.PromptEncoder` does to a prompt, for any conversation."""

from __future__ import annotations

import json
from typing import Any

from next_ray.data.template import PLACEHOLDER

PLAIN = """{%- for message in messages -%}
{%- if not loop.first -%}{{ "\\n\\n" }}{%- endif -%}{{ message['content'] }}
{%- endfor -%}"""
"""A model without a chat template reads the contents, joined by blank lines."""


def chat_template(tokenizer: Any, system_prompt: str | None, template: str) -> str | None:
    """A Jinja template for conversations of plain text; None where the tokenizer's own says it all.

    Args:
        tokenizer: a Hugging Face tokenizer.
        system_prompt: of conversations that bring none.
        template: of the last user message, with `{prompt}`.
    """
    own = getattr(tokenizer, "chat_template", None)
    if own and system_prompt is None and template == PLACEHOLDER:
        return None
    changes = ""
    if system_prompt is not None:
        changes += "{%- if not messages or messages[0]['role'] != 'system' -%}"
        changes += f"{{%- set messages = [{{'role': 'system', 'content': {_literal(system_prompt)}}}] + messages -%}}{{%- endif -%}}"
    if template != PLACEHOLDER:
        wrapped = f"{_literal(template)} | replace({_literal(PLACEHOLDER)}, messages[-1]['content'])"
        changes += "{%- if messages and messages[-1]['role'] == 'user' -%}"
        changes += f"{{%- set messages = messages[:-1] + [{{'role': 'user', 'content': {wrapped}}}] -%}}{{%- endif -%}}"
    return changes + (own if own else f"{{{{ {_literal(_opening(tokenizer))} }}}}" + PLAIN)


def _opening(tokenizer: Any) -> str:
    """The special tokens that the tokenizer puts before every text, such as `<bos>`; an end token is not to stand there."""
    ids = list(tokenizer("")["input_ids"])
    if ids[-1:] == [tokenizer.eos_token_id] and (len(ids) > 1 or tokenizer.bos_token_id != tokenizer.eos_token_id):
        ids = ids[:-1]
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def _literal(text: str) -> str:
    """A string literal of Jinja, which reads escapes as Python does."""
    return json.dumps(text, ensure_ascii=False)
