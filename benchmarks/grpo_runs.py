"""One GRPO run by next_ray or by TRL with the same model, prompts and settings, as rows of one form. Each in a process of its own.

`python -m benchmarks.grpo_runs SPEC.json ROWS.json` is TRL's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import read_run, step_seconds

CHAT_QUESTION = "What is {a} {op} {b}? Answer with only the number."
ALPHAS = {"tiny": 8.0, "smollm2-135m": 16.0}
MODELS = tuple(ALPHAS)


@dataclass(frozen=True)
class GrpoSpec:
    """What both trainers are given. `micro_batch` is TRL's number of sequences of a forward pass, `micro_batch_tokens` ours."""

    model: str
    steps: int
    seed: int
    prompts: int
    samples: int
    threads: int
    rank: int = 16
    response_tokens: int = 16
    lr: float = 2e-4
    micro_batch: int = 16
    micro_batch_tokens: int = 1024

    def overrides(self) -> list[str]:
        """Settings of `python -m next_ray.run` without extrapolation and evaluation on the way."""
        data = {"digits": 2, "size": 10000, "operations": "+"}
        settings: dict[str, Any] = {"reward.verifier": "exact"}
        if self.model != "tiny":
            data = {"digits": 1, "size": 200, "operations": "+-", "question": CHAT_QUESTION}
            settings = {"reward.verifier": "number"}
        settings |= {f"data.train.{name}": json.dumps(value) for name, value in data.items()} | {
            "run.steps": self.steps,
            "run.seed": self.seed,
            "model.name": self.model,
            "data.gate_prompts": 8,
            "data.test_prompts": 8,
            "rollout.prompts_per_step": self.prompts,
            "rollout.samples_per_prompt": self.samples,
            "rollout.max_response_tokens": self.response_tokens,
            "rollout.threads": self.threads,
            "rollout.dtype": "float32",
            "learner.dtype": "float32",
            "learner.threads": self.threads,
            "learner.lora.rank": self.rank,
            "learner.lora.alpha": ALPHAS[self.model],
            "learner.lr": self.lr,
            "learner.micro_batch_tokens": self.micro_batch_tokens,
            "extrapolation.enabled": "false",
            "evaluation.every_steps": "null",
            "evaluation.samples": 1,
            "cluster.dashboard": "false",
            "report.trackers": "[]",
        }
        return [f"{name}={value}" for name, value in settings.items()]


def run_ours(spec: GrpoSpec, folder: Path) -> list[dict[str, float]]:
    """Run next_ray in `folder`; rows `{step, seconds, tokens, completion_tokens, reward}`."""
    name = f"ours-{spec.model}-{spec.seed}"
    here = [f"run.name={name}", f"run.output_dir={folder}", f"store.url=file://{folder.absolute()}/store-{name}"]
    _call([sys.executable, "-m", "next_ray.run", *spec.overrides(), *here], folder / f"{name}.txt", spec.threads)
    rows, _ = read_run(folder / name)
    return [
        {
            "step": row["step"],
            "seconds": step_seconds(row),
            "tokens": row["num_tokens"],
            "completion_tokens": row["completion_tokens_mean"] * spec.prompts * spec.samples,
            "reward": row["reward_mean"],
        }
        for row in rows
        if row["kind"] == "step"
    ]


def run_trl(spec: GrpoSpec, folder: Path) -> list[dict[str, float]]:
    """Run TRL's GRPOTrainer in a process of its own; rows as `run_ours`."""
    name = f"trl-{spec.model}-{spec.seed}"
    (folder / f"{name}.json").write_text(json.dumps(asdict(spec)))
    rows = folder / f"{name}-rows.json"
    _call([sys.executable, "-m", "benchmarks.grpo_runs", str(folder / f"{name}.json"), str(rows)], folder / f"{name}.txt", spec.threads)
    return json.loads(rows.read_text())


def _call(command: list[str], log: Path, threads: int) -> None:
    """Run to the end with as many OpenMP threads as the trainer is given; `SystemExit` names the log of a failed one."""
    with log.open("w") as file:
        code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    if code:
        raise SystemExit(f"{command[2]} failed with exit code {code}; see {log}")


def train_with_trl(spec: GrpoSpec, output: Path) -> list[dict[str, float]]:
    """GRPO as TRL does it, with transformers' generation (its default), on the prompts that next_ray trains on."""
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback

    from next_ray.config import ModelSection
    from next_ray.data.prepare import load_splits
    from next_ray.models.resolve import prepare_model
    from next_ray.models.tiny import train
    from next_ray.settings import load_config

    torch.set_num_threads(spec.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

    config = load_config(None, spec.overrides())
    prompts = load_splits(config)[0].train
    model = prepare_model(ModelSection(name=spec.model), lambda tiny, folder: train(tiny, folder, lambda _: None))
    texts: list[Any] = [p.messages[0]["content"] if spec.model == "tiny" else list(p.messages) for p in prompts]
    data = Dataset.from_list([{"prompt": text, "solution": p.answer} for text, p in zip(texts, prompts, strict=True)])
    rows: list[dict[str, float]] = []
    started = [0.0]

    class Watch(TrainerCallback):
        """Seconds and tokens of each step, between the starts of two steps."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not started[0]:
                started[0] = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = time.monotonic()
            rows.append({"step": state.global_step, "seconds": now - started[0]})
            started[0] = now

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "reward" in logs:
                before = sum(row["tokens"] for row in rows[:-1])
                rows[-1] |= {
                    "tokens": float(logs["num_tokens"]) - before,
                    "completion_tokens": float(logs["completions/mean_length"]) * spec.prompts * spec.samples,
                    "reward": float(logs["reward"]),
                }

    per_step = spec.prompts * spec.samples
    args = GRPOConfig(
        output_dir=str(output),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.micro_batch,
        gradient_accumulation_steps=per_step // spec.micro_batch,
        num_generations=spec.samples,
        max_completion_length=spec.response_tokens,
        learning_rate=spec.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        weight_decay=0.0,
        loss_type="grpo",
        beta=0.0,
        temperature=1.0,
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=spec.seed,
    )
    exact = spec.model == "tiny"
    judge: Any = lambda completions, solution, **_: [_right(c, s, exact) for c, s in zip(completions, solution, strict=True)]  # noqa: E731
    lora = LoraConfig(r=spec.rank, lora_alpha=int(ALPHAS[spec.model]), target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = GRPOTrainer(model.path, reward_funcs=judge, args=args, train_dataset=data, peft_config=lora, callbacks=[Watch()])
    trainer.train()
    return rows


def _right(completion: Any, solution: str, exact: bool) -> float:
    """The verifiers `exact` and `number`: the stripped text is the answer, or ends with that number."""
    text = (completion if isinstance(completion, str) else completion[-1]["content"]).strip()
    if exact:
        return float(text == solution)
    last = text.rstrip(".").split()[-1:] or [""]
    return float(last[0] == solution)


def main(argv: list[str]) -> int:
    """TRL's process: a spec in, rows out."""
    spec_file, rows_file = map(Path, argv)
    rows = train_with_trl(GrpoSpec(**json.loads(spec_file.read_text())), rows_file.with_suffix(""))
    rows_file.write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
