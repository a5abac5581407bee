"""Lineage, samples, faults and configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_ray.report.page.data import Checkpoint, RunData
from next_ray.report.page.layout import Table, figure, grid, scrolled, section, soft, when
from next_ray.report.page.maps import lineage as lineage_picture
from next_ray.report.page.markup import Markup, joined, tag
from next_ray.report.rows import ALARM
from next_ray.report.text import duration, rollback_sentence
from next_ray.settings.flat import flat

REWARDED, NOT_REWARDED = "\N{CHECK MARK} rewarded", "\N{MULTIPLICATION SIGN} not rewarded"

SAMPLE_STEPS = 6
"""Steps whose samples are shown, evenly from the first to the last."""

SAMPLES_A_STEP = 3
SHOWN_CHARS = 1500
"""Of a prompt or a completion; how much was left out is said."""


def lineage(run: RunData, name: str, level: int) -> Markup:
    """Where every checkpoint came from."""
    if not run.checkpoints:
        return section(f"{name}-lineage", "Lineage", level, soft("No checkpoint is committed yet."))
    counts = {kind: sum(one.kind == kind for one in run.checkpoints) for kind in ("trained", "jumped", "reverted", "predicted", "merged")}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    picture = lineage_picture(
        f"{name}-tree", "Lineage of the checkpoints", f"{said}. {_turns(run.checkpoints)}", run.checkpoints, run.planned or run.last_step
    )
    caption = (
        f"{said} (old ones may have been deleted by store.keep_checkpoints). A lane is a trajectory; disc: trained, diamond: jumped to, "
        "hollow square: a jump taken back."
    )
    rows = [
        (one.id, one.step, one.kind, ", ".join(one.parents) or "base", when(one.created_at), f"{one.size_bytes / 2**20:.1f} MiB")
        for one in run.checkpoints
    ]
    table = Table(("checkpoint", "step", "kind", "made from", "committed", "size"), rows)
    return section(
        f"{name}-lineage", "Lineage", level, grid(figure(f"{name}-tree", "Checkpoints by step", picture, caption, table, level + 1))
    )


def _turns(checkpoints: Sequence[Checkpoint]) -> str:
    words = {"jumped": "jumped to from", "reverted": "gone back to from"}
    return " ".join(f"{one.id} was {words[one.kind]} {', '.join(one.parents)}." for one in checkpoints if one.kind in words)


def samples(run: RunData, name: str, level: int) -> Markup:
    """Completions as they were over the run."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for sample in run.samples:
        by_step.setdefault(sample["step"], []).append(sample)
    if not by_step:
        return section(
            f"{name}-samples",
            "Samples",
            level,
            soft("The store holds no samples of this run: runs keep report.samples of them a step, since this version."),
        )
    steps = sorted(by_step)
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(SAMPLE_STEPS - 1, 1))] for i in range(SAMPLE_STEPS)})
    parts = []
    for i, step in enumerate(chosen):
        shown = by_step[step][:SAMPLES_A_STEP]
        open_ = i in (0, len(chosen) - 1)
        parts.append(
            tag(
                "details",
                tag("summary", f"Step {step}: {len(shown)} of {len(by_step[step])}, {_rewards(shown)}"),
                *map(_sample, shown),
                open=open_,
            )
        )
    return section(f"{name}-samples", "Samples", level, tag("div", *parts, class_="card"))


def _rewards(shown: Sequence[Mapping[str, Any]]) -> str:
    return "reward " + ", ".join(f"{sample['reward']:.2f}" for sample in shown)


def _sample(sample: Mapping[str, Any]) -> Markup:
    right = sample["reward"] > 0
    word = tag(
        "span",
        f"{REWARDED if right else NOT_REWARDED} {sample['reward']:.2f}",
        class_=f"tag {'good' if right else 'bad'}",
    )
    lines = [
        tag("div", word, tag("span", f"  reference answer: {_cut(sample['answer'])}", class_="soft")),
        _text("Prompt", sample["prompt"]),
        _text("Completion", sample["completion"]),
    ]
    return tag("div", *lines, class_="sample")


def _text(label: str, words: str) -> Markup:
    return joined(tag("div", label, class_="soft"), tag("div", _cut(words), class_="text"))


def _cut(words: str) -> str:
    left = len(words) - SHOWN_CHARS
    return words if left <= 0 else f"{words[:SHOWN_CHARS]} \N{HORIZONTAL ELLIPSIS} ({left:,} characters more)"


def faults(run: RunData, name: str, level: int) -> Markup:
    """Warnings about training, jumps taken back, and what broke and came back."""
    content: list[Markup] = []
    if run.alarms:
        content.append(tag("ul", *(tag("li", _alarm(row)) for row in run.alarms)))
    if run.faults:
        rows = [
            (
                row.get("what", ""),
                row["step"],
                row.get("event", ""),
                duration(row["time_s"]) if row.get("time_s") is not None else "",
                _cut(row.get("detail", "")),
            )
            for row in run.faults
        ]
        content.append(scrolled(Table(("what", "at step", "event", "after", "detail"), rows), "faults and recoveries"))
    if not content:
        content.append(soft("None in what is committed."))
    return section(f"{name}-faults", "Warnings and faults", level, *content)


def _alarm(row: Mapping[str, Any]) -> str:
    return f"step {row['step']}: {row.get('message', '')}" if row["kind"] == ALARM else rollback_sentence(dict(row))


def settings(run: RunData, name: str, level: int) -> Markup:
    """What the run was bound to and started with."""
    known = {
        "store": run.url,
        "base model": run.model,
        "its fingerprint": run.fingerprint,
        "adapter rank": run.rank,
        "device": run.device,
        "version": run.version,
    }
    rows = [(key, str(value)) for key, value in known.items() if value not in (None, "")]
    facts = scrolled(Table(("what", "value"), rows), "what the run is bound to")
    if not run.settings:
        return section(
            f"{name}-config",
            "Configuration",
            level,
            facts,
            soft("The store holds no configuration of this run: runs keep it since this version."),
        )
    words = "\n".join(f"{key}={_value(value)}" for key, value in flat(run.settings))
    return section(
        f"{name}-config",
        "Configuration",
        level,
        facts,
        tag("details", tag("summary", "All settings, as overrides"), tag("pre", words, tabindex=0)),
    )


def _value(value: Any) -> str:
    import json

    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
