"""What `python -m next_ray.extrapolate` does: open, fit, write every candidate, say what was written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from next_ray.checkpoints.atomic import new_folder
from next_ray.checkpoints.card import Lineage, Parent
from next_ray.checkpoints.export import Result, fill_adapter, fill_merged
from next_ray.checkpoints.hashes import with_hashes
from next_ray.checkpoints.imported import Imported
from next_ray.checkpoints.merge import weight_shards
from next_ray.commands.evaluators import load_evaluator
from next_ray.commands.opening import Chosen, Opened, open_request
from next_ray.commands.progress import Progress, say, shown
from next_ray.commands.request import Choice, Target
from next_ray.commands.verify import verify_merged
from next_ray.commands.workers import with_sharded_triplets
from next_ray.delta.history import FactorHistory
from next_ray.extrapolate.plan import Evaluator, Extrapolator, Plans, Setting
from next_ray.extrapolate.proposals import candidate_name

VERIFIED_BYTES = 4 * 2**30
"""Merged models are compared with base + adapter up to this size of the base's files: two models in float32 are loaded for it."""


class LastSaved(Mapping[str, np.ndarray]):
    """What the last checkpoint holds whole, read when it is asked for."""

    def __init__(self, imported: Imported) -> None:
        self._saved, self._index = imported.saved, imported.trajectory.num_checkpoints

    def __getitem__(self, name: str) -> np.ndarray:
        return self._saved.load(self._index, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._saved.names)

    def __len__(self) -> int:
        return len(self._saved.names)


def plan(paths: Sequence[str], choice: Choice, target: Target) -> Table:
    """What `extrapolate` would do, as a table; raises what it would raise before the first fit."""
    opened = open_request(paths, choice, target)
    trajectory, sources = opened.imported.trajectory, opened.imported.sources
    table = Table(title="dry run: nothing was written", title_justify="left", show_header=False, box=None)
    table.add_row("checkpoints", f"{len(sources)}, steps {sources[0].step} to {sources[-1].step} ({sources[0].format})")
    table.add_row("modules", f"{len(trajectory.modules)}, {opened.imported.kind}")
    table.add_row("base", f"{opened.imported.base.name or 'not named'}{f' in {opened.base}' if opened.base else ''}")
    table.add_row("horizon", f"{opened.horizon} checkpoint(s)")
    for chosen in opened.chosen:
        alphas = ", ".join(f"{alpha:g}" for alpha in chosen.alphas)
        table.add_row(chosen.method.name, f"alpha {alphas}; settings {dict(chosen.settings)}")
    width = f"rank {opened.rank}" if opened.rank else "as wide as exactness needs"
    form = "merged models" if target.merge else f"adapters, {width}, {target.dtype}"
    table.add_row("would write", f"{form}: " + ", ".join(str(target.place(target.folder, opened.names, name)) for name in opened.names))
    for note in opened.notes:
        table.add_row("note", note)
    return table


def extrapolate(paths: Sequence[str], choice: Choice, target: Target) -> Table:
    """Write all candidates, or nothing; returns the table of what was written.

    Raises:
        NextRayError: for whatever the user can mend; nothing was written then.
    """
    opened = open_request(paths, choice, target)
    for note in opened.notes:
        say(f"note: {note}")
    table = _table(target.merge)
    with shown() as progress, new_folder(target.folder, target.overwrite) as draft:
        progress("hashing the checkpoints", 0, None)
        opened = replace(opened, imported=with_hashes(opened.imported))
        if any(_uses_triplets(chosen.method) for chosen in opened.chosen):
            opened = replace(opened, imported=_with_triplets(paths, choice, opened.imported, opened.horizon, progress))
        setting = Setting(opened.horizon, choice.seed, _evaluator(choice, target, opened))
        for chosen in opened.chosen:
            progress(f"fitting {chosen.method.name}", 0, None)
            fitted = chosen.method.fit(opened.imported.trajectory, setting)
            if "abstains" in fitted.notes:
                say(f"note: {chosen.method.name} would rather not be used: {fitted.notes['abstains']}")
            for alpha in chosen.alphas:
                name = candidate_name(chosen.method.name, alpha)
                progress(f"writing {name}", 0, None)
                folder = target.place(draft, opened.names, name)
                folder.mkdir(exist_ok=True)
                lineage = _lineage(opened.imported, chosen, alpha, setting, fitted.notes)
                facts = _write(folder, fitted.at(alpha), opened, lineage, target)
                _row(table, name, facts, folder, target.place(target.folder, opened.names, name))
    return table


