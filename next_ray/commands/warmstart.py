"""`python -m next_ray.warmstart [JOB.yaml] key=value ...`: supervised fine-tuning that makes the model a run starts from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.words import JOB, job_and_overrides
from next_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from next_ray.actors.cluster import OpenCluster
    from next_ray.actors.supervised import FineTuned
    from next_ray.checkpoints.tensor_file import TensorFile
    from next_ray.config.warmstart import WarmstartConfig
    from next_ray.data.demonstrations import Demonstrations
    from next_ray.models.resolve import PreparedModel

RECORD_FILE = "next_ray_warmstart.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was written; run the same command again to start anew")


def _run(argv: Sequence[str] | None) -> None:
    words = parser().parse_intermixed_args(argv).job
    from next_ray.config.warmstart import WarmstartConfig
    from next_ray.settings import load_as

    warm_start(load_as(WarmstartConfig, *job_and_overrides(words)))


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "warmstart",
        "[JOB.yaml] [key=value ...]",
        "Supervised fine-tuning on demonstrations; the result is a model folder for model.name of a run.",
        ["data.path=solved.jsonl output=models/warm", "warm.yaml training.parameters=lora"],
    )
    parser.add_argument("job", nargs="*", metavar=JOB, help="a YAML file and settings that override it")
    return parser


def warm_start(config: WarmstartConfig) -> Path:
    """Do the whole job; returns the folder made.

    Raises `NextRayError` of the kind that fits: the output exists, demonstrations or model cannot be used, no place, training failed.
    """
    from next_ray.checkpoints.atomic import check_target, new_folder
    from next_ray.commands.progress import shown
    from next_ray.models.folder import cache_root
    from next_ray.run import protect_embedded_ray

    target = Path(config.output).expanduser().absolute()
    check_target(target)
    protect_embedded_ray(cache_root(config.model.cache_dir))
    from next_ray.actors.cluster import open_cluster

    # Only the tiny model needs Ray to be made; any other, and its data, are checked before anything is started.
    with (
        shown() as progress,
        new_folder(target) as draft,
        tempfile.TemporaryDirectory(prefix=f".{target.name}.weights-", dir=target.parent) as scratch,
    ):
        progress("reading model and demonstrations", 0, None)
        found = None if config.model.name == "tiny" else _prepare(config)
        progress("opening Ray", 0, None)
        with open_cluster(config.cluster, f"next_ray-warmstart-{target.name}", config.training.ranks) as cluster:
            model, data = found or _prepare(config)
            print(data.report, flush=True)
            progress(f"fine-tuning on {len(data.train)} demonstrations", 0, None)
            tuned, dtype = _fine_tune(config, model, data, cluster, Path(scratch))
        _print_table(tuned)
        progress("writing the model", 0, None)
        record = _assemble(draft, config, model, tuned) | {"data": data.report, "dtype": dtype}
        (draft / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {target}; use it with: python -m next_ray.run model.name={target}")
    return target


def _prepare(config: WarmstartConfig) -> tuple[PreparedModel, Demonstrations]:
    from next_ray.actors.warmstart import train_tiny_with_ray
    from next_ray.data.demonstrations import load_demonstrations
    from next_ray.data.prepare import load_tokenizer
    from next_ray.models.resolve import prepare_model

    model = prepare_model(config.model, train_tiny_with_ray)
    if config.data.max_tokens > model.max_positions:
        raise ConfigError(
            f"data.max_tokens={config.data.max_tokens}, but {model.name} reads at most {model.max_positions} tokens. Lower it to that."
        )
    tokenizer = load_tokenizer(model.path, config.model.trust_remote_code)
    return model, load_demonstrations(config.data, tokenizer, config.seed)


def _fine_tune(
    config: WarmstartConfig, model: PreparedModel, data: Demonstrations, cluster: OpenCluster, scratch: Path
) -> tuple[FineTuned, str]:
    from next_ray.actors.shipping import place_of, shipped
    from next_ray.actors.supervised import FineTuningJob, fine_tune_with_ray
    from next_ray.precision import native_dtype

    training = config.training
    if training.dtype == "auto":
        training = training.model_copy(update={"dtype": native_dtype(cluster.device)})
    job = FineTuningJob(
        place=place_of(config.model, model),
        files=shipped(model),
        training=training,
        seed=config.seed,
        deterministic=config.deterministic,
        device=cluster.device,
        train=[(row.prompt, row.completion) for row in data.train],
        held_out=[(row.prompt, row.completion) for row in data.held_out],
    )
    return fine_tune_with_ray(job, config.storage or str(scratch), scratch / "result"), training.dtype


def _assemble(draft: Path, config: WarmstartConfig, model: PreparedModel, tuned: FineTuned) -> dict[str, Any]:
    """Fill `draft` with the base in its own dtype, the trained weights added or put in as float32 and rounded once."""
    import numpy as np

    from next_ray.checkpoints.headers import open_safetensors
    from next_ray.checkpoints.merge import write_merged
    from next_ray.delta.trajectory import WeightTrajectory, from_adapters
    from next_ray.extrapolate.plan import ModulePlan
    from next_ray.types import LoraFactors

    file, base = open_safetensors(tuned.weights), Path(model.path)
    if config.training.parameters == "lora":
        lora = config.training.lora
        names = sorted(name.removesuffix(".lora_A") for name in file.entries if name.endswith(".lora_A"))
        adapter = {n: LoraFactors(file.read(f"{n}.lora_A"), file.read(f"{n}.lora_B"), lora.alpha / lora.rank) for n in names}
        plans = {name: ModulePlan(weights=np.ones(1)) for name in names}
        report = write_merged(draft, plans, from_adapters([tuned.steps], [adapter]), base)
    else:
        report = write_merged(draft, {}, WeightTrajectory((tuned.steps,), {}), base, saved=_Stored(file))
    return {
        "base": {"name": model.name, "revision": model.revision, "fingerprint": model.fingerprint},
        "config": config.model_dump(mode="json"),
        "steps": tuned.steps,
        "held_out_loss": [{"step": step, "loss": loss} for step, loss in tuned.held_out],
        "metrics": tuned.rows,
        "changed_entries": report.changed_entries,
        "entries": report.entries,
        "files": report.files,
    }


@dataclass(frozen=True)
class _Stored(Mapping[str, Any]):
    """A file's tensors, float32, read when they are asked for."""

    file: TensorFile

    def __getitem__(self, name: str) -> np.ndarray:
        return self.file.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.entries)

    def __len__(self) -> int:
        return len(self.file.entries)


def _print_table(tuned: FineTuned) -> None:
    for row in tuned.rows:
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        print(f"step {int(row['step'])}/{tuned.steps}  {text}")
