"""Words and numbers for people; text of models and data is made harmless for terminals."""

from __future__ import annotations

from typing import Any

from next_ray.types import Fault


def printable(text: str, limit: int | None = None) -> str:
    """One line without control characters (a completion may hold escape sequences), cut to `limit` characters."""
    flat = "".join(ch if ch.isprintable() else ("\N{RETURN SYMBOL}" if ch == "\n" else "\N{MIDDLE DOT}") for ch in text)
    return flat if limit is None or len(flat) <= limit else flat[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def fault_sentence(fault: Fault) -> str:
    """A fault, or the recovery from one, in words."""
    took = "" if fault.seconds is None else f" after {duration(fault.seconds)}"
    return f"{fault.what} {fault.event}{took}: {printable(fault.detail, 300)}"


def jump_sentence(row: dict[str, Any]) -> str:
    """What became of one attempt to jump, from its row."""
    step, reason = row["step"], printable(row.get("reason", ""))
    if "accepted" in row:
        verb = f"step {step}: jumped with {row['accepted']}"
    else:
        verb = f"step {step}: no jump, training goes on from the last checkpoint"
    return f"{verb}. {reason}".rstrip()
