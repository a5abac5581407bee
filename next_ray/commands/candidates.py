"""What `python -m next_ray.extrapolate` does: open, fit, write every candidate, say what was written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from next_ray.checkpoints.atomic import check_target, new_folder
from next_ray.checkpoints.card import Lineage, Parent
from next_ray.checkpoints.export import fill_adapter, fill_merged
from next_ray.checkpoints.hashes import with_hashes
from next_ray.checkpoints.imported import Imported
from next_ray.checkpoints.merge import weight_shards
from next_ray.checkpoints.open import open_trajectory
from next_ray.commands.evaluators import load_evaluator
from next_ray.commands.progress import Progress, say, shown
from next_ray.commands.verify import verify_merged
from next_ray.commands.workers import with_sharded_triplets
from next_ray.config import ModelSection
from next_ray.delta.history import FactorHistory
from next_ray.errors import ConfigError
from next_ray.extrapolate.methods.common import require
from next_ray.extrapolate.methods.registry import make
from next_ray.extrapolate.plan import Evaluator, Extrapolator, Plans, Setting
from next_ray.extrapolate.proposals import candidate_name
from next_ray.inspect.analysis import default_horizon, with_triplets
from next_ray.models.resolve import prepare_model

VERIFIED_BYTES = 4 * 2**30
"""Merged models are compared with base + adapter up to this size of the base's files: two models in float32 are loaded for it."""


@dataclass(frozen=True)
class Method:
    """A method's name and settings as the user gave them."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """How to extrapolate. `alphas` None: every method's own grid; `horizon` None: a third of the checkpoints."""

    methods: tuple[Method, ...]
    alphas: tuple[float, ...] | None = None
    horizon: int | None = None
    seed: int = 0
    accuracies: Mapping[int, float] | None = None
    evaluator: str | None = None
    workers: int = 0
    segment: int | None = None
    endpoint_url: str | None = None


@dataclass(frozen=True)
class Target:
    """What to write, and where."""

    folder: Path
    base: str | None = None
    merge: bool = False
    rank: int | None = None
    dtype: str = "float32"
    verify: bool = True
    overwrite: bool = False
    nested: bool = False

    def place(self, root: Path, names: Sequence[str], name: str) -> Path:
        """The folder of a candidate: `root` itself where it is the only one, unless results are always `nested`."""
        return root if len(names) == 1 and not self.nested else root / name


@dataclass(frozen=True)
class Opened:
    """The checkpoints and what is to be done with them; `base` is the base's folder when models are merged."""

    imported: Imported
    horizon: int
    methods: tuple[tuple[Extrapolator, tuple[float, ...], Mapping[str, Any]], ...]
    base: Path | None

    @property
    def names(self) -> list[str]:
        """All candidates."""
        return [candidate_name(method.name, alpha) for method, alphas, _ in self.methods for alpha in alphas]


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
    opened = _open(paths, choice, target)
    trajectory, sources = opened.imported.trajectory, opened.imported.sources
    table = Table(title="dry run: nothing was written", title_justify="left", show_header=False, box=None)
    table.add_row("checkpoints", f"{len(sources)}, steps {sources[0].step} to {sources[-1].step} ({sources[0].format})")
    table.add_row("modules", f"{len(trajectory.modules)}, {opened.imported.kind}")
    table.add_row("base", f"{opened.imported.base.name or 'not named'}{f' in {opened.base}' if opened.base else ''}")
    table.add_row("horizon", f"{opened.horizon} checkpoint(s)")
    for method, alphas, settings in opened.methods:
        table.add_row(method.name, f"alpha {', '.join(f'{alpha:g}' for alpha in alphas)}; settings {dict(settings)}")
    form = "merged models" if target.merge else f"adapters, {f'rank {target.rank}' if target.rank else 'exact'}, {target.dtype}"
    table.add_row("would write", f"{form}: " + ", ".join(str(target.place(target.folder, opened.names, name)) for name in opened.names))
    return table


def extrapolate(paths: Sequence[str], choice: Choice, target: Target) -> Table:
    """Write all candidates, or nothing; returns the table of what was written.

    Raises:
        NextRayError: for whatever the user can mend; nothing was written then.
    """
    opened = _open(paths, choice, target)
    for note in opened.imported.notes:
        say(f"note: {note}")
    table = _table(target.merge)
    with shown() as progress, new_folder(target.folder, target.overwrite) as draft:
        progress("hashing the checkpoints", 0, None)
        imported = with_hashes(opened.imported)
        if any(_uses_triplets(method) for method, _, _ in opened.methods):
            imported = _with_triplets(paths, choice, imported, opened.horizon, progress)
        setting = Setting(opened.horizon, choice.seed, _evaluator(choice, target, opened))
        for method, alphas, settings in opened.methods:
            progress(f"fitting {method.name}", 0, None)
            fitted = method.fit(imported.trajectory, setting)
            if "abstains" in fitted.notes:
                say(f"note: {method.name} would rather not be used: {fitted.notes['abstains']}")
            for alpha in alphas:
                name = candidate_name(method.name, alpha)
                progress(f"writing {name}", 0, None)
                folder = target.place(draft, opened.names, name)
                folder.mkdir(exist_ok=True)
                lineage = _lineage(imported, method, settings, alpha, setting, fitted.notes)
                facts = _write(folder, fitted.at(alpha), imported, lineage, target, opened.base)
                _row(table, name, facts, folder, target.place(target.folder, opened.names, name))
    return table


