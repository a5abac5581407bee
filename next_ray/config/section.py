"""What every part of the tree is: frozen, with its own keys only, each described by the text below it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class CredentialsError(ValueError):
    """An address has a secret in it; the value is never repeated."""


_USER = re.compile(r"^[a-z0-9+.-]+://[^/]*@", re.IGNORECASE)
_SIGNED = re.compile(r"[?&](x-amz-[a-z-]*|signature|sig|token|access_token|key|secret|password|credential)=", re.IGNORECASE)


def _without_credentials(address: str) -> str:
    if _USER.match(address) or _SIGNED.search(address):
        raise CredentialsError(
            "carries credentials, which would be written to the run's config.yaml and be seen in process lists. Leave them out: they come "
            "from the environment (AWS_ACCESS_KEY_ID and the like, HF_TOKEN)",
        )
    return address


Address = Annotated[str, AfterValidator(_without_credentials)]
"""A path or URL without a user's name, password or signature in it."""


class Section(BaseModel):
    """A frozen part of the tree that accepts only its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
