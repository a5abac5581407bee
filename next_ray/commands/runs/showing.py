"""`next-ray runs show RUN`: one run, as its store tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.runs.opening import RUN_HELP, add_store_options, opened

if TYPE_CHECKING:
    from next_ray.store.checkpoints import CheckpointStore


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and show; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was changed")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "runs show",
        "RUN [options]",
        "One run: its model, state and lineage, its checkpoints, how good its models are, and what came of every attempt to jump.",
        ["tiny", "s3://bucket/runs/tiny --json", "tiny --config > again.yaml"],
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_store_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON, the configuration too")
    parser.add_argument("--config", action="store_true", help="print the configuration alone, as a job file")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.commands.progress import shown
    from next_ray.commands.runs.text import show, show_json

    with opened(arguments.run, arguments) as store:
        if arguments.config:
            print(job_of(store), end="")
            return
        with shown() as progress:
            progress(f"reading {store.url}", 0, None)
            found = whole(store)
        if arguments.json:
            show_json(found)
        else:
            show(*_parts(found))


def job_of(store: CheckpointStore) -> str:
    """The YAML file that a run was last started with, every key spelled out; raises `StoreError` when its store does not say."""
    from next_ray.config import Config
    from next_ray.errors import StoreError
    from next_ray.settings import to_yaml
    from next_ray.store.layout import CONFIG

    kept = (store.get_json(CONFIG) or {}).get("config")
    if kept is None:
        raise StoreError(
            f"{store.url} keeps no configuration: an earlier version of next_ray wrote it. Use the job file it was started with."
        )
    try:
        return to_yaml(Config.model_validate_json(json.dumps(kept), strict=True))
    except ValueError:
        raise StoreError(f"The configuration that {store.url} keeps is not one of this version. `--json` shows it as it is.") from None


def whole(store: CheckpointStore) -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    from next_ray.commands.runs.facts import facts_of, final_table
    from next_ray.store.layout import ATTEMPTS, CONFIG, FORKED

    manifests = store.manifests()
    attempts = [store.get_json(path) for path in store.list_json(ATTEMPTS)]
    return {
        "url": store.url,
        **facts_of(store).to_json(),
        "identity": dict(store.identity()),
        FORKED: store.get_json(FORKED),
        "models": (final_table(store, store.latest()) or {}).get("models", []),
        "attempts": attempts,
        "checkpoints": [
            {
                "id": manifest.id,
                "created_at": manifest.created_at,
                "size_bytes": sum(entry.size_bytes for entry in manifest.objects.values()),
                "parents": list(manifest.parents),
            }
            for manifest in manifests
        ],
        "config": (store.get_json(CONFIG) or {}).get("config"),
    }


def _parts(found: Mapping[str, Any]) -> Iterator[Any]:
    from next_ray.commands.runs.text import accuracy, new_table, size

    facts = new_table(None, "", "")
    for name, value in _facts(found):
        facts.add_row(name, value)
    facts.show_header = False
    yield facts
    if found["models"]:
        table = new_table("\nModels", "model", "steps", "avg@k [95 %]", "pass@k [95 %]", right=("steps",))
        for model in found["models"]:
            table.add_row(model["label"], str(model["steps"]), accuracy(model["avg_at_k"]), accuracy(model["pass_at_k"]))
        yield table
    if found["attempts"]:
        table = new_table("\nAttempts to jump", "step", "outcome", "why", right=("step",))
        for attempt in found["attempts"]:
            decision = attempt.get("decision") or {}
            table.add_row(str(attempt.get("step")), outcome(attempt), str(attempt.get("why") or decision.get("reason") or ""))
        yield table
    table = new_table("\nCheckpoints", "id", "committed", "size", "made from", right=("size",))
    for one in found["checkpoints"]:
        table.add_row(one["id"], one["created_at"], size(one["size_bytes"]), ", ".join(one["parents"]))
    yield table if found["checkpoints"] else "No checkpoint yet."


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from next_ray.commands.runs.text import accuracy, size
    from next_ray.store.layout import FORKED

    identity = found["identity"]
    yield "run", found["url"]
    by = f", by {found['detail']}" if found["detail"] else ""
    yield "state", f"{found['state']}{by}, {found['steps']} steps, {size(found['size_bytes'])}"
    rank = identity.get("lora_rank")
    yield "model", f"{identity.get('model', 'unknown')}, {f'LoRA of rank {rank}' if rank else 'all weights'}"
    yield "accuracy", accuracy(found["accuracy"])
    if origin := found[FORKED]:
        yield "forked from", f"{origin['run']}@{origin['checkpoint']}"


def outcome(attempt: Mapping[str, Any]) -> str:
    """What came of an attempt to jump, in a few words."""
    accepted = (attempt.get("decision") or {}).get("accepted")
    if not accepted:
        return "refused"
    return f"{accepted}, taken back at step {attempt['rolled_back']}" if "rolled_back" in attempt else str(accepted)