def _open(paths: Sequence[str], choice: Choice, target: Target) -> Opened:
    check_target(target.folder, target.overwrite)
    _check_apart(paths, target.folder)
    imported = open_trajectory(paths, target.base, segment=choice.segment, endpoint_url=choice.endpoint_url)
    if choice.accuracies is not None:
        imported = imported.with_accuracies(choice.accuracies)
    if imported.kind == "dense" and not target.merge:
        raise ConfigError("These checkpoints are full models; what is extrapolated from them is a full model too. Add --merge.")
    trajectory = imported.trajectory
    horizon = choice.horizon if choice.horizon is not None else default_horizon(trajectory.num_checkpoints)
    if choice.workers < 0:
        raise ConfigError(f"--workers is a number of Ray workers and must be at least 0, got {choice.workers}.")
    if horizon < 1:
        raise ConfigError(f"--horizon must be at least 1 checkpoint, got {horizon}.")
    methods = []
    for wanted in choice.methods:
        method = make(wanted.name, **wanted.settings)
        require(method, trajectory, Setting(horizon, choice.seed, _asked if choice.evaluator else None))
        settings = asdict(method) if is_dataclass(method) else dict(wanted.settings)  # pyright: ignore[reportArgumentType]
        methods.append((method, choice.alphas or method.alphas, settings))
    if choice.evaluator:
        load_evaluator(choice.evaluator)
    return Opened(imported, horizon, tuple(methods), _base_folder(imported, target) if target.merge else None)


def _asked(plans: Plans) -> float:
    """Stands for the user's evaluator where only that there is one matters."""
    raise NotImplementedError


def _check_apart(paths: Sequence[str], folder: Path) -> None:
    """The output must not replace, or lie in, what it is made from."""
    for path in paths:
        if "://" in path:
            continue
        source, wanted = Path(path).expanduser().resolve(), folder.expanduser().resolve()
        if source == wanted or wanted in source.parents:
            raise ConfigError(f"--output {folder} holds the checkpoints {path} themselves. Choose another folder.")


def _base_folder(imported: Imported, target: Target) -> Path:
    if imported.base.path is not None:
        return imported.base.path
    if not imported.base.name:
        raise ConfigError("The checkpoints do not name their base model; a merged model needs it: add --base MODEL.")

    def train(spec: object, folder: Path) -> None:
        raise ConfigError("The tiny model is not in the cache. `python -m next_ray.run` makes it; or give its folder with --base.")

    return Path(prepare_model(ModelSection(name=target.base or imported.base.name), train).path)


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
            _write(folder, plans, opened.imported, lineage, target, opened.base, verify=False)
            return function(folder)

    return evaluate


def _write(
    folder: Path, plans: Plans, imported: Imported, lineage: Lineage, target: Target, base: Path | None, verify: bool = True
) -> dict[str, Any]:
    saved, trajectory = LastSaved(imported), imported.trajectory
    if base is None:
        return fill_adapter(folder, plans, trajectory, lineage, rank=target.rank, dtype=target.dtype, saved=saved)

    def check(draft: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="next_ray-verify-") as scratch:
            fill_adapter(Path(scratch), plans, trajectory, lineage, saved=saved)
            return {"verified": verify_merged(draft, base, Path(scratch), imported.renamed).logit_difference}

    small = sum(shard.stat().st_size for shard in weight_shards(base)) <= VERIFIED_BYTES
    wanted = target.verify and verify and small and _is_adapter(plans, imported)
    return fill_merged(folder, plans, trajectory, lineage, base, saved=saved, renamed=imported.renamed, check=check if wanted else None)


def _is_adapter(plans: Plans, imported: Imported) -> bool:
    """Whether an adapter says the same as the merged model, so that PEFT can be asked."""
    modules = imported.trajectory.modules
    return all(plan.drop is None and isinstance(modules[name], FactorHistory) for name, plan in plans.items())


def _parents(imported: Imported) -> tuple[Parent, ...]:
    return tuple(Parent(source.step, source.path, source.format, source.sha256) for source in imported.sources)


def _lineage(
    imported: Imported, method: Extrapolator, settings: Mapping[str, Any], alpha: float, setting: Setting, notes: Mapping[str, str]
) -> Lineage:
    return Lineage(
        base_name=imported.base.name,
        parents=_parents(imported),
        method=method.name,
        alpha=alpha,
        horizon=setting.horizon,
        seed=setting.seed,
        settings=settings,
        evidence=notes,
        base_fingerprint=imported.base.fingerprint,
    )


def _table(merge: bool) -> Table:
    table = Table(title="merged models" if merge else "adapters", title_justify="left")
    columns = ("changed", "lost to rounding", "logits off") if merge else ("rank", "truncation error", "vLLM max_lora_rank")
    for column in ("candidate", *columns, "MB", "folder"):
        table.add_column(column, justify="left" if column in ("candidate", "folder") else "right", overflow="fold")
    return table


def _row(table: Table, name: str, facts: Mapping[str, Any], folder: Path, place: Path) -> None:
    if facts["kind"] == "merged":
        verified = f"{facts['verified']:.1e}" if "verified" in facts else "not checked"
        own = (f"{facts['changed_entries'] / facts['touched_entries']:.1%}", f"{facts['rounding_error']:.1%}", verified)
    else:
        error = "exact" if facts["exact"] else f"{facts['truncation_error']:.2e}"
        own = (str(facts["rank"]), error, str(facts["vllm_max_lora_rank"] or "too wide"))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    table.add_row(name, *own, f"{size:.2f}", str(place))
