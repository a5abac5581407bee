"""Before anything is fitted or written: the checkpoints are opened, and everything that was asked for is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from next_ray.checkpoints.atomic import check_target
from next_ray.checkpoints.discover import step_folder
from next_ray.checkpoints.imported import Imported
from next_ray.checkpoints.open import is_run, open_trajectory
from next_ray.commands.evaluators import load_evaluator
from next_ray.commands.request import Choice, Target
from next_ray.errors import ConfigError, ModelError
from next_ray.extrapolate.methods.common import require
from next_ray.extrapolate.methods.registry import make
from next_ray.extrapolate.plan import Extrapolator, Plans, Setting
from next_ray.extrapolate.proposals import candidate_name

FAR = 100.0
"""An alpha beyond this many horizons is remarked: no trajectory is straight for so long."""


@dataclass(frozen=True)
class Chosen:
    """A method with its settings and how far it is to go."""

    method: Extrapolator
    alphas: tuple[float, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """The checkpoints and what is to be done with them.

    Args:
        imported: the checkpoints.
        horizon: in checkpoints.
        chosen: every method once.
        rank: of the adapters; None: as wide as exactness needs.
        base: the base's folder when models are merged.
        notes: what the user should know before anything is done.
    """

    imported: Imported
    horizon: int
    chosen: tuple[Chosen, ...]
    rank: int | None
    base: Path | None
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All candidates."""
        return [candidate_name(chosen.method.name, alpha) for chosen in self.chosen for alpha in chosen.alphas]


def open_request(paths: Sequence[str], choice: Choice, target: Target) -> Opened:
    """Open the checkpoints for what is wanted; raises `NextRayError` for whatever the user can mend, the cheap checks first."""
    if choice.workers < 0:
        raise ConfigError(f"--workers is a number of Ray workers and must be at least 0, got {choice.workers}.")
    if choice.horizon is not None and choice.horizon < 1:
        raise ConfigError(f"--horizon must be at least 1 checkpoint, got {choice.horizon}.")
    made = [(make(wanted.name, **wanted.settings), wanted.settings) for wanted in choice.methods]
    chosen = tuple(
        Chosen(method, choice.alphas or method.alphas, asdict(method) if is_dataclass(method) else dict(settings))  # pyright: ignore[reportArgumentType]
        for method, settings in made
    )
    check_target(target.folder, target.overwrite)
    imported = open_trajectory(paths, target.base, segment=choice.segment, endpoint_url=choice.endpoint_url)
    _check_apart(paths, imported, target.folder)
    if choice.accuracies is not None:
        imported = imported.with_accuracies(choice.accuracies)
    if imported.kind == "dense" and not target.merge:
        raise ConfigError("These checkpoints are full models; what is extrapolated from them is a full model too. Add --merge.")
    horizon = choice.horizon if choice.horizon is not None else _default_horizon(imported)
    for one in chosen:
        require(one.method, imported.trajectory, Setting(horizon, choice.seed, _asked if choice.evaluator else None))
    if choice.evaluator:
        load_evaluator(choice.evaluator)
    rank, notes = _possible_rank(target.rank, imported)
    notes += [_far(alpha) for alpha in dict.fromkeys(alpha for one in chosen for alpha in one.alphas) if abs(alpha) > FAR]
    base = _base_folder(imported, target) if target.merge else None
    return _distinct(Opened(imported, horizon, chosen, rank, base, (*imported.notes, *notes)))


def _default_horizon(imported: Imported) -> int:
    from next_ray.inspect.analysis import default_horizon  # no mistake should wait for torch

    return default_horizon(imported.trajectory.num_checkpoints)


def _asked(plans: Plans) -> float:
    """Stands for the user's evaluator where only that there is one matters."""
    raise NotImplementedError


def _check_apart(paths: Sequence[str], imported: Imported, folder: Path) -> None:
    """The output must not replace, or lie in, what it is made from."""
    wanted = folder.expanduser().resolve()
    for path in paths:
        if "://" in path:
            continue
        source = Path(path).expanduser().resolve()
        if source == wanted or wanted in source.parents:
            raise ConfigError(f"--output {folder} holds the checkpoints {path} themselves. Choose another folder.")
        if is_run(path) and source in wanted.parents:
            raise ConfigError(f"--output {folder} lies inside the run {path}. Choose another folder.")
    for source in imported.sources:
        own = step_folder(Path(source.path)).resolve()
        if own == wanted or own in wanted.parents:
            raise ConfigError(f"--output {folder} lies inside the checkpoint {own}. Choose another folder.")


def _possible_rank(rank: int | None, imported: Imported) -> tuple[int | None, list[str]]:
    """The rank wanted, as far as any module can have it."""
    widest = max((min(module.shape) for module in imported.trajectory.modules.values()), default=0)
    if rank is None or rank <= widest:
        return rank, []
    return widest, [f"No module can have rank {rank}: the adapters get rank {widest}, the most that the modules' sizes allow."]


def _far(alpha: float) -> str:
    return f"alpha {alpha:g} goes further than {FAR:g} horizons; hardly any trajectory goes on like that, so evaluate the result with care."


def _distinct(opened: Opened) -> Opened:
    if twice := sorted({name for name in opened.names if opened.names.count(name) > 1}):
        raise ConfigError(f"Several alphas give the candidate {twice[0]}: their first six digits are the same. Leave one of them out.")
    return opened


def _base_folder(imported: Imported, target: Target) -> Path:
    if imported.base.path is not None:
        return imported.base.path
    name = target.base or imported.base.name
    if not name:
        raise ConfigError("The checkpoints do not name their base model; a merged model needs it: add --base FOLDER.")
    from next_ray.config import ModelSection
    from next_ray.models.resolve import prepare_model

    def train(spec: object, folder: Path) -> None:
        raise ConfigError("The tiny model is not in the cache. `python -m next_ray.run` makes it; or give its folder: --base FOLDER.")

    try:
        return Path(prepare_model(ModelSection(name=name), train).path)
    except ModelError as error:
        # Its own words are about the settings of a job.
        cause = str(error.__cause__ or "there is no such folder").strip().splitlines()[0]
        raise ModelError(
            f"The base {name!r} is not here and could not be fetched ({cause}). Give the folder of the model that training started from: "
            "--base FOLDER."
        ) from error
