"""The model that training started from: named alike by all checkpoints, and of the sizes that the adapters need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from next_ray.checkpoints.adapters import StoredAdapter
from next_ray.checkpoints.documents import read_json
from next_ray.checkpoints.imported import Base
from next_ray.checkpoints.models import CONFIG_FILE, HEAD, StoredModel, open_model_folder
from next_ray.errors import CheckpointFormatError
from next_ray.models.folder import cache_root, fingerprint

VARIANTS = (
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
    ("", "model."),
    ("model.", ""),
)
"""How a module's name in the running model and its tensor's name in the base's files may differ (text towers of larger models)."""


@dataclass(frozen=True)
class CheckedBase:
    """The base, its headers where it is here, and what was noticed."""

    base: Base
    model: StoredModel | None
    notes: tuple[str, ...]


def find_base(given: str | None, named: Mapping[str, str], known_fingerprint: str | None = None) -> CheckedBase:
    """Decide which model is the base.

    Args:
        given: the user's word, a folder or a name; None: what the checkpoints say.
        named: origin (a file) to the base's name there.
        known_fingerprint: the base's fingerprint where a store recorded it.

    Raises:
        CheckpointFormatError: checkpoints name different models, or another one than the user; the folder is another model's.
    """
    stated = _one_name(named)
    name = given or stated
    folder = _model_folder(name)
    if given is not None and folder is None:
        if Path(given).expanduser().exists() or given.startswith(("/", ".", "~")):
            raise CheckpointFormatError(f"The base {given} is no model folder: it has no config.json.")
        if stated and given != stated:
            raise CheckpointFormatError(f"The checkpoints were trained from {stated!r} ({next(iter(named))}), not from {given!r}.")
    if folder is None:
        absent = f"The base {name!r} is not here: sizes and content were not compared." if name else "No checkpoint names its base model."
        return CheckedBase(Base(name, None, known_fingerprint), None, (absent,))
    model = open_model_folder(folder)
    if known_fingerprint is not None and (found := base_fingerprint(model)) != known_fingerprint:
        raise CheckpointFormatError(
            f"The base {folder} has fingerprint {found[:12]}, but the checkpoints were trained from {known_fingerprint[:12]} "
            f"({stated or 'a model without name'}). Give the folder of that model (--base FOLDER)."
        )
    notes: list[str] = []
    theirs = _full_precision(stated)
    if theirs is not None and not _same_model(theirs, folder):
        raise CheckpointFormatError(f"The base {folder} is another model than {theirs}, which the checkpoints name: their contents differ.")
    if stated and theirs is None and known_fingerprint is None and Path(stated).name != folder.name:
        notes.append(f"The checkpoints name their base {stated!r}; that {folder} is this model is your word, only sizes were compared.")
    return CheckedBase(Base(name, folder, known_fingerprint), model, tuple(notes))


def match_adapter(adapter: StoredAdapter, model: StoredModel) -> dict[str, str]:
    """Module to tensor name, where it is not `<module>.weight`; raises `CheckpointFormatError` when a module has no weight of its size."""
    variants: list[Callable[[str], str]] = [str, *(_variant(old, new) for old, new in VARIANTS)]
    misses: list[list[str]] = []
    for variant in variants:
        tensors = {module: f"{variant(module)}.weight" for module in adapter.pairs}
        missed = [module for module, name in tensors.items() if name not in model.places or model.shape(name) != adapter.shape(module)]
        if not missed:
            return {module: name for module, name in tensors.items() if name != f"{module}.weight"}
        misses.append(missed)
    module = misses[0][0]
    found = f"{list(model.shape(f'{module}.weight'))} there" if f"{module}.weight" in model.places else "not there"
    raise CheckpointFormatError(
        f"{adapter.file.path} does not fit the base {model.folder}: module {module!r} is {list(adapter.shape(module))} in the adapter and "
        f"{found} ({len(misses[0])} of {len(adapter.pairs)} modules do not fit). Give the adapter's own base (--base FOLDER)."
    )


def match_saved(adapter: StoredAdapter, model: StoredModel) -> list[str]:
    """Notes about tensors saved whole; raises `CheckpointFormatError` for those that the base cannot take."""
    for name, own in adapter.saved.items():
        shape = adapter.file.entries[own].shape
        if model.tied and (name == HEAD or name.endswith("embed_tokens.weight")):
            raise CheckpointFormatError(
                f"{adapter.file.path} holds {name!r} whole, but head and embedding of {model.folder} are one tensor: training it alone "
                "parted them. Merge each checkpoint into a full, untied model and give those folders instead."
            )
        if name in model.places and model.shape(name) != shape:
            raise CheckpointFormatError(
                f"{adapter.file.path}: tensor {name!r} is {list(shape)}, in the base {model.folder} {list(model.shape(name))} (a resized "
                "vocabulary?). Give a base of that size."
            )
    new = [name for name in adapter.saved if name not in model.places]
    return [f"Saved whole, but unknown to the base: {', '.join(new[:5])}."] if new else []


def _one_name(named: Mapping[str, str]) -> str:
    first: tuple[str, str] | None = None
    for origin, name in named.items():
        if not name:
            continue
        if first is None:
            first = (origin, name)
        elif name != first[1] and not ((a := _model_folder(name)) and (b := _model_folder(first[1])) and _same_model(a, b)):
            raise CheckpointFormatError(
                f"The checkpoints name different base models: {first[1]!r} ({first[0]}), {name!r} ({origin}). Give those of one run."
            )
    return first[1] if first else ""


def _same_model(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or base_fingerprint(open_model_folder(one)) == base_fingerprint(open_model_folder(other))


def _full_precision(name: str) -> Path | None:
    """The folder that a checkpoint names, unless it is quantised: QLoRA trains on such a copy of the base that is given here."""
    folder = _model_folder(name)
    return folder if folder is not None and not read_json(folder / CONFIG_FILE).get("quantization_config") else None


def _model_folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if name and (folder / CONFIG_FILE).is_file() else None
    except (OSError, RuntimeError):  # a name that no path can have, or nobody's home
        return None


def base_fingerprint(model: StoredModel) -> str:
    """`models.folder.fingerprint`: hashes the weights once, a note in the cache remembers."""
    try:
        return fingerprint(model.folder, [file.path for file in model.files], cache_root(None))
    except OSError as error:
        raise CheckpointFormatError(
            f"The base {model.folder} cannot be hashed: {error.strerror or error} ({error.filename}). Set NEXT_RAY_CACHE to a folder that "
            "can be written to."
        ) from None


def _variant(old: str, new: str) -> Callable[[str], str]:
    return lambda name: new + name.removeprefix(old) if name.startswith(old) else name
