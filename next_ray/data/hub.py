"""The Hugging Face hub: the commit an address stands for, another try when the hub is busy, and its errors in words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

HUB = "hf://"
ADVICE = (
    "Check organisation, name and file (hf://datasets/ORG/NAME/FILE); private and gated sets need HF_TOKEN. Without a network fetch it "
    "elsewhere (hf download ORG/NAME --repo-type dataset --local-dir FOLDER) and give the local path."
)
WAITS_S = (1.0, 2.0, 4.0)
"""Before the second, third and fourth try of what huggingface_hub itself asks once only; its other requests it tries six times."""
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that another try may mend."""
_COMMIT = re.compile(r"hf://[^@]+@([0-9a-f]{40})(?:/|$)")

Answer = TypeVar("Answer")


def commit_of(path: str) -> str | None:
    """The commit that an address on the hub names; None for any other revision or place."""
    found = _COMMIT.match(path)
    return found[1] if found else None


def at_commit(path: str) -> str:
    """The address with the commit its revision stands for now, so that whoever reads it, today or later, reads the same bytes.

    An address that names a commit, or is not on the hub, or is in a bucket (which has no revisions) is given back as it is, without
    a request. Raises what huggingface_hub raises; call it within `places.readable`.
    """
    if not path.startswith(HUB) or commit_of(path):
        return path
    from huggingface_hub import HfApi, HfFileSystem

    files = HfFileSystem()
    place: Any = connect(files, path)
    if not hasattr(place, "revision"):
        return path
    info = _patiently(lambda: HfApi().repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision))
    owner = path.removeprefix(HUB).partition(place.repo_id)[0]
    return f"{HUB}{owner}{place.repo_id}@{info.sha}/{place.path_in_repo}".rstrip("/") if info.sha else path


def connect(files: Any, root: str) -> Any:
    """A path as huggingface_hub understands it; the file system then knows that repository and revision exist."""
    return _patiently(lambda: files.resolve_path(root))


def _patiently(ask: Callable[[], Answer]) -> Answer:
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in WAITS_S:
        try:
            return ask()
        except Exception as error:
            busy = error.response.status_code in BUSY if isinstance(error, HfHubHTTPError) else _of_transport(error)
            if not busy:
                raise
        time.sleep(wait_s)
    return ask()


def complaint(error: Exception) -> str | None:
    """What was wrong and what to do, without a URL, whose query may be a signature; None when the hub has no part in the error."""
    from huggingface_hub import errors

    # The file system's "not found" says what it did not find only by its cause.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) else error
    # The order matters: gated is a kind of not found, and not found is a kind of HTTP error.
    match cause:
        case errors.GatedRepoError():
            return "the set is gated. Accept its terms on its hub page, then set HF_TOKEN to a token of that account."
        case errors.RevisionNotFoundError():
            return "the hub has no such revision of the set. Give a commit, tag or branch (hf://datasets/ORG/NAME@REVISION/FILE)."
        case errors.RepositoryNotFoundError():
            return f"the hub has no such data set, or it is private. {ADVICE}"
        case FileNotFoundError() | errors.EntryNotFoundError():
            return f"no such file. {ADVICE}"
        case errors.OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, so the hub is offline here. Unset it. {ADVICE}"
        case errors.HfHubHTTPError():
            return _refused(cause.response.status_code)
        case _ if _of_transport(cause):
            return f"the hub or its storage cannot be reached, or broke off ({_first_line(cause)}). Check network and HF_ENDPOINT. {ADVICE}"
        case OSError() | ImportError() | ValueError() | NotImplementedError():
            return f"cannot be read ({_first_line(cause)}). {ADVICE}"
    return None


def _of_transport(error: Exception) -> bool:
    """Whether the library below huggingface_hub (httpx2) could not ask or get the whole answer."""
    return type(error).__module__.startswith("httpx")


def _refused(status: int) -> str:
    if status == 401:
        return "the hub does not accept the token (HTTP 401). Set HF_TOKEN to a valid one, or unset it for a public set."
    if status == 403:
        return "access denied (HTTP 403). Set HF_TOKEN to a token that may read this set."
    if status == 416:
        return f"the file that came is shorter than the one the hub lists (HTTP 416). Try again. {ADVICE}"
    if status in BUSY:
        return f"the hub is busy or down (HTTP {status}), after several tries. Try again later. {ADVICE}"
    return f"the hub refuses (HTTP {status}). {ADVICE}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = re.sub(r"\?[^\s'\"]*", "", lines[0]) if lines else "no reason given"
    return f"{type(error).__name__}: {text}"
