"""From the configuration to the three sets of prompts a run works with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from next_ray.config import Config, FileSource
from next_ray.data.few_shot import with_few_shot, without_shown
from next_ray.data.files import find_parts
from next_ray.data.formats import TRAIN, Setting
from next_ray.data.places import readable
from next_ray.data.sources import FileReader, load_problems
from next_ray.data.splits import Splits, split
from next_ray.data.stream import Mixture
from next_ray.data.template import Fit, PromptEncoder
from next_ray.errors import DataError, ModelError
from next_ray.types import Prompt

AUTO_BYTES = 200 * 2**20
"""`data.reader: auto` leaves files of fewer bytes together to the driver."""
AUTO_CORES = 4
"""And so it does on a machine of fewer cores, unless there is a cluster."""


@dataclass(frozen=True)
class Read:
    """The three sets, what was read, and token counts by prompt id as far as the reader knows them."""

    splits: Splits
    report: str
    lengths: Mapping[str, int] = field(default_factory=dict)

    @property
    def verifiers(self) -> list[str]:
        """The verifiers of all prompts."""
        return sorted({prompt.verifier for prompt in (*self.splits.train, *self.splits.gate, *self.splits.test)})


def chosen_reader(config: Config) -> Literal["local", "ray"]:
    """Who reads: `data.reader`, where `auto` goes by the size of the files and by the cores that there are.

    Raises `DataError` for files that are not there.
    """
    data = config.data
    sources = (
        [(part.source, f"data.train.sources[{i}].source") for i, part in enumerate(data.train.sources)]
        if data.train.kind == "mixture"
        else [(data.train, "data.train")]
    )
    if data.held_out is not None:
        sources.append((data.held_out, "data.held_out"))
    num_bytes = 0
    for source, section in sources:
        if isinstance(source, FileSource):
            with readable(source.path, f"{section}.path"):
                num_bytes += sum(part.num_bytes for part in find_parts(source.path, storage_options(config))[1])
    if data.reader != "auto":
        return data.reader
    many_cores = "RAY_ADDRESS" in os.environ or (os.cpu_count() or 1) >= AUTO_CORES
    return "ray" if many_cores and num_bytes >= AUTO_BYTES else "local"


def storage_options(config: Config) -> dict[str, str]:
    """What fsspec is told about the place of files."""
    return {"endpoint_url": config.store.endpoint_url} if config.store.endpoint_url else {}


def with_worked_problems(config: Config) -> Config:
    """The configuration with the turns of `data.few_shot` written out; see `few_shot.with_few_shot`."""
    return config.model_copy(update={"data": with_few_shot(config.data, config.run.seed, storage_options(config))})


def load_splits(config: Config, read_file: FileReader | None = None) -> tuple[Splits, str]:
    """Load (files with `read_file`, if given) and split the problems; the text says what was loaded. Raises `DataError`."""
    data, seed, verifier = config.data, config.run.seed, config.reward.deciding
    options = storage_options(config)
    train = load_problems(data.train, seed, verifier, options, TRAIN, read_file)
    lines = [str(train.report)]
    prompts = without_shown(train.prompts, data.few_shot)
    num_shown = len(train.prompts) - len(prompts)
    held_out = None
    if data.held_out is not None:
        loaded = load_problems(data.held_out, seed, verifier, options, Setting.of("data.held_out"), read_file)
        held_out = without_shown(loaded.prompts, data.few_shot)
        num_shown += len(loaded.prompts) - len(held_out)
        lines.append(str(loaded.report))
    if num_shown:
        lines.append(f"{num_shown} left out because they are shown as examples")
    splits = replace(split(prompts, held_out, data.gate_prompts, data.test_prompts, seed), mixture=train.mixture)
    by_source = f" ({splits.mixture.count(splits.train)})" if splits.mixture else ""
    lines.append(f"{len(splits.train)} to train on{by_source}, {len(splits.gate)} for the gate, {len(splits.test)} for the test")
    return splits, "; ".join(lines)


def load_tokenizer(folder: str, trust_remote_code: bool) -> Any:
    """The tokenizer of a model folder; raises `ModelError` when it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # files that somebody else wrote may raise anything here, and all of it means the same
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        raise ModelError(f"{folder}: the tokenizer cannot be read ({reason}). Save the model's tokenizer into that folder.") from error


def check_characters(splits: Splits, encoder: PromptEncoder, tokenizer: Any) -> None:
    """Refuse prompts that a character tokenizer cannot read: it would drop what it does not know. Raises `DataError`."""
    known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if any(len(token) != 1 for token in known):
        return
    for prompt in (*splits.train, *splits.gate, *splits.test):
        unknown = sorted(set(encoder.render(prompt)) - known)
        if unknown:
            raise DataError(
                f"Prompt {encoder.render(prompt)[:80]!r} has the character {unknown[0]!r}, but the model at {tokenizer.name_or_path} "
                f"reads only {''.join(sorted(known))}. Take another model (model.name), or problems in these characters."
            )


def filter_by_length(
    splits: Splits, tokenizer: Any, config: Config, lengths: Mapping[str, int] = MappingProxyType({})
) -> tuple[Splits, str]:
    """Leave out prompts that are longer than `data.max_prompt_tokens`, in all three sets; the text counts them.

    `lengths` are token counts by prompt id that are known already.
    """
    encoder = PromptEncoder(tokenizer, config.data)
    check_characters(splits, encoder, tokenizer)
    limit = config.data.max_prompt_tokens
    fits = {name: encoder.fits(getattr(splits, name), limit, lengths) for name in ("train", "gate", "test")}
    for name, fit in fits.items():
        if not fit.kept:
            raise DataError(f"No {name} prompt fits data.max_prompt_tokens={limit}; raise it or take shorter problems.")
    kept = replace(splits, **{name: fit.kept for name, fit in fits.items()})
    dropped = [f"{name} {_what_was_dropped(getattr(splits, name), fit, splits.mixture)}" for name, fit in fits.items() if fit.dropped]
    count = sum(fit.dropped for fit in fits.values())
    return kept, f"{count} prompts longer than {limit} tokens left out: {', '.join(dropped)}" if count else ""


def _what_was_dropped(prompts: Sequence[Prompt], fit: Fit, mixture: Mixture | None) -> str:
    """How many of a set's prompts were too long, by source where there are several."""
    if mixture is None:
        return str(fit.dropped)
    kept = {prompt.id for prompt in fit.kept}
    known = [prompt for prompt in prompts if prompt.id not in kept and prompt.id in mixture.source_of]
    return f"{fit.dropped} ({mixture.count(known)})" if known else str(fit.dropped)
