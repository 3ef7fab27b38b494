"""Signatures of what is sent to webhooks, as Standard Webhooks has them (standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac


def signing_key(secret: str) -> bytes:
    """Return a secret's bytes: of base64 after ``whsec_``, else the text's own.

    Raises:
        ValueError: it says that it is base64, and is not.
    """
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    return secret.encode()


def signature(key: bytes, message: str, seconds: int, body: bytes) -> str:
    """Return the header that proves who sent a body: HMAC-SHA256 over the message's id, its time and the body.

    Args:
        seconds: since 1970, when it is sent.
    """
    signed = f"{message}.{seconds}.".encode() + body
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"
