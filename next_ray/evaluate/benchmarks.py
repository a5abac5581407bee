"""Public benchmarks by name: where each lies, how it is worded, and how its answers are judged."""

from __future__ import annotations

from dataclasses import dataclass

MATH_TEMPLATE = "{prompt}\n\nWork through the problem step by step and put the final answer in \\boxed{}."
CHOICE_TEMPLATE = "{prompt}\n\nWork through the options step by step and put the letter of the right one in \\boxed{}."
PLACEHOLDER = "{prompt}"


@dataclass(frozen=True)
class Benchmark:
    """A set of problems.

    Args:
        name: what the command line and the tables call it.
        hub_id: data set on the hub; None for a file of one's own.
        config: the hub data set's configuration.
        split: its split.
        verifier: how answers are judged, named as in reward.verifier.
        template: text of the user message; `{prompt}` is replaced by the problem.
        group_field: a field of the problem's metadata by which results are shown apart too.
        revision: commit of the hub data set; None: its converted files as they are now.
        file: file in the repository where the hub converts nothing.
    """

    name: str
    hub_id: str | None = None
    config: str = "default"
    split: str = "test"
    verifier: str = "math"
    template: str = MATH_TEMPLATE
    group_field: str | None = None
    revision: str | None = None
    file: str | None = None

    @property
    def address(self) -> str | None:
        """The set's file as an fsspec URL; None for a set that is not on the hub."""
        if self.hub_id is None:
            return None
        if self.file is not None:
            return f"hf://datasets/{self.hub_id}{f'@{self.revision}' if self.revision else ''}/{self.file}"
        return f"hf://datasets/{self.hub_id}@refs/convert/parquet/{self.config}/{self.split}/0000.parquet"


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime24", "HuggingFaceH4/aime_2024", split="train"),
        Benchmark("aime25", "math-ai/aime25"),
        Benchmark("amc23", "math-ai/amc23"),
        Benchmark("minerva", "math-ai/minervamath"),
        Benchmark("olymmath-easy", "RUC-AIBOX/OlymMATH", config="en-easy"),
        Benchmark("gpqa", "Idavidrein/gpqa", split="train", verifier="choice", template=CHOICE_TEMPLATE, file="gpqa_diamond.csv"),
        Benchmark("mmlu-pro", "TIGER-Lab/MMLU-Pro", verifier="choice", template=CHOICE_TEMPLATE, group_field="category"),
        Benchmark("math-500", "HuggingFaceH4/MATH-500"),
        Benchmark("gsm8k", "openai/gsm8k", config="main", verifier="gsm8k"),
    )
}
"""The sets of the paper's tables and two more. GPQA is gated: accept its terms on the hub and set HF_TOKEN."""
