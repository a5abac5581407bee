"""A served run, asked by the real openai client: one server, started once; what the command refuses before it starts anything."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, OpenAI

from next_ray.checkpoints.adapters import read_peft_folder
from next_ray.commands.serve import main, opened
from next_ray.config import ModelSection
from next_ray.models.resolve import prepare_model
from next_ray.rollout.probe import probe_adapter
from next_ray.store import CheckpointStore
from next_ray.types import Adapter, CheckpointKind, Completion, FinishReason, LearnerState
from tests.commands.test_export import commit_whole
from tests.processes import are_gone_within, family
from tests.rollout.tiny_model import SecondOpinion, linear_shapes, save_tiny_model

START_S = 420
PROMPT = "12+34="
STARTED = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test in a shell's background inherits as ignored
runpy.run_module("next_ray.serve", run_name="__main__", alter_sys=True)
"""
CHECKPOINTS = [(12, CheckpointKind.TRAINED), (24, CheckpointKind.TRAINED), (24, CheckpointKind.JUMPED), (36, CheckpointKind.TRAINED)]
NAMES = ["tiny@12", "tiny@24", "tiny@24-jumped", "tiny@36"]
EXTRA = {"ignore_eos": True, "return_tokens_as_token_ids": True}
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "extra_body": EXTRA}


@dataclass
class TinyRun:
    """A run with the adapters of `CHECKPOINTS` on a tiny random model, as a store holds it."""

    folder: Path

    def __post_init__(self) -> None:
        save_tiny_model(self.folder / "base")
        self.store = CheckpointStore(f"file://{self.folder / 'store'}", "tiny")
        self.model = prepare_model(ModelSection(name=str(self.folder / "base")), lambda *_: None)
        self.store.claim_identity({"base_fingerprint": self.model.fingerprint, "model": self.model.name, "lora_rank": 8})
        for step, kind in CHECKPOINTS:
            self.commit(step, kind)

    @property
    def place(self) -> str:
        return str(self.folder / "store" / "tiny")

    def adapter(self, step: int, kind: CheckpointKind) -> Adapter:
        seed = 2 * step + (kind is CheckpointKind.JUMPED)
        return probe_adapter(linear_shapes(self.folder / "base"), 8, 0.5, seed=seed, amplitude=0.5)

    def commit(self, step: int, kind: CheckpointKind) -> None:
        self.store.commit(step, kind, LearnerState(self.adapter(step, kind), {}, {}), [], self.model.fingerprint, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRun]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXT_RAY_CACHE", str(folder / "cache"))
        yield TinyRun(folder)


@dataclass
class Server:
    """A started server."""

    run: TinyRun
    process: subprocess.Popen[bytes]
    url: str
    key: str
    log: Path
    ray_folder: Path

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key or self.key, max_retries=0, timeout=60)

    def greedy(self, model: str) -> Any:
        return self.client().completions.create(model=model, prompt=PROMPT, logprobs=0, **GREEDY)


