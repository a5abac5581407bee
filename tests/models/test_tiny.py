import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from next_ray.errors import ConfigError, TrainingError
from next_ray.models.folder import read_files
from next_ray.models.tiny import IGNORED, build_model, build_tokenizer, demonstration, encode, learning_rate_factor, train
from next_ray.models.tiny_spec import TinySpec

SMALL = TinySpec(steps=3, batch_size=8, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=1, warmup_steps=2)


@pytest.fixture(autouse=True)
def _torch_untouched() -> Iterator[None]:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state())
    yield
    assert torch.get_num_threads() == before[0]
    assert torch.are_deterministic_algorithms_enabled() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_training_twice_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, spec in {"first": SMALL, "second": SMALL, "other": replace(SMALL, seed=1)}.items():
        train(spec, tmp_path / name, lambda _: None)
    first, second, other = (read_files(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_training_lowers_the_loss_and_reports_it(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    train(replace(SMALL, digits=1, steps=60, batch_size=32, lr=1e-2, mistakes=0.0), tmp_path, lambda m: reports.append(dict(m)))
    assert [r["step"] for r in reports] == [25, 50, 60]
    assert reports[-1]["loss"] < reports[0]["loss"] < math.log(17) + 0.5


def test_the_folder_loads_with_the_auto_classes_in_bfloat16(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train(SMALL, tmp_path, lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template is None
    tokens, _ = encode([("12+7=", "19")])
    prompt = tokenizer("12+7=")["input_ids"]
    assert [*prompt, *tokenizer("19", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] == tokens[0].tolist()
    assert prompt[0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (model.config.eos_token_id, model.config.pad_token_id)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == "12+7=19"


def test_tokenizer_reads_one_character_a_token() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 17
    assert tokenizer.convert_ids_to_tokens(tokenizer("9-10=")["input_ids"]) == ["<bos>", "9", "-", "1", "0", "="]
    assert tokenizer.decode(tokenizer("-45", add_special_tokens=False)["input_ids"]) == "-45"


def test_labels_cover_answer_and_end_only() -> None:
    tokens, labels = encode([("1+2=", "3"), ("10+20=", "30")])
    assert tokens.tolist() == [[1, 5, 14, 6, 16, 7, 2, 0, 0, 0], [1, 5, 4, 14, 6, 4, 16, 7, 4, 2]]
    no = IGNORED
    assert labels.tolist() == [[no, no, no, no, no, 7, 2, no, no, no], [no, no, no, no, no, no, no, 7, 4, 2]]


def test_a_careful_teacher_is_right_and_a_careless_one_errs_in_one_digit() -> None:
    draw = random.Random(0)
    spec = TinySpec(digits=3, operations="+-")
    wrong = 0
    for mistakes in (0.0, 0.4):
        for _ in range(500):
            problem, answer = demonstration(spec, draw, mistakes)
            sign = "+" if "+" in problem else "-"
            a, b = problem.removesuffix("=").split(sign)
            truth = str(int(a) + int(b) if sign == "+" else int(a) - int(b))
            assert len(answer) == len(truth)
            differing = sum(x != y for x, y in zip(answer, truth, strict=True))
            assert differing <= (1 if mistakes else 0)
            wrong += differing
    assert 150 < wrong < 250


def test_learning_rate_rises_linearly_and_falls_on_a_cosine() -> None:
    spec = TinySpec(steps=101, warmup_steps=20)
    assert learning_rate_factor(spec, 0) == pytest.approx(1 / 20)
    assert learning_rate_factor(spec, 19) == learning_rate_factor(spec, 20) == 1.0
    assert learning_rate_factor(spec, 60) == pytest.approx((1 + 0.05) / 2)
    assert learning_rate_factor(spec, 100) == pytest.approx(0.05)


def test_key_follows_every_setting() -> None:
    changed = [replace(TinySpec(), **{name: value}) for name, value in {"digits": 5, "steps": 7, "seed": 1, "mistakes": 0.1}.items()]
    assert len({TinySpec().key, *(spec.key for spec in changed)}) == 5
    assert TinySpec().key == TinySpec().key


def test_impossible_heads_are_refused_and_a_diverging_loss_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hidden_size=30.*num_heads=4"):
        build_model(replace(SMALL, hidden_size=30, num_heads=4))
    with pytest.raises(TrainingError, match=r"loss is nan.*lower its lr"):
        train(replace(SMALL, lr=1e30, steps=20), tmp_path, lambda _: None)
