"""Failures of a store: which are worth another attempt, when, for how long, and what to say of the others.

One layer decides. For S3 it is :mod:`raypurify.storage.s3`, a request at a time, and the retries of s3fs and of
botocore are switched off there, so that attempts do not multiply. For other stores it is :func:`call`, an operation at
a time.

``RAYPURIFY_RETRY_ATTEMPTS`` and ``RAYPURIFY_RETRY_SECONDS`` set the budget of a process; :func:`use` goes before them.
"""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from raypurify.storage.published import redacted

T = TypeVar("T")

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})

TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "XAmzContentSHA256Mismatch",
    }
)

# By name, because the packages that raise them (botocore, aiohttp, fsspec's backends) are optional.
TRANSIENT_ERRORS = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "FSTimeoutError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "TimeoutError",
    }
)

EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})

_CREDENTIALS = "check AWS_PROFILE, AWS_ACCESS_KEY_ID or the machine's role"
_DENIED = (
    f"access is denied; {_CREDENTIALS}, and what they allow (without s3:ListBucket, a missing key looks the same; "
    "a requester-pays bucket needs FSSPEC_S3_REQUESTER_PAYS=true)"
)
_REGION = "the bucket is in another region or at another endpoint; set AWS_DEFAULT_REGION and AWS_ENDPOINT_URL to its"

DENIED_CODES = {
    "401": _DENIED,
    "403": _DENIED,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "NotSignedUp": _DENIED,
    "UnauthorizedAccess": _DENIED,
    "InvalidPayer": _DENIED,
    **dict.fromkeys(EXPIRED_CODES, "the temporary credentials have expired; get new ones, and run the command again"),
    "InvalidToken": f"the session token is not valid; {_CREDENTIALS}, and AWS_SESSION_TOKEN",
    "InvalidSecurity": f"the credentials are not valid; {_CREDENTIALS}",
    "InvalidAccessKeyId": f"the store does not know this access key; {_CREDENTIALS}, and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; check AWS_SECRET_ACCESS_KEY or the profile",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's; set it",
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "PermanentRedirect": _REGION,
}

BUCKET_CODES = {
    "InvalidBucketName": "this cannot be the name of a bucket; check it",
    "NoSuchBucket": "there is no such bucket; check its name, AWS_ENDPOINT_URL and the region",
}

CREDENTIAL_ERRORS = frozenset(
    {
        "CredentialRetrievalError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOError",
        "TokenRetrievalError",
    }
)


class RefusedError(OSError):
    """The store refuses, and would again: wrong bucket, no access, bad or expired credentials. Never retried."""


class DeniedError(RefusedError, PermissionError):
    """Access is denied, or the credentials are missing, wrong or expired."""


class NoBucketError(RefusedError, FileNotFoundError):
    """There is no such bucket."""


