"""vLLM's own OpenAI-compatible server on the engine of training: one engine, and every checkpoint of a run as a model name.

vLLM speaks the protocol, samples and switches adapters. Ours are the names, the key, and which of its routes there are. An adapter is
brought in when it is asked for first, and stays in its slot until `max_adapters` others were asked for since.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import tempfile
import warnings
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from next_ray.errors import ModelError, NextRayError
from next_ray.rollout.scratch import ScratchFolder
from next_ray.rollout.spec import WORKER_PROCESS, EngineSpec, engine_arguments, round_up_rank, set_environment

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

RESOLVER = "next_ray"
OPEN_PATHS = ("/health",)
"""What answers without a key: whether there is an engine."""


class Catalogue(Protocol):
    """The models beside the base. Its methods may take a while, and are called from a thread."""

    def look(self) -> Mapping[str, str]:
        """Every name to the name that it is short for, which is itself for most; the present state of the run."""
        ...

    def write(self, name: str, folder: Path) -> bool:
        """Write that model as a PEFT folder; False: there is no such model any more. Raises `NextRayError`."""
        ...


@dataclass(frozen=True)
class ApiSpec:
    """What one engine serves.

    Args:
        engine: how vLLM starts.
        names: of the model that the engine loads.
        key_sha256: SHA-256 of the API key, hexadecimal; the key itself is not needed.
        chat_template: of conversations; None: the tokenizer's.
        look_every_s: how often the catalogue is looked through for newer models.
    """

    engine: EngineSpec
    names: tuple[str, ...]
    key_sha256: str
    chat_template: str | None
    look_every_s: float


class OpenAIApi:
    """The engine and its application; `open` once, in the event loop that will run it, which also closes it (ASGI's lifespan)."""

    def __init__(self, spec: ApiSpec, catalogue: Catalogue | None) -> None:
        self._spec, self._catalogue = spec, catalogue
        self._engine: Any = None
        self._scratch: ScratchFolder | None = None
        self._models: Any = None
        self._short: Mapping[str, str] = {}

    async def open(self) -> Any:
        """Start the engine; returns the ASGI application. Raises `ModelError` when vLLM cannot run the model."""
        spec = self._spec
        set_environment(spec.engine)
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # it asks our resolver; the routes to load others are not there
        self._scratch = ScratchFolder(spec.engine.adapter_dir or tempfile.gettempdir())  # they are many, and read once: not in memory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's imports warn about its own dependencies
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.entrypoints.launchers.cli_args import FrontendArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            try:
                arguments = AsyncEngineArgs(**self._arguments())
                self._engine = AsyncLLM.from_engine_args(arguments)
            except (ValueError, OSError, RuntimeError) as error:
                raise ModelError(f"vLLM could not start on {spec.engine.model_path} ({error}).") from error
            front = FrontendArgs(chat_template=spec.chat_template, chat_template_content_format="string" if spec.chat_template else "auto")
            app = await self._application(Namespace(**vars(front) | vars(arguments)))
        return KeyRequired(app, spec.key_sha256)

    async def check(self) -> None:
        """Raises vLLM's error when the engine is dead."""
        await self._engine.check_health()

    def close(self) -> None:
        """Shut vLLM down and remove the adapter files; again is harmless."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
        if self._scratch is not None:
            self._scratch.close()

    def _arguments(self) -> dict[str, Any]:
        spec = self._spec.engine
        arguments = engine_arguments(spec, round_up_rank(spec.max_lora_rank))
        return arguments | {"served_model_name": list(self._spec.names), "worker_extension_cls": WORKER_PROCESS}

    async def _application(self, settings: Namespace) -> Any:
        """Chat, completions and models, out of vLLM's parts; none of its routes that change the server."""
        from fastapi import FastAPI
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.openai.chat_completion import api_router as chat
        from vllm.entrypoints.openai.completion import api_router as completions
        from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
        from vllm.lora.resolver import LoRAResolverRegistry

        LoRAResolverRegistry.register_resolver(RESOLVER, self)  # pyright: ignore[reportArgumentType]  # by its one method
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=self._alive)
        chat.attach_router(app)
        completions.attach_router(app)
        app.add_api_route("/v1/models", self._list)
        app.add_api_route("/v1/models/{name:path}", self._show)
        app.add_api_route("/health", self._health)
        init_exception_handler(app)
        await init_app_state(self._engine, app.state, settings, ("generate",))
        app.state.server = SimpleNamespace()  # vLLM tells its own to end when the engine dies; here Serve asks `check`
        self._models = app.state.openai_serving_models
        await self._look()
        return app

    @asynccontextmanager
    async def _alive(self, _: Any) -> AsyncIterator[None]:
        looking = asyncio.create_task(self._keep_looking())
        try:
            yield
        finally:
            looking.cancel()
            self.close()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._spec.look_every_s)
            await self._look()

    async def _look(self) -> Mapping[str, str]:
        """The names by now; the short ones are tied to what they mean, which is loaded for it. A store that is away changes nothing."""
        if self._catalogue is None:
            return {}
        try:
            names = await asyncio.to_thread(self._catalogue.look)
        except NextRayError as error:
            warnings.warn(f"the run could not be looked at: {error}", stacklevel=1)
            return self._short
        for short, name in names.items():
            if short != name and self._short.get(short) != name:
                await self._models.resolve_lora(name)
                if name in self._models.lora_requests:
                    self._models.lora_requests[short] = self._models.lora_requests[name]
        self._short = names
        return names

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """What vLLM asks for a name that it does not know: vLLM's request for that adapter, None when there is no such model."""
        from vllm.lora.request import LoRARequest

        assert self._scratch is not None
        if self._catalogue is None or (await asyncio.to_thread(self._catalogue.look)).get(lora_name) != lora_name:
            return None
        folder = self._scratch.path / hashlib.sha256(lora_name.encode()).hexdigest()[:16]
        if not await asyncio.to_thread(self._catalogue.write, lora_name, folder):
            return None
        return LoRARequest(lora_name, 1, str(folder), base_model_name=self._spec.names[0])  # vLLM gives it an id of its own

    async def _list(self) -> dict[str, Any]:
        cards = [self._card(name, None) for name in self._spec.names]
        cards += [self._card(name, meant) for name, meant in (await self._look()).items()]
        return {"object": "list", "data": cards}

    async def _show(self, name: str) -> dict[str, Any]:
        from fastapi import HTTPException

        found = [card for card in (await self._list())["data"] if card["id"] == name]
        if not found:
            raise HTTPException(404, f"The model `{name}` does not exist.")
        return found[0]

    def _card(self, name: str, meant: str | None) -> dict[str, Any]:
        from vllm.entrypoints.serve.engine.protocol import ModelCard

        parent = None if meant is None else self._spec.names[0]
        length = self._spec.engine.max_model_len
        return ModelCard(id=name, root=meant or name, parent=parent, owned_by="next_ray", max_model_len=length).model_dump()

    async def _health(self) -> dict[str, Any]:
        await self.check()
        return {}


class KeyRequired:
    """ASGI: `Authorization: Bearer <key>` on every path but `OPEN_PATHS`, compared in constant time."""

    def __init__(self, app: App, key_sha256: str) -> None:
        self._app, self._digest = app, bytes.fromhex(key_sha256)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 401 as OpenAI does."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and (scope["path"] in OPEN_PATHS or self._knows(scope["headers"]))):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._refuse(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        given = next((value for name, value in headers if name.lower() == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._digest) and scheme.lower() == b"bearer"

    async def _refuse(self, scope: Scope, receive: Any, send: Any) -> None:
        from fastapi.responses import JSONResponse

        error = {"message": "No valid API key was given.", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        await JSONResponse({"error": error}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
