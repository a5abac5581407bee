"""The key before vLLM's application, with a real HTTP client; the application itself is tested where a run is served."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from next_ray.rollout.api import KeyRequired

KEY = "0123456789abcdef-key"


async def everything(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"secret"})


def get(path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    app: Any = KeyRequired(everything, hashlib.sha256(KEY.encode()).hexdigest())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://served") as client:
            return await client.get(path, headers=headers or {})

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/v1/models", "/", "/v1/chat/completions", "/health/", "//health", "/invocations", "/docs"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY}x"}])
def test_nothing_is_reached_without_the_key(path: str, headers: dict[str, str]) -> None:
    found = get(path, headers)
    assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
    assert found.json()["error"]["code"] == "invalid_api_key" and "secret" not in found.text and KEY not in found.text


def test_the_key_opens_and_health_needs_none() -> None:
    assert get("/v1/models", {"Authorization": f"Bearer {KEY}"}).text == "secret"
    assert get("/v1/models", {"authorization": f"bearer {KEY}"}).status_code == 200
    assert get("/health").status_code == 200


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(KeyRequired(everything, "00" * 32)({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