class UnavailableError(OSError):
    """The store did not answer well within the budget of attempts. It tells nothing of the file."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """The budget of one request: whichever of ``attempts`` and ``seconds`` is used up first ends it.

    The pause before attempt n+1 is drawn evenly from 0 to ``first_pause`` x 2^(n-1), at most ``longest_pause``
    (exponential backoff with full jitter: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
    """

    attempts: int = 12
    """The largest number of attempts, the first among them."""
    seconds: float = 300.0
    """How many seconds after the first attempt the last one may start."""
    first_pause: float = 0.2
    """The pause after the first attempt, in seconds."""
    longest_pause: float = 20.0
    """The longest pause, in seconds."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts = {self.attempts}: expected at least 1")
        for name in ("seconds", "first_pause", "longest_pause"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected 0 or more seconds")


_used: Retries | None = None


def use(budget: Retries | None) -> None:
    """Set the budget of this process; None goes back to the environment's."""
    global _used
    _used = budget


def current() -> Retries:
    """The budget of this process.

    Raises:
        ValueError: an environment variable is not a number, or out of its range.
    """
    if _used is not None:
        return _used
    return Retries(
        attempts=_from_environment("RAYPURIFY_RETRY_ATTEMPTS", int, Retries.attempts),
        seconds=_from_environment("RAYPURIFY_RETRY_SECONDS", float, Retries.seconds),
    )


def _from_environment(variable: str, kind: Callable[[str], T], default: T) -> T:
    value = os.environ.get(variable)
    try:
        return kind(value) if value else default
    except ValueError as error:
        raise ValueError(f"{variable} = {value!r}: expected a number") from error


_counting = threading.Lock()
_requests = 0
_retries = 0


def count(*, retry: bool = False) -> None:
    """Count a request."""
    global _requests, _retries
    with _counting:
        _requests += 1
        _retries += retry


def counts() -> dict[str, int]:
    """Requests to stores and, among them, retries, by this process so far.

    Each request to S3 counts; of other remote stores, each attempt at an operation. Local files do not count, nor what
    the HTTP client sends again at once because the server had closed a kept connection meanwhile.
    """
    with _counting:
        return {"requests": _requests, "retries": _retries}


def since(mark: dict[str, int]) -> dict[str, int]:
    """What :func:`counts` has grown by since it gave ``mark``."""
    return {name: count - mark[name] for name, count in counts().items()}


class Attempts:
    """The attempts at one request."""

    def __init__(self, budget: Retries | None = None) -> None:
        self.budget = budget or current()
        self.made = 0
        self._started = time.monotonic()
        # Not the global generator: users seed that.
        self._random = random.Random()

    def begin(self) -> None:
        """Count an attempt that starts now."""
        count(retry=self.made > 0)
        self.made += 1

    def pause(self, error: BaseException) -> float | None:
        """Seconds to wait before another attempt; None when there is to be none."""
        budget = self.budget
        if self.made >= budget.attempts or not is_transient(error):
            return None
        longest = min(budget.longest_pause, budget.first_pause * 2.0 ** min(self.made - 1, 60))
        pause = self._random.uniform(0, longest)
        return pause if self.elapsed() + pause <= budget.seconds else None

    def elapsed(self) -> float:
        """Seconds since the first attempt."""
        return time.monotonic() - self._started

    def failure(self, place: str, error: Exception) -> Exception:
        """What to raise in place of ``error``, the last attempt's: says what to do, and holds no credentials."""
        if refused := refusal(place, error):
            return refused
        if is_transient(error):
            reason = redacted(str(error)) or type(error).__name__
            return UnavailableError(
                f"{redacted(place)}: no success in {self.made} attempts over {self.elapsed():.0f} s (last: {reason}); "
                "check the store and the network, or set RAYPURIFY_RETRY_ATTEMPTS and RAYPURIFY_RETRY_SECONDS higher"
            )
        if redacted(str(error)) != str(error):
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
            return kind(redacted(f"{place}: {type(error).__name__}: {error}"))
        return error


def call(operation: Callable[[], T], place: str, budget: Retries | None = None) -> T:
    """The result of ``operation``, attempted again after transient failures.

    Args:
        operation: can be done twice without harm.
        place: URL for the message.

    Raises:
        RefusedError: it would fail again; names the reason.
        UnavailableError: the budget is used up.
        OSError: any other failure, as it came, at once.
    """
    attempts = Attempts(budget)
    while True:
        attempts.begin()
        try:
            return operation()
        except Exception as error:
            pause = attempts.pause(error)
            if pause is None:
                failure = attempts.failure(place, error)
                if failure is error:
                    raise
                raise failure from None
        time.sleep(pause)


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may well succeed."""
    final = (ssl.SSLCertVerificationError, RefusedError, UnavailableError)
    if any(isinstance(cause, final) or _names(cause) & CREDENTIAL_ERRORS for cause in _causes(error)):
        return False
    code, status = code_of(error), status_of(error)
    if code in TRANSIENT_CODES or status in TRANSIENT_STATUS:
        return True
    if code is not None or status is not None:
        return False
    return any(_names(cause) & TRANSIENT_ERRORS for cause in _causes(error))


def refusal(place: str, error: BaseException) -> RefusedError | None:
    """``error`` as one that says which refusal it is and what to do, or None if it is no refusal."""
    code, status, place = code_of(error), status_of(error), redacted(place)
    for cause in _causes(error):
        if isinstance(cause, RefusedError):
            return cause
        if names := _names(cause) & CREDENTIAL_ERRORS:
            reason = f"{min(names)}: {redacted(str(cause))}"
            return DeniedError(f"{place}: no credentials to use ({reason}); {_CREDENTIALS}, or set FSSPEC_S3_ANON=true")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return DeniedError(
                f"{place}: the server's certificate is not trusted ({cause.verify_message}); see AWS_CA_BUNDLE"
            )
    if code in BUCKET_CODES:
        return NoBucketError(f"{place}: {BUCKET_CODES[code]} ({code})")
    if code in DENIED_CODES:
        return DeniedError(f"{place}: {DENIED_CODES[code]} ({code})")
    if code and code.startswith("KMS."):
        return DeniedError(f"{place}: its encryption key cannot be used; check SSEKMSKeyId and its policy ({code})")
    if code is None and status in (401, 403):
        return DeniedError(f"{place}: access is denied (HTTP {status}); check the credentials and the URL")
    return None


def code_of(error: BaseException) -> str | None:
    """The S3 error code in an error or its causes: ``NoSuchKey``, or an HTTP status where the answer had no body."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code"):
            return str(response["Error"]["Code"])
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error or its causes."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(cause, "status", None)
        if isinstance(status, int):
            return status
    return None


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # botocore keeps what came from the socket as an attribute.
        inner = getattr(error, "kwargs", {}).get("error") if isinstance(getattr(error, "kwargs", None), dict) else None
        error = error.__cause__ or (inner if isinstance(inner, BaseException) else None)
