"""An inspection as plain data for a JSON file: every number, null where there is none, never NaN.

`SCHEMA` names the layout; its number rises when a key goes or changes its meaning, not when one is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

from next_ray.inspect.analysis import Inspection, ModuleInspection
from next_ray.inspect.backtest import Backtest, MethodBacktest
from next_ray.inspect.directions import Angles
from next_ray.inspect.energy import Energy
from next_ray.inspect.linearity import STRONG, Linearity
from next_ray.inspect.movement import Movement
from next_ray.inspect.summaries import GroupSummary, summaries

SCHEMA = "next_ray.inspect/2"

RANGES = ("below -0.5", "-0.5 to 0", "0 to 0.5", "0.5 to 1")


def document(inspection: Inspection, origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything of an inspection; `origin` (base, sources) is put under `trajectory`. Angles are degrees, `steps` training steps."""
    found = {
        "schema": SCHEMA,
        "verdict": {**asdict(inspection.verdict), "worth_it": inspection.verdict.worth_it},
        "trajectory": {
            "kind": inspection.kind,
            "steps": inspection.steps,
            "num_modules": len(inspection.modules),
            "notes": inspection.notes,
            **(origin or {}),
        },
        "movement": _movement(inspection.movement, inspection),
        "linearity": {
            "fitted_checkpoints": inspection.num_train,
            "random_walk": {"ahead": _linearity(inspection.walk_ahead), "within": _linearity(inspection.walk_within)},
        },
        "groups": {group.name: _group(group) for group in summaries(inspection)},
        "modules": {module.name: _module(module, inspection) for module in inspection.modules},
        "backtest": _backtest(inspection.backtest),
    }
    return plain(found)


def plain(value: Any) -> Any:
    """Lists, dicts, texts, numbers, booleans and None alone; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    return number if not isinstance(number, float) or math.isfinite(number) else None


def _movement(movement: Movement, inspection: Inspection) -> dict[str, Any]:
    return {
        "step_lengths": list(movement.lengths),
        "distances_from_base": [square**0.5 for square in movement.square_norms],
        "cosines_of_successive_steps": movement.turns,
        "straightness": movement.straightness,
        "recent_speed": movement.recent_speed(min(inspection.horizon, len(inspection.steps)), inspection.steps),
    }


def _group(group: GroupSummary) -> dict[str, Any]:
    return {
        "num_modules": group.modules,
        "energy": group.energy,
        "random": group.random,
        "floor": group.floor,
        "angles": {"global": [_angles(a) for a in group.global_], "local": [_angles(a) for a in group.local]},
        "sign_flips": {"flips": group.flips, "pairs": group.pairs},
        "straightness": group.straightness,
        "r2": {"ahead": _linearity(group.ahead), "within": _linearity(group.within)},
    }


def _module(module: ModuleInspection, inspection: Inspection) -> dict[str, Any]:
    return {
        "group": module.group,
        "layer": module.layer,
        "shape": module.shape,
        "energy": [_energy(energy) for energy in module.energy],
        "random": [_energy(energy) for energy in module.random],
        "angles": {
            "global": [_angles(a) for a in module.directions.global_],
            "local": [_angles(a) for a in module.directions.local],
        },
        "sign_flips": {"flips": module.directions.flips, "pairs": module.directions.pairs},
        "movement": _movement(module.movement, inspection),
        "r2": {"ahead": _linearity(module.ahead), "within": _linearity(module.within), "all_entries": module.exact},
    }


def _energy(energy: Energy) -> dict[str, Any]:
    return {**asdict(energy), "floor": energy.floor}


def _angles(angles: Angles | None) -> dict[str, float] | None:
    return asdict(angles) if angles is not None else None


def _linearity(found: Linearity | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "shares": dict(zip(RANGES, found.shares, strict=True)),
        "pooled": found.pooled,
        f"share_above_{STRONG}": found.strong,
        "entries": found.entries,
        "constant_entries": found.constant,
    }


def _backtest(results: Backtest) -> dict[str, Any]:
    return {
        "horizon": results.horizon,
        "origins": results.origins,
        "methods": {method.name: _method(method, results.horizon) for method in results.methods},
    }


def _method(method: MethodBacktest, horizon: int) -> dict[str, Any]:
    if method.skipped is not None:
        return {"skipped": method.skipped}
    best = method.best_alpha
    assert best is not None
    shown = method.forecast if method.forecast is not None else best
    return {
        "skipped": None,
        "forecast_alpha": method.forecast,
        "forecast_error": method.forecast_error,
        "tuned_error": method.tuned_error(horizon),
        "claimed_where_tuned": method.claimed_where_tuned(horizon),
        "tuned_alphas": {score.origin: score.alpha for score in method.tuned(horizon)},
        "hindsight_alpha": best,
        "hindsight_error": method.error(best),
        "mean_over_modules": method.mean_error(shown),
        "groups": {"alpha": shown, "errors": method.groups(shown)},
        "scores": [asdict(score) for score in method.scores],
    }
