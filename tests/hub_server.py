"""A server on this machine that answers what huggingface_hub asks in order to list and read data sets, with faults on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_SecretOfTheTestAccount"
SIGNATURE = "X-Amz-Signature=deadbeef"


@dataclass
class Repository:
    """A data set: commits by revision, files by commit, and who may read."""

    revisions: dict[str, str]
    commits: dict[str, dict[str, bytes]]
    access: str = "public"  # public, private or gated


@dataclass
class Hub:
    """What the server holds, what goes wrong, and what it was asked: `busy` counts how often a path is still answered 503, `cut` are
    files whose transfers break off half way, `short` those of which a cache in between hands out half as if it were all, `stored`
    those that a storage service refuses to hand out."""

    repositories: dict[str, Repository]
    busy: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.endpoint`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on the console of the tests."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(unquote(path))
        if self.hub.busy.get(unquote(path), 0):
            self.hub.busy[unquote(path)] -= 1
            return self._error(503, "")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            return self._error(401, "", "Invalid credentials in Authorization header")
        api = path.startswith("/api/datasets/")
        if not api and not path.startswith("/datasets/"):
            return self._error(403, "")  # the storage service, whose signatures have expired
        owner, name, *rest = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.access == "private" and not token):
            return self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        verb, revision = (rest[0], unquote(rest[1])) if rest else ("revision", "main")
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        inside, files = unquote("/".join(rest[2:])), repository.commits[commit]
        if verb == "revision":
            return self._json({"id": f"{owner}/{name}", "sha": commit, "siblings": []})
        if verb == "tree":
            return self._tree(files, inside, "recursive=true" in self.path.lower())
        if inside not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        if repository.access == "gated":
            return self._error(403 if token else 401, "GatedRepo", "Access to this dataset is restricted.")
        if inside in self.hub.stored:
            return self._send(302, b"", {"Location": f"{self.hub.endpoint}/storage/{inside}?{SIGNATURE}"})
        return self._file(inside, files[inside])

    def _tree(self, files: Mapping[str, bytes], folder: str, recursive: bool) -> None:
        start = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in files.items():
            if not name.startswith(start):
                continue
            parts = name.removeprefix(start).split("/")
            for depth in range(1, len(parts)):
                if depth == 1 or recursive:
                    path = start + "/".join(parts[:depth])
                    entries[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            if len(parts) == 1 or recursive:
                entries[name] = {"type": "file", "oid": "0" * 40, "size": len(content), "path": name}
        if not entries:
            return self._error(404, "EntryNotFound", f"{folder} does not exist")
        return self._json(list(entries.values()))

    def _file(self, name: str, content: bytes) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if name in self.hub.short:
            content = content[: content.index(b"\n", len(content) // 2) + 1]
        first, last = (int(end) if end else None for end in asked.split("-")) if asked else (None, None)
        if first is not None and first >= len(content):
            return self._error(416, "")
        part = content[first or 0 : None if last is None else last + 1]
        headers = {"Content-Length": str(len(part))}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{(first or 0) + len(part) - 1}/{len(content)}"
        if name in self.hub.cut:
            self.close_connection = True
            part = part[: len(part) // 2]
        return self._send(206 if asked else 200, part, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str = "") -> None:
        headers = {name: text for name, text in (("X-Error-Code", code), ("X-Error-Message", message)) if text}
        self._send(status, b"", headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)