@pytest.fixture(scope="module")
def server(run: TinyRun) -> Iterator[Server]:
    ray_folder = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))  # paths of sockets must be short
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "NEXT_RAY_API_KEY")}
    environment = {**kept, "NEXT_RAY_CACHE": str(run.folder / "cache"), "RAY_TMPDIR": str(ray_folder), "TMPDIR": str(run.folder)}
    settings = [f"port={port}", "engine.dtype=float32", "engine.kv_cache_gib=0.1", "engine.adapters=4", "look_every_s=3600"]
    log = run.folder / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-c", STARTED, run.place, *settings]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while "key:" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.2)
        key = (run.folder / "cache" / "serve_key").read_text()
        yield Server(run, process, f"http://127.0.0.1:{port}/v1", key, log, ray_folder)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def _second_opinion(server: Server, choice: Any, adapter: Adapter | None) -> np.ndarray:
    """What transformers and PEFT say about the tokens that were sampled."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(server.run.folder / "base")
    token_ids = np.array([int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens], dtype=np.int32)
    opinion = SecondOpinion(server.run.folder / "base", server.run.folder)
    completion = Completion(token_ids, np.zeros(len(token_ids), np.float32), "", FinishReason.LENGTH, 0)
    return opinion.logprobs(adapter, np.array(tokenizer(PROMPT)["input_ids"]), completion, 1.0)


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
class TestServed:
    """In this order: the last one ends the server."""

    def test_all_models_are_there_under_their_names(self, server: Server) -> None:
        models = {model.id: model.to_dict() for model in server.client().models.list()}
        assert list(models) == ["base", "final", "jumped", *NAMES]
        assert models["jumped"]["root"] == "tiny@24-jumped" and models["final"]["root"] == "tiny@36" and models["base"]["parent"] is None
        assert server.client().models.retrieve("tiny@24-jumped").id == "tiny@24-jumped"

    def test_each_name_answers_with_its_own_weights_by_a_second_opinion(self, server: Server) -> None:
        texts = {}
        for model, checkpoint in zip(["base", *NAMES], [None, *CHECKPOINTS], strict=True):
            choice = server.greedy(model).choices[0]
            adapter = None if checkpoint is None else server.run.adapter(*checkpoint)
            np.testing.assert_allclose(choice.logprobs.token_logprobs, _second_opinion(server, choice, adapter), atol=2e-3)
            texts[model] = choice.text
        assert len(set(texts.values())) == len(texts)
        for short, meant in (("jumped", "tiny@24-jumped"), ("final", "tiny@36")):
            answer = server.greedy(short)
            assert answer.choices[0].text == texts[meant] and answer.model == meant

    def test_models_that_are_asked_at_the_same_time_do_not_mix(self, server: Server) -> None:
        models = ["base", *NAMES] * 4
        alone = {model: server.greedy(model).choices[0].text for model in set(models)}
        with ThreadPoolExecutor(len(models)) as pool:
            together = list(pool.map(lambda model: server.greedy(model).choices[0].text, models))
        assert together == [alone[model] for model in models]

    def test_a_stream_says_in_parts_what_an_answer_says_at_once(self, server: Server) -> None:
        client = server.client()
        whole = server.greedy("jumped").choices[0].text
        parts = [part.choices[0].text for part in client.completions.create(model="jumped", prompt=PROMPT, stream=True, **GREEDY)]
        assert len(parts) > 4 and "".join(parts) == whole
        turns: Any = [{"role": "user", "content": PROMPT}]
        answer = client.chat.completions.create(model="jumped", messages=turns, **GREEDY)
        assert answer.choices[0].message.content == whole and answer.usage is not None and answer.usage.completion_tokens == 12
        stream = client.chat.completions.create(model="jumped", messages=turns, stream=True, **GREEDY)
        assert "".join(part.choices[0].delta.content or "" for part in stream) == whole

    @pytest.mark.parametrize(
        ("error", "says", "asked"),
        [
            (NotFoundError, "nope", {"model": "nope"}),
            (NotFoundError, "tiny@25", {"model": "tiny@25"}),
            (NotFoundError, "passwd", {"model": "../../etc/passwd"}),
            (BadRequestError, "temperature", {"temperature": -1}),
            (BadRequestError, "max_tokens", {"max_tokens": "many"}),
            (BadRequestError, "256", {"prompt": "1" * 300}),
        ],
    )
    def test_a_mistake_is_answered_as_one(self, server: Server, error: type[APIStatusError], says: str, asked: dict[str, Any]) -> None:
        with pytest.raises(error, match=says) as found:
            server.client().completions.create(**{"model": "jumped", "prompt": "1", "max_tokens": 1, **asked})
        assert "Traceback" not in str(found.value) and str(server.run.folder) not in str(found.value)

    def test_the_key_is_needed_and_is_nowhere_to_be_seen(self, server: Server) -> None:
        with pytest.raises(AuthenticationError, match="No valid API key"):
            server.client("0123456789abcdef").models.list()
        root = server.url.removesuffix("/v1")
        for path in ("/v1/models", "/docs", "/metrics", "/invocations", "/v1/load_lora_adapter", "/tokenize"):
            assert httpx.get(f"{root}{path}").status_code == 401
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/pause", "/invocations", "/collective_rpc"):
            assert httpx.post(f"{root}{path}", json={}, headers={"Authorization": f"Bearer {server.key}"}).status_code == 404
        assert httpx.get(f"{root}/health").status_code == 200
        assert stat.S_IMODE((server.run.folder / "cache" / "serve_key").stat().st_mode) == 0o600
        seen = [" ".join(one.cmdline()) for one in family(server.process.pid)] + [server.log.read_text()]
        seen += [path.read_text(errors="replace") for path in server.ray_folder.rglob("*") if path.is_file()]
        assert len(seen) > 10 and not [text for text in seen if server.key in text]

    def test_it_listens_on_loopback_alone(self, server: Server) -> None:
        listening = {
            (connection.laddr.ip, connection.laddr.port, " ".join(one.cmdline())[:80])
            for one in [psutil.Process(server.process.pid), *family(server.process.pid)]
            for connection in one.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening
        assert not [found for found in listening if not found[0].removeprefix("::ffff:").startswith("127.") and found[0] != "::1"]

    def test_a_checkpoint_that_is_committed_meanwhile_is_served(self, server: Server) -> None:
        before = server.greedy("final").model
        server.run.commit(48, CheckpointKind.TRAINED)
        assert server.greedy("tiny@48").model == "tiny@48"  # five adapters in four slots
        models = {model.id: model.to_dict() for model in server.client().models.list()}
        assert before == "tiny@36" and models["final"]["root"] == "tiny@48" and server.greedy("final").model == "tiny@48"

    def test_ctrl_c_lets_an_answer_end_and_leaves_nothing(self, server: Server) -> None:
        processes = family(server.process.pid)
        asked: dict[str, Any] = {"model": "jumped", "prompt": "1", "max_tokens": 200, "stream": True, "extra_body": EXTRA}
        stream = server.client().completions.create(**asked)
        next(iter(stream))
        server.process.send_signal(signal.SIGINT)
        assert [part.choices[0].finish_reason for part in stream][-1] == "length"
        assert server.process.wait(60) == 130
        assert "interrupted; requests in work were finished" in server.log.read_text() and "Traceback" not in server.log.read_text()
        are_gone_within(20, processes)
        assert not list(server.run.folder.glob("next_ray-adapters-*"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    assert not shown.out and "Traceback" not in shown.err
    return shown.err


def test_what_cannot_be_served_is_refused_before_anything_starts(
    run: TinyRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no checkpoint '00000025-trained'" in refused(capsys, f"{run.place}@25")
    assert "replicas.min=3 is more than replicas.max=1" in refused(capsys, run.place, "replicas.min=3")
    assert "prot" in refused(capsys, run.place, "prot=8001")
    assert "has no {prompt}" in refused(capsys, run.place, "template=x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Choose others" in refused(capsys, run.place, f"port={taken.getsockname()[1]}")
    monkeypatch.setenv("NEXT_RAY_API_KEY", "short")
    assert "NEXT_RAY_API_KEY holds no API key: 16" in refused(capsys, run.place)
    assert "NEXT_RAY_API_KEY" not in os.environ


def test_of_full_weights_one_checkpoint_is_served(run: TinyRun, tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}", "whole")
    store.claim_identity({"base_fingerprint": run.model.fingerprint, "model": run.model.name, "lora_rank": 0})
    for step in (2, 4):
        commit_whole(store, run.folder / "base", step)
    newest, named = opened(store.url), opened(f"{store.url}@2")
    assert (newest.names, newest.catalogue) == (("whole@4", "final"), None)
    assert named.names == ("whole@2",) and len({newest.model.fingerprint, named.model.fingerprint, run.model.fingerprint}) == 3


def test_one_checkpoint_is_served_beside_the_base_when_it_is_named(run: TinyRun, tmp_path: Path) -> None:
    found = opened(f"{run.place}@24-jumped")
    assert found.names == ("base",) and found.rank == 8 and found.catalogue is not None
    assert found.catalogue.look() == dict.fromkeys(("final", "jumped", "tiny@24-jumped"), "tiny@24-jumped")
    assert found.catalogue.write("tiny@24-jumped", tmp_path / "peft") and not found.catalogue.write("tiny@12", tmp_path / "other")
    written, expected = read_peft_folder(tmp_path / "peft"), run.adapter(24, CheckpointKind.JUMPED)
    assert written.keys() == expected.keys() and all(np.array_equal(written[name].b, expected[name].b) for name in expected)
