"""What may be written and printed: text without credentials, of characters that UTF-8 has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "…"

_SECRET_KEY = re.compile(
    r"secret|passw|token|credential|signature|authorization|bearer|cookie|^key$|(api|access|account|private|session)_?-?key",
    re.I,
)
_USER = re.compile(r"(\w://)[^\s/'\"<>]+@")
_QUERY = re.compile(r"\b((?!(?:s3a?|gc?s|file|local|memory|hdfs|sftp|smb):)\w+://[^\s?'\"<>]*)\?[^\s'\"<>]*")
_LONE = re.compile(r"[\ud800-\udfff]")
_LIKE_AN_ESCAPE = re.compile(r"\ufffd(?=[0-9A-F]{2})")
_ESCAPES = re.compile(r"(?:\ufffd[0-9A-F]{2})+")


def published(value: Any) -> Any:
    """``value`` (nested mappings, lists and strings) as it is written to an output: redacted and encodable."""
    if isinstance(value, Mapping):
        return {published(key): published(item) for key, item in redacted(value).items()}
    if isinstance(value, list | tuple):
        return [published(item) for item in value]
    return encodable(redacted(value)) if isinstance(value, str) else value


def redacted(value: Any) -> Any:
    """``value`` (nested mappings, lists and strings) without what may be a credential.

    Hidden are the query of URLs, which may be signed, a user and password in them, and the values of keys that sound
    like a secret's.

    In a URL of S3, Google Cloud Storage or a file system a question mark is a part of the name: what follows it stays.
    """
    if isinstance(value, Mapping):
        return {key: HIDDEN if _SECRET_KEY.search(str(key)) else redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    if isinstance(value, str):
        return _QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", value))
    return value


def encodable(text: str) -> str:
    """``text`` with each byte of a name that is no UTF-8 as U+FFFD and its two hexadecimal digits."""
    return _LONE.sub(lambda char: hexadecimal(char[0]), text)


def escaped(name: str) -> str:
    """:func:`encodable` for names: two names never become one, and :func:`unescaped` gives each back."""
    return encodable(_LIKE_AN_ESCAPE.sub(lambda char: hexadecimal(char[0]), name))


def unescaped(text: str) -> str:
    """The name that :func:`escaped` made ``text`` of."""
    return _ESCAPES.sub(
        lambda run: bytes.fromhex(run[0].replace("\ufffd", "")).decode("utf-8", "surrogateescape"), text
    )


def hexadecimal(char: str) -> str:
    """Each byte of a character as U+FFFD and two digits."""
    data = char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
    return "".join(f"\ufffd{byte:02X}" for byte in data)
