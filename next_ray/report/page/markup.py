"""HTML and SVG put together so that nothing gets into it unescaped: text is text unless `tag` made it."""

from __future__ import annotations

import html
import unicodedata


class Markup(str):
    """What `tag` or `joined` made; any other string is escaped when it is put into something."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element, as SVG and HTML spell it.
        children: markup, or anything else as text; None is left out.
        attributes: `class_` is class, `aria_label` aria-label; None and False leave one out, True leaves it bare.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        words.append(spelled if value is True else f'{spelled}="{safe(value)}"')
    opening = " ".join(words)
    if name in ("br", "meta", "hr"):
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{joined(*children)}</{name}>")


def joined(*children: object) -> Markup:
    """Markup and text one behind the other; None is nothing."""
    return Markup("".join(child if isinstance(child, Markup) else safe(child) for child in children if child is not None))


def safe(value: object) -> str:
    """Text for content or a quoted attribute: escaped, without characters that steer (controls, bidirectional marks, half surrogates)."""
    return html.escape("".join(map(_harmless, str(value))))


def _harmless(char: str) -> str:
    if char.isprintable() or char in "\n\t":
        return char
    return " " if unicodedata.category(char) == "Zs" else "\N{MIDDLE DOT}"
