"""What may be written and printed: text without credentials, of characters that UTF-8 has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "…"

_SECRET_KEY = re.compile(
    r"secret|passw|token|credential|signature|authorization|bearer|cookie|^key$|(api|access|account|private|session)_?-?key",
    re.I,
)
_SIGNS = re.compile(
    r"sig|sign(ed)?|auth|hmac|jwt|md5|verify|expires?|expiry|expiration|policy|key-pair-id|hash-algorithm|googleaccessid"
    r"|user(name)?|hdn\w+|__gda__|(x-(amz|goog|oss|cos|obs|tos|bce)|q-(sign|ak|key|header|url))-?.*",
    re.I,
)
"""Names of parameters that sign a link, beside those that sound like a secret's: S3, Google, CloudFront, Akamai, ..."""
_SHARED_ACCESS = re.compile(r"s[vsrpte]|srt|spr|sip|ses|sdd|scid|s[au]oid|sk[tesv]|skoid|sktid")
"""The other parameters of a signature ``sig`` of Azure's."""
_STORES = r"(?:s3a?|gc?s|file|local|memory|hdfs|sftp|smb)://"
_USER = re.compile(r"(\w://)[^\s/]+@")
# A path may hold spaces and quotes, and so may a query: up to an &, if one is near. That the query may be missing keeps
# the search linear.
_URL = re.compile(
    rf"\b(?:{_STORES}[^\s'\"<>]*"
    r"|(\w+://[^?\n]*)(\?[^\s'\"<>]*(?:(?:(?!://)[^&\n]){0,99}&[^\s'\"<>]*)*)?)"
)
_LINK = re.compile(rf"(?!{_STORES})\w[\w+.-]*://")
_LINK_USER = re.compile(r"(\w[\w+.-]*://)[^/]+@")
_LONE = re.compile(r"[\ud800-\udfff]")
_LIKE_AN_ESCAPE = re.compile(r"\ufffd(?=[0-9A-F]{2})")
_ESCAPES = re.compile(r"(?:\ufffd[0-9A-F]{2})+")


def published(value: Any) -> Any:
    """``value`` (nested mappings, lists and strings) as it is written to an output: redacted and encodable.

    Under ``id``, ``url``, ``source`` and ``output`` are names, of which a URL may be a part: ``crawl/http://host/a?1``.
    """
    if isinstance(value, Mapping):
        return {published(key): _of_key(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [published(item) for item in value]
    return encodable(redacted(value)) if isinstance(value, str) else value


def _of_key(key: Any, value: Any) -> Any:
    if isinstance(value, str) and key == "id":
        return encodable(value)
    if isinstance(value, str) and key in ("url", "source", "output"):
        return encodable(link(value))
    return HIDDEN if _SECRET_KEY.search(str(key)) else published(value)


def link(url: str) -> str:
    """``url``, and nothing else, without user, password and query. A path, and a name in a store, stay as they are."""
    shown = _LINK_USER.sub(rf"\1{HIDDEN}@", url) if _LINK_USER.match(url) else url
    path, mark, _ = shown.partition("?")
    return f"{path}?{HIDDEN}" if mark and _LINK.match(url) else shown


def visible(value: Any) -> Any:
    """``value`` (nested dicts, lists and strings) with control characters, also those that turn text around, and what
    cannot be encoded written as escapes: a hostile name can't disguise itself."""
    if isinstance(value, Mapping):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [visible(item) for item in value]
    if isinstance(value, str) and not value.isprintable():
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)
    return value


def redacted(value: Any) -> Any:
    """``value`` (nested mappings, lists and strings) without what may be a credential.

    Hidden are the query of URLs, which may be signed, a user and password in them, and the values of keys that sound
    like a secret's.

    In a URL of S3, Google Cloud Storage or a file system a question mark is a part of the name: what follows it stays.
    """
    return _without_secrets(value, lambda query: HIDDEN)


def identified(value: Any) -> Any:
    """``value`` as :func:`redacted`, but that a query leaves a hash of those of its parameters that are no credentials.

    So links that lead to different things stay different, and one that is signed anew stays the same.
    """

    def shown(query: str) -> str:
        if query.startswith(HIDDEN):
            return query
        rest = unsigned(query)
        return f"{HIDDEN}~{short_hash(rest)}" if rest else HIDDEN

    return _without_secrets(value, shown)


def _without_secrets(value: Any, query: Callable[[str], str]) -> Any:
    """As :func:`redacted`; ``query`` gives what stands for the query of a URL."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if _SECRET_KEY.search(str(key)) else _without_secrets(item, query)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item, query) for item in value]
    if isinstance(value, str):
        shown = _USER.sub(rf"\1{HIDDEN}@", value)
        return _URL.sub(lambda found: f"{found[1]}?{query(found[2][1:])}" if found[2] else found[0], shown)
    return value


def unsigned(query: str) -> str:
    """The parameters of a link's query that are no credential and no part of a signature, in their order."""
    parameters = [(text.partition("=")[0].lower(), text) for text in query.split("&")]
    is_shared = any(name == "sig" for name, _ in parameters)
    return "&".join(
        text
        for name, text in parameters
        if not (_SECRET_KEY.search(name) or _SIGNS.fullmatch(name) or (is_shared and _SHARED_ACCESS.fullmatch(name)))
    )


def short_hash(text: str) -> str:
    """A hash of a text, as 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def cut(text: str, limit: int) -> str:
    """The text, or its start and a hash of it where it has more than ``limit`` bytes."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 17].decode(errors="ignore").rstrip("/") + "~" + short_hash(text)


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
