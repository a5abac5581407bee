"""The tiny model: a Qwen2 of 0.9 million parameters that learns to add, one character a token.

It exists so that a whole run, training included, fits a laptop. Its teacher is deliberately fallible: a share of the
demonstrations has one wrong digit, so the model knows more than its samples at temperature 1 show, and reinforcement
learning has something to correct. Everything is float32 on one CPU thread, so a spec determines the bytes.

Shape legend: B batch, T tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from next_ray.errors import ConfigError, TrainingError
from next_ray.models.folder import quiet_transformers
from next_ray.models.tiny_spec import TinySpec
from next_ray.threads import one_thread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
CHARACTERS = "0123456789+-="
MAX_POSITIONS = 128
REPORT_EVERY = 25
IGNORED = -100

Report = Callable[[Mapping[str, float]], None]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer (real Hugging Face files): `<bos>` is put first, no `<eos>`, no chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_model(spec: TinySpec) -> Qwen2ForCausalLM:
    """The untrained model, float32, on the CPU; its weights follow torch's current random state."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if spec.hidden_size % spec.num_heads:
        raise ConfigError(f"The tiny model's hidden_size={spec.hidden_size} is not a multiple of num_heads={spec.num_heads}.")
    config = Qwen2Config(
        vocab_size=4 + len(CHARACTERS),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=spec.initializer_range,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen2ForCausalLM(config)


def train(spec: TinySpec, folder: Path, report: Report) -> None:
    """Train the model of `spec` and write model and tokenizer to `folder` (bfloat16 safetensors).

    `report` gets `{step, loss, lr}` every 25 steps and at the end; loss is the mean over answer tokens of that step.
    The caller's torch settings and random state are left as they were. Raises `TrainingError` when the loss is not finite.
    """
    with _deterministic(spec.seed):
        model = build_model(spec)
        _fit(spec, model, report)
        model.bfloat16()
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)


def _fit(spec: TinySpec, model: Qwen2ForCausalLM, report: Report) -> None:
    """The supervised loop, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(spec, step))
    draw = random.Random(f"tiny demonstrations {spec.seed}")
    model.train()
    for step in range(1, spec.steps + 1):
        mistakes = spec.mistakes if step > spec.careful * spec.steps else 0.0
        tokens, labels = encode([demonstration(spec, draw, mistakes) for _ in range(spec.batch_size)])
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"The tiny model's loss is {loss.item()} at step {step} of {spec.steps}: lower its lr ({spec.lr}).")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = spec.lr * learning_rate_factor(spec, step - 1)
        optimizer.step()
        schedule.step()
        if step % REPORT_EVERY == 0 or step == spec.steps:
            report({"step": step, "loss": loss.item(), "lr": rate})
    model.eval()


def learning_rate_factor(spec: TinySpec, step: int) -> float:
    """Share of the peak rate at 0-based `step`: linear warm-up, then a cosine down to 0.05 at the last step."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    progress = min(1.0, (step - spec.warmup_steps) / max(1, spec.steps - 1 - spec.warmup_steps))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def demonstration(spec: TinySpec, draw: random.Random, mistakes: float) -> tuple[str, str]:
    """One problem and the teacher's answer, for example `("12+7=", "19")`; wrong in one digit with probability `mistakes`."""
    a, b = draw.randrange(10**spec.digits), draw.randrange(10**spec.digits)
    operation = draw.choice(spec.operations)
    answer = str(a + b if operation == "+" else a - b)
    if draw.random() < mistakes:
        position = draw.choice([i for i, character in enumerate(answer) if character.isdigit()])
        wrong = draw.choice([digit for digit in "0123456789" if digit != answer[position]])
        answer = answer[:position] + wrong + answer[position + 1 :]
    return f"{a}{operation}{b}=", answer


def encode(demonstrations: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`<bos>problem answer<eos>` right-padded: token ids and labels, int64 [B, T]; only answer and `<eos>` are labelled.

    The attention is causal, so padding on the right needs no mask.
    """
    index = {character: 4 + i for i, character in enumerate(CHARACTERS)}
    rows = [[1, *(index[c] for c in problem + answer), 2] for problem, answer in demonstrations]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORED)
    for i, (row, (problem, _)) in enumerate(zip(rows, demonstrations, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        labels[i, 1 + len(problem) : len(row)] = tokens[i, 1 + len(problem) : len(row)]
    return tokens, labels


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """One thread, deterministic kernels and a seeded CPU generator, all restored afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
