r"""The content of the last `\boxed{...}`: shared by references (data) and completions (reward)."""

from __future__ import annotations

BOX = "\\boxed"


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, or None when there is none or it is never closed; linear in the text's length.

    Escaped braces (`\{`) don't count towards the balance. An unclosed last box gives no answer: falling back to an earlier
    one would reward completions that were cut off.
    """
    start = text.rfind(BOX)
    if start < 0:
        return None
    opening = start + len(BOX)
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if opening == len(text) or text[opening] != "{":
        return None
    depth, index = 0, opening
    while index < len(text):
        character = text[index]
        if character == "\\":
            index += 2
            continue
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : index].strip()
        index += 1
    return None
