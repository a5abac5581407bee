"""What identifies a prompt: its text, the stable hash of that text, and the checks every prompt passes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from next_ray.types import Prompt

ID_HEX_DIGITS = 16
"""64 bits of sha256: among ten million prompts a collision has probability 3e-6."""


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The text that makes a prompt itself: its stripped content, or role and content of every turn but the system's."""
    turns = [message for message in messages if message["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"].strip()
    return "\n".join(f"{turn['role']}: {turn['content'].strip()}" for turn in turns)


def stable_hash(text: str) -> str:
    """sha256 in hex; lone surrogates are allowed. The same on every machine and in every process."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def make_prompt(messages: Sequence[Mapping[str, str]], answer: str, verifier: str, metadata: Mapping[str, Any] | None = None) -> Prompt:
    """A `Prompt` whose id is the hash of its text."""
    text = prompt_text(messages)
    return Prompt(
        id=stable_hash(text)[:ID_HEX_DIGITS], messages=tuple(messages), answer=answer, verifier=verifier, metadata=dict(metadata or {})
    )


def user_prompt(content: str, answer: str, verifier: str, metadata: Mapping[str, Any] | None = None) -> Prompt:
    """A prompt of one user message."""
    return make_prompt(({"role": "user", "content": content},), answer, verifier, metadata)
