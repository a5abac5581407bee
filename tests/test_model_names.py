"""Names of served checkpoints: as commands take them, and the short ones."""

from __future__ import annotations

from next_ray.commands.contestants import run_and_checkpoint
from next_ray.model_names import name_of, short_names


def test_a_name_is_what_commands_take() -> None:
    for checkpoint in ("00000024-trained", "00000024-jumped", "00000000-merged"):
        assert run_and_checkpoint(f"file:///store/{name_of('tiny', checkpoint)}")[1] == checkpoint
    assert name_of("tiny", "00000024-trained") == "tiny@24" and name_of("tiny", "00000024-jumped") == "tiny@24-jumped"


def test_final_is_what_a_run_resumes_from_and_jumped_the_newest_jump() -> None:
    ids = ["00000012-trained", "00000012-jumped", "00000024-trained", "00000024-jumped", "00000024-reverted", "00000036-predicted"]
    assert short_names(ids) == {"final": "00000024-reverted", "jumped": "00000024-jumped"}
    assert short_names(ids[:1]) == {"final": "00000012-trained"} and short_names([]) == {}
