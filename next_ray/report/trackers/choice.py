"""The trackers that a run's configuration names: whether they can be used at all, and how they are made."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from next_ray.config import Config, ReportSection
from next_ray.errors import ConfigError
from next_ray.report.trackers.background import Background, Tracker
from next_ray.report.trackers.mlflow import MLflow
from next_ray.report.trackers.tensorboard import TensorBoard
from next_ray.report.trackers.wandb import WandB
from next_ray.settings.flat import flat


def check_trackers(section: ReportSection) -> None:
    """Raise `ConfigError`, before anything is started, for a tracker whose package or whose server is missing."""
    for name in section.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"report.trackers names {name}, and the package {name} is not installed. Install it in the environment of the driver "
                f"(pip install {name}; docs/trackers.md), or leave it out."
            )
    if "wandb" in section.trackers and not _wandb_can_log_in():
        raise ConfigError(
            "report.trackers names wandb, and nothing says who you are: set WANDB_API_KEY, run `wandb login`, or set "
            "WANDB_MODE=offline to write below the run's output folder and `wandb sync` it later."
        )
    if "mlflow" in section.trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "report.trackers names mlflow, and MLFLOW_TRACKING_URI does not say where its server is: set it to the server's URL, or to "
            "sqlite:////absolute/path/mlflow.db for a file. Credentials go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )


def _wandb_can_log_in() -> bool:
    """Whether W&B would start without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def make_trackers(config: Config, output: Path, run_id: str, say: Callable[[str], None]) -> list[Background]:
    """The chosen trackers, each in its thread; `run_id` makes a resumed run go on where it logged before."""
    section, name = config.report, config.run.name
    settings = dict(flat(config.model_dump(mode="json")))
    makers: Mapping[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(output / "tensorboard"),
        "wandb": lambda: WandB(section.project, name, run_id, settings, output),
        "mlflow": lambda: MLflow(section.project, name, run_id, settings),
    }
    return [Background(chosen, makers[chosen](), say) for chosen in section.trackers]
