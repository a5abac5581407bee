"""A thousand hostile manifests, adapters, models and configurations: each is refused with a paragraph, or is valid after all.

None ends in a traceback, runs anything, opens a connection or writes where it may not; `watching` holds that.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from next_ray.checkpoints.open import open_trajectory
from next_ray.commands import export, extrapolate, inspect
from next_ray.config import ModelSection
from next_ray.data.prepare import load_tokenizer
from next_ray.errors import NextRayError
from next_ray.model_facts import facts_of
from next_ray.models.resolve import not_cached, prepare_model
from next_ray.run import main as run_main
from next_ray.settings import load_config
from next_ray.store import CheckpointStore, Lease, Storage
from tests.security.hostile import (
    CONFIGS,
    INDICES,
    MODEL_CONFIGS,
    MODEL_DOCUMENTS,
    OVERRIDES,
    header_bombs,
    pickles,
)
from tests.security.watching import Watch, snapshot, watched
from tests.store.samples import commit

NUM = {"bytes": 150, "trees": 150, "overrides": 100, "manifests": 250, "objects": 100, "adapters": 150, "models": 60}
"""Generated examples a kind; with those that people thought of there are more than a thousand."""


def fuzz(kind: str) -> Any:
    """Reproducible examples, without deadlines: the machine may be busy."""
    return settings(
        max_examples=NUM[kind],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["../../x", "/etc/passwd", "objects/../x", 10**30, -1, "00000001-trained", "\0", "trained", 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Sandbox:
    """`work` is where things may be written; all else in `root` must stay as it is."""

    root: Path
    work: Path
    watch: Watch

    def attempt(self, act: Callable[[], object]) -> None:
        """`act` succeeds or refuses in one paragraph."""
        self.watch.active = True
        try:
            act()
        except NextRayError as error:
            message = str(error)
            assert message and len(message) < 30_000 and "Traceback" not in message
        finally:
            self.watch.active = False


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    root = tmp_path_factory.mktemp("sandbox")
    work = root / "store"
    work.mkdir()
    (root / "secret").write_text("not yours")
    (root / "secret.safetensors").write_bytes(b"not yours")
    outside = {name: content for name, content in snapshot(root).items() if not name.startswith("store")}
    with watched(work) as watch, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("NEXT_RAY_CACHE", str(work / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import huggingface_hub.constants

        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(sys, "dont_write_bytecode", True)
        sandbox = Sandbox(root, work, watch)
        _use_once(sandbox)
        yield sandbox
    assert {name: content for name, content in snapshot(root).items() if not name.startswith("store")} == outside


def _use_once(sandbox: Sandbox) -> None:
    """What is used below, once with good content: what libraries do when they are first used is not the question."""
    folder = _write_model(sandbox.work / "model")
    prepare_model(ModelSection(name=str(folder)), not_cached)
    load_tokenizer(str(folder), trust_remote_code=False)
    checkpoint = _write_adapters(sandbox.work / "checkpoints")
    assert extrapolate.main([str(checkpoint.parent), "--output", str(sandbox.work / "candidate"), "--method", "two-point"]) == 0
    assert inspect.main([str(checkpoint.parent), "--methods", "two-point"]) == 0
    shutil.rmtree(sandbox.work / "candidate")
    store = _write_run(sandbox.work)
    for act in use(store, sandbox.work / "exported"):
        act()
    shutil.rmtree(sandbox.work / "exported")
    run_main(["--dry-run"])


def test_there_are_a_thousand() -> None:
    written = (
        len(CONFIGS) + len(OVERRIDES) + len(INDICES) + len(MODEL_CONFIGS) + len(MODEL_DOCUMENTS) + len(pickles()) + len(header_bombs())
    )
    assert sum(NUM.values()) + written >= 1000


# Configurations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_configurations(sandbox: Sandbox, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = sandbox.work / "job.yaml"
    path.write_bytes(CONFIGS[number])
    sandbox.attempt(lambda: load_config(str(path)))
    sandbox.watch.active = True
    code = run_main([str(path), "--dry-run"])
    sandbox.watch.active = False
    assert code in (0, 2) and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("override", OVERRIDES, ids=range(len(OVERRIDES)))
def test_overrides(sandbox: Sandbox, override: str) -> None:
    sandbox.attempt(lambda: load_config(None, [override]))


@fuzz("bytes")
@given(st.binary(max_size=80) | st.text(alphabet="{}[]:,-!&*?|>'\"%#@`\n\t ar0~<.", max_size=60).map(str.encode))
def test_any_bytes_as_a_configuration(sandbox: Sandbox, content: bytes) -> None:
    path = sandbox.work / "any.yaml"
    path.write_bytes(content)
    sandbox.attempt(lambda: load_config(str(path)))


SECTIONS = ["run", "model", "store", "data", "rollout", "learner", "reward", "extrapolation", "evaluation", "cluster", "report", "extends"]


@fuzz("trees")
@given(
    st.dictionaries(
        st.sampled_from(SECTIONS) | st.text(max_size=5),
        JSON | st.dictionaries(st.sampled_from(["name", "url", "train", "kind", "path", "steps", "verifier", "lora"]), JSON, max_size=3),
        max_size=4,
    )
)
def test_any_tree_as_a_configuration(sandbox: Sandbox, tree: dict[str, Any]) -> None:
    path = sandbox.work / "tree.yaml"
    path.write_text(json.dumps(tree))
    sandbox.attempt(lambda: load_config(str(path)))


@fuzz("overrides")
@given(
    st.sampled_from(["run.name=", "data.train=", "extrapolation.methods=", "model.name=", "reward.verifier=", "a.b=", ""]),
    st.text(max_size=30),
)
def test_any_override(sandbox: Sandbox, start: str, text: str) -> None:
    sandbox.attempt(lambda: load_config(None, [start + text]))


# The store ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(sandbox: Sandbox) -> CheckpointStore:
    return _write_run(sandbox.work)


def _write_run(work: Path) -> CheckpointStore:
    shutil.rmtree(work / "run-1", ignore_errors=True)
    store = CheckpointStore(Storage(f"file://{work}"), "run-1")
    store.claim_identity({"model": "tiny", "base_fingerprint": "base-0123", "lora_rank": 4})
    commit(store, 1)
    commit(store, 2)
    return store


def use(store: CheckpointStore, out: Path) -> Iterator[Callable[[], object]]:
    """Everything that reads a run."""

    def load() -> None:
        for manifest in store.manifests():
            store.load_state(manifest)

    def resume() -> None:
        if latest := store.latest():
            store.load_state(latest)

    def follow() -> None:
        for module in open_trajectory(store.url).trajectory.modules.values():
            module.gram()

    yield load
    yield resume
    yield follow
    yield store.identity
    yield lambda: store.read_table("metrics")
    yield lambda: store.get_json("summary")
    yield lambda: export.export(store.url, out)
    yield Lease(store.storage, store.run).acquire
    yield lambda: store.retain(1)
    yield lambda: store.sweep(0)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = replaced(document[place[0]], place[1:], value)
    return copy


DOCUMENTS = ["manifests/00000002-trained.json", "manifests/00000001-trained.json", "run.json", "lease.json", "records/summary.json"]
LINKS = ["manifests/00000003-trained.json", "objects", "manifests", "lease.json", "run.json", "tables/metrics", "records"]


@fuzz("manifests")
@given(st.data())
def test_manifests_and_records(sandbox: Sandbox, run: CheckpointStore, data: st.DataObject) -> None:
    path = data.draw(
        st.sampled_from(
            ["manifests/00000002-trained.json", "manifests/00000001-trained.json", "run.json", "lease.json", "records/summary.json"]
        )
    )
    file = sandbox.work / "run-1" / path
    before = file.read_bytes() if file.exists() else None
    document = json.loads(before) if before else {"format": "next-ray-lease/1", "token": "x", "held": True}
    if data.draw(st.booleans()):
        document = replaced(document, data.draw(st.sampled_from(places(document))), data.draw(JSON))
    else:
        document = {**document, data.draw(st.text(max_size=8)): data.draw(JSON)}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document))
    for act in use(run, sandbox.work / "exported"):
        sandbox.attempt(act)
    shutil.rmtree(sandbox.work / "exported", ignore_errors=True)
    _write_run(sandbox.work)


@fuzz("objects")
@given(st.binary(max_size=120) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(["adapter", "moments", "scalars"]))
def test_objects_that_their_manifests_vouch_for(sandbox: Sandbox, run: CheckpointStore, content: bytes, name: str) -> None:
    _forge(run, name, content)
    for act in use(run, sandbox.work / "exported"):
        sandbox.attempt(act)


@pytest.mark.parametrize("name", ["adapter", "moments"])
@pytest.mark.parametrize("number", range(len(pickles() + header_bombs())))
def test_pickles_and_header_bombs_in_the_store(sandbox: Sandbox, run: CheckpointStore, name: str, number: int) -> None:
    _forge(run, name, (pickles() + header_bombs())[number])
    if name == "adapter":  # a file without tensors is no adapter, but it may be an adapter's moments
        with pytest.raises(NextRayError):
            run.load_state(run.manifest("00000002-trained"))
    for act in use(run, sandbox.work / "exported"):
        sandbox.attempt(act)


@pytest.mark.parametrize("target", ["secret", "store", "/", "store/run-1"])
@pytest.mark.parametrize(
    "link", ["manifests/00000003-trained.json", "objects", "manifests", "lease.json", "run.json", "tables/metrics", "records"]
)
def test_links_out_of_the_run(sandbox: Sandbox, run: CheckpointStore, link: str, target: str) -> None:
    """Who can plant links in a `file://` store can read and delete as its user can; what is there still must not change."""
    place = sandbox.work / "run-1" / link
    shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target if target == "/" else sandbox.root / target)
    before = (sandbox.root / "secret").read_bytes()
    for act in list(use(run, sandbox.work / "exported"))[:7]:
        if link in ("objects", "manifests", "tables/metrics") and target in ("/", "store"):
            continue  # to list all of a disk is no attack on anybody but oneself
        sandbox.attempt(act)
    assert (sandbox.root / "secret").read_bytes() == before


def _forge(store: CheckpointStore, name: str, content: bytes) -> None:
    """An object whose size and hash its manifest states rightly: what somebody who may write the store can do."""
    import hashlib

    digest = hashlib.sha256(content).hexdigest()
    extension = "json" if name == "scalars" else "safetensors"
    path = "run-1/manifests/00000002-trained.json"
    document = json.loads(store.storage.get(path))
    document["objects"][name] = {"path": f"objects/{digest}.{extension}", "sha256": digest, "size_bytes": len(content)}
    store.storage.put(f"run-1/objects/{digest}.{extension}", content)
    store.storage.put(path, json.dumps(document).encode())


# Adapters -----------------------------------------------------------------------------------------------------------------

STEM = "base_model.model.model.layers.0.mlp.up_proj.lora_"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 2, "lora_alpha": 4}


@pytest.fixture
def adapter(sandbox: Sandbox) -> Path:
    """Two checkpoints with an adapter each; the second is the hostile one."""
    return _write_adapters(sandbox.work / "checkpoints")


def _write_adapters(parent: Path) -> Path:
    shutil.rmtree(parent, ignore_errors=True)
    for step in (1, 2):
        folder = parent / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        tensors = {f"{STEM}A.weight": np.full((2, 3), step, np.float32), f"{STEM}B.weight": np.ones((4, 2), np.float32)}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return parent / "checkpoint-2"


def use_adapters(sandbox: Sandbox, folder: Path) -> None:
    def read() -> None:
        for module in open_trajectory([str(folder.parent)]).trajectory.modules.values():
            module.gram()

    def commands() -> None:
        output = sandbox.work / "candidate"
        assert extrapolate.main([str(folder.parent), "--output", str(output), "--method", "two-point"]) in (0, 2)
        shutil.rmtree(output, ignore_errors=True)

    sandbox.attempt(read)
    sandbox.attempt(commands)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
@pytest.mark.parametrize("number", range(len(pickles() + header_bombs())))
def test_pickles_and_header_bombs_as_adapters(sandbox: Sandbox, adapter: Path, name: str, number: int) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes((pickles() + header_bombs())[number])
    with pytest.raises(NextRayError):
        open_trajectory([str(adapter.parent)])
    use_adapters(sandbox, adapter)
    sandbox.watch.active = True
    assert inspect.main([str(adapter.parent), "--json", str(sandbox.work / "numbers.json")]) == 2
    sandbox.watch.active = False


@fuzz("adapters")
@given(st.dictionaries(st.sampled_from([*ADAPTER, "rank_pattern", "alpha_pattern", "modules_to_save", "auto_mapping"]), JSON, max_size=4))
def test_any_configuration_of_an_adapter(sandbox: Sandbox, adapter: Path, changes: dict[str, Any]) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({**ADAPTER, **changes}))
    use_adapters(sandbox, adapter)


# Models -------------------------------------------------------------------------------------------------------------------

MODEL = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 17,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
EVIL = "import os\nos.system('touch pwned')\nraise SystemExit('this model ran its code')\n"


@pytest.fixture
def model(sandbox: Sandbox) -> Path:
    return _write_model(sandbox.work / "model")


def _write_model(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "evil.py").write_text(EVIL)
    save_file({"model.embed_tokens.weight": np.zeros((17, 8), np.float32)}, folder / "model.safetensors")
    return folder


def use_model(sandbox: Sandbox, folder: Path) -> None:
    section = ModelSection(name=str(folder))

    def prepare() -> None:
        prepare_model(section, not_cached)
        load_tokenizer(str(folder), trust_remote_code=False)

    sandbox.attempt(prepare)
    sandbox.attempt(lambda: facts_of(section))


@pytest.mark.parametrize("number", range(len(MODEL_CONFIGS)))
def test_configurations_of_models(sandbox: Sandbox, model: Path, number: int) -> None:
    (model / "config.json").write_text(json.dumps({**MODEL, **MODEL_CONFIGS[number]}))
    use_model(sandbox, model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("number", range(len(MODEL_DOCUMENTS)))
def test_documents_of_models(sandbox: Sandbox, model: Path, name: str, number: int) -> None:
    (model / name).write_bytes(MODEL_DOCUMENTS[number])
    use_model(sandbox, model)


@pytest.mark.parametrize("number", range(len(INDICES)))
def test_indices_of_models_name_files_beside_them(sandbox: Sandbox, model: Path, number: int) -> None:
    (model / "model.safetensors.index.json").write_bytes(INDICES[number])
    with pytest.raises(NextRayError):
        prepare_model(ModelSection(name=str(model)), not_cached)
    use_model(sandbox, model)


@pytest.mark.parametrize("number", range(len(pickles() + header_bombs())))
def test_pickles_and_header_bombs_as_models(sandbox: Sandbox, model: Path, number: int) -> None:
    content = (pickles() + header_bombs())[number]
    (model / "model.safetensors").write_bytes(content)
    use_model(sandbox, model)
    (model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "consolidated.pth"):
        (model / name).write_bytes(content)
    with pytest.raises(NextRayError, match="pickle"):
        prepare_model(ModelSection(name=str(model)), not_cached)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"},
        {"tokenizer_class": "os.system"},
        {"tokenizer_class": 7},
        {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        {"added_tokens_decoder": {"x": 1}},
    ],
)
def test_tokenizers(sandbox: Sandbox, model: Path, tokenizer: dict[str, Any]) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    use_model(sandbox, model)


@fuzz("models")
@given(st.sampled_from([*MODEL, "dtype", "rope_parameters", "auto_map", "quantization_config", "layer_types", "id2label"]), JSON)
def test_any_value_in_a_models_configuration(sandbox: Sandbox, model: Path, key: str, value: Any) -> None:
    (model / "config.json").write_text(json.dumps({**MODEL, key: value}))
    use_model(sandbox, model)


@pytest.mark.parametrize(
    "name", ["\0", "~nobody-of-this-name/x", "a" * 5000, "./" + "a" * 300, "..", "//", "a/b\0", "\udcff/x", "http://x/y"]
)
def test_names_of_models(sandbox: Sandbox, name: str) -> None:
    sandbox.attempt(lambda: prepare_model(ModelSection(name=name), not_cached))
    sandbox.attempt(lambda: facts_of(ModelSection(name=name)))
