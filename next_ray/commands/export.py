"""What `python -m next_ray.export` does: a checkpoint becomes a PEFT folder, or a model folder where all weights were trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser

RECORD_FILE = "next_ray_export.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and export; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was written")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.commands.progress import shown

    with shown() as progress:
        progress(f"exporting {arguments.run}", 0, None)
        record = export(arguments.run, arguments.folder, arguments.base, arguments.dtype, arguments.endpoint_url)
    print(f"{record['kind']} of step {record['step']} ({record['checkpoint']}, {record['dtype']}) in {arguments.folder}")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "export",
        "RUN[@STEP] FOLDER [options]",
        "A checkpoint of a run as a folder to use elsewhere: a PEFT adapter, or a model where all weights were trained.",
        ["~/.cache/next_ray/store/tiny my-adapter", "s3://bucket/runs/tiny@24-jumped my-adapter"],
    )
    parser.add_argument("run", metavar="RUN[@STEP]", help="the run's folder or URL; @24 or @24-jumped: that step, else the newest")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to make; it must not exist")
    parser.add_argument("--base", metavar="MODEL", help="folder or name of the model that training started from; else what the run says")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of full weights (bfloat16); adapters stay float32")
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 server other than AWS")
    return parser


def export(place: str, folder: Path, base: str | None = None, dtype: str | None = None, endpoint_url: str | None = None) -> dict[str, Any]:
    """Write the folder and, in `RECORD_FILE`, where it comes from; returns that record.

    Raises:
        StoreError: the run cannot be read, or the folder exists.
        CheckpointFormatError: there is no such checkpoint, or the base is another model.
        ModelError: the base is not to be had.
    """
    from next_ray.adapter import write_peft_folder
    from next_ray.checkpoints.atomic import check_target, new_folder
    from next_ray.checkpoints.open import run_and_checkpoint
    from next_ray.checkpoints.whole import fill_model
    from next_ray.commands.contestants import base_of, checkpoint_of
    from next_ray.commands.runs.opening import located
    from next_ray.errors import ConfigError

    check_target(folder)
    run, wanted = run_and_checkpoint(located(place))
    with checkpoint_of(run, wanted, endpoint_url) as (store, manifest):
        whole = manifest.is_whole
        if dtype is not None and not whole:
            raise ConfigError(f"--dtype is for full weights; {manifest.id} is an adapter, which stays float32.")
        model = base_of(store, manifest, base, "--base FOLDER") if whole else None
        record = {
            "kind": "full model" if whole else "adapter",
            "run": store.run,
            "checkpoint": manifest.id,
            "step": manifest.step,
            "base": base or store.identity().get("model"),
            "base_fingerprint": manifest.base_fingerprint,
            "dtype": (dtype or "bfloat16") if whole else "float32",
        }
        with new_folder(folder) as draft:
            if model is not None:
                fill_model(draft, store.load_weights(manifest), Path(model.path), record["dtype"])
            else:
                write_peft_folder(store.load_adapter(manifest), draft, str(record["base"] or ""))
            (draft / RECORD_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return record