def _uses_triplets(method: Extrapolator) -> bool:
    return method.name.startswith("next") or method.name == "alpharl"


def _with_triplets(paths: Sequence[str], choice: Choice, imported: Imported, horizon: int, progress: Progress) -> Imported:
    """The import with its triplets known, computed here or by Ray workers that open the paths themselves."""
    if choice.workers:
        progress(f"singular triplets on {choice.workers} workers", 0, None)
        base = str(imported.base.path) if imported.base.path is not None else None
        here = [path if "://" in path else str(Path(path).expanduser().absolute()) for path in paths]
        trajectory = with_sharded_triplets(imported.trajectory, horizon, choice.workers, here, base, choice.segment, choice.endpoint_url)
        return replace(imported, trajectory=trajectory)
    from next_ray.inspect.analysis import with_triplets  # not before the request is known to be in order

    return replace(imported, trajectory=with_triplets(imported.trajectory, horizon, progress))


def _evaluator(choice: Choice, target: Target, opened: Opened) -> Evaluator | None:
    """The user's function of a folder as a function of plans."""
    if choice.evaluator is None:
        return None
    function = load_evaluator(choice.evaluator)

    def evaluate(plans: Plans) -> float:
        with tempfile.TemporaryDirectory(prefix="next_ray-candidate-") as scratch:
            folder = Path(scratch) / "candidate"
            folder.mkdir()
            lineage = Lineage(opened.imported.base.name, _parents(opened.imported), "candidate", 1.0, opened.horizon)
            _write(folder, plans, opened, lineage, target, verify=False)
            return function(folder)

    return evaluate


def _write(folder: Path, plans: Plans, opened: Opened, lineage: Lineage, target: Target, verify: bool = True) -> dict[str, Any]:
    imported, base = opened.imported, opened.base
    result = Result(plans, imported.trajectory, lineage, LastSaved(imported), imported.renamed)
    if base is None:
        return fill_adapter(folder, result, rank=opened.rank, dtype=target.dtype)

    def check(draft: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="next_ray-verify-") as scratch:
            fill_adapter(Path(scratch), result)
            return {"verified": verify_merged(draft, base, Path(scratch), imported.renamed).logit_difference}

    small = sum(shard.stat().st_size for shard in weight_shards(base)) <= VERIFIED_BYTES
    wanted = target.verify and verify and small and _is_adapter(plans, imported)
    return fill_merged(folder, result, base, check if wanted else None)


def _is_adapter(plans: Plans, imported: Imported) -> bool:
    """Whether an adapter says the same as the merged model, so that PEFT can be asked."""
    modules = imported.trajectory.modules
    return all(plan.drop is None and isinstance(modules[name], FactorHistory) for name, plan in plans.items())


def _parents(imported: Imported) -> tuple[Parent, ...]:
    return tuple(Parent(source.step, source.path, source.format, source.sha256) for source in imported.sources)


def _lineage(imported: Imported, chosen: Chosen, alpha: float, setting: Setting, notes: Mapping[str, str]) -> Lineage:
    return Lineage(
        base_name=imported.base.name,
        parents=_parents(imported),
        method=chosen.method.name,
        alpha=alpha,
        horizon=setting.horizon,
        seed=setting.seed,
        settings=chosen.settings,
        evidence=notes,
        base_fingerprint=imported.base.fingerprint,
    )


def _table(merge: bool) -> Table:
    table = Table(title="merged models" if merge else "adapters", title_justify="left")
    columns = ("changed", "lost to rounding", "logits off") if merge else ("rank", "truncated", "rounded", "vLLM max_lora_rank")
    for column in ("candidate", *columns, "MB", "folder"):
        table.add_column(column, justify="left" if column in ("candidate", "folder") else "right", overflow="fold")
    return table


def _row(table: Table, name: str, facts: Mapping[str, Any], folder: Path, place: Path) -> None:
    if facts["kind"] == "merged":
        verified = f"{facts['verified']:.1e}" if "verified" in facts else "not checked"
        own = (f"{facts['changed_entries'] / facts['touched_entries']:.1%}", f"{facts['rounding_error']:.1%}", verified)
    else:
        cut = "exact" if facts["exact"] else _share(facts["truncation_error"])
        own = (str(facts["rank"]), cut, _share(facts["rounding_error"]), str(facts["vllm_max_lora_rank"] or "too wide"))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    table.add_row(name, *own, f"{size:.2f}", str(place))


def _share(value: float) -> str:
    return f"{value:.1e}" if value else "0"
