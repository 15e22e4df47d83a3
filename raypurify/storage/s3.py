"""S3 by way of s3fs, with one layer that decides on retries: here, a request at a time, its body with it.

s3fs retries requests and bodies, botocore requests again below it: both are told to make one attempt. A body is read
within its attempt, so that a cut or stalled one is asked for again whoever reads it (``cat_file``, an open file).

Settings come from where users of AWS and of fsspec have them, in every process anew:

- credentials, profile, role, region, endpoint: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``,
  ``AWS_PROFILE``, ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL``, ``~/.aws/config``, ``~/.aws/credentials``, and roles;
- public buckets without credentials: ``FSSPEC_S3_ANON=true``;
- server-side encryption: ``FSSPEC_S3_S3_ADDITIONAL_KWARGS='{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "…"}'``;
- requester pays: ``FSSPEC_S3_REQUESTER_PAYS=true``;
- path-style addresses, timeouts in seconds, connections at once: ``FSSPEC_S3_CONFIG_KWARGS='{"s3": {"addressing_style":
  "path"}, "connect_timeout": 5, "read_timeout": 20, "max_pool_connections": 64}'`` (these numbers are the defaults).

fsspec reads its variables, and ``~/.config/fsspec/*.json``, when it is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from raypurify.storage.retries import EXPIRED_CODES, Attempts, code_of, count, status_of

T = TypeVar("T")

SLOWEST = 4 * 2**10
"""Bytes a second: a body that comes or goes slower than this, beyond the read timeout, is given up and tried again."""

CONNECTIONS = 64

DELETED_AT_ONCE = 1000
"""How many objects one request deletes: S3 allows no more."""

BUFFERED = 256 * 2**20
"""Bytes: a body up to this size is read within its attempt. Larger ones are read in ranges, as s3fs does."""


class Body:
    """A body that was read whole, with what s3fs uses of a response's."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    async def read(self, amount: int | None = None) -> bytes:
        start = self._position
        self._position = len(self._data) if amount is None or amount < 0 else min(len(self._data), start + amount)
        return self._data[start : self._position]

    def close(self) -> None:
        """Nothing to close: the connection went back when the body was read."""


class S3(S3FileSystem):
    """s3fs, but for the retries and timeouts, errors that say what to do, and listings that are never stale."""

    retries = 1
    connect_timeout = 5
    read_timeout = 20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("use_listings_cache", False)
        super().__init__(*args, **kwargs)
        config = self._prepare_config_kwargs()
        # A request waits here for its connection, and not within the time of its attempt.
        self._connections = asyncio.Semaphore(config["max_pool_connections"])
        self._answer_within = float(config["connect_timeout"] + config["read_timeout"])
        self._renewing = asyncio.Lock()

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        defaults = {
            "connect_timeout": self.connect_timeout,
            "read_timeout": self.read_timeout,
            "max_pool_connections": CONNECTIONS,
        }
        return {**defaults, **self.config_kwargs, "retries": {"total_max_attempts": 1}}

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        """The answer to one request, attempted until the budget is used up."""
        place = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
        attempts, renewed = Attempts(), False
        while True:
            attempts.begin()
            client = None
            try:
                await self.set_session()
                client = await self.get_s3(kwargs.get("Bucket"))
                return await self._attempt(client, method, *akwarglist, **kwargs)
            except Exception as error:
                failure = await self._with_reason(client, error, method, kwargs)
                if not renewed and code_of(failure) in EXPIRED_CODES:
                    renewed = True
                    if await self._renew(client):
                        continue
                pause = attempts.pause(failure)
                if pause is None:
                    explained = attempts.failure(place, failure)
                    raise (explained if explained is not failure else translate_boto_error(failure)) from failure
            await asyncio.sleep(pause)

    call_s3 = sync_wrapper(_call_s3)

    async def _attempt(self, client: Any, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        call = getattr(client, method)
        arguments = self._get_s3_method_kwargs(call, *akwarglist, **kwargs)
        # s3fs leaves out what a botocore does not know. A condition must not be left out.
        arguments |= {name: kwargs[name] for name in ("IfMatch", "IfNoneMatch") if name in kwargs}
        sent = len(arguments["Body"]) if isinstance(arguments.get("Body"), bytes | bytearray | memoryview) else 0
        async with self._connections:
            answer = await self._within(call(**arguments), sent)
            if method == "get_object" and answer.get("ContentLength", 0) <= BUFFERED:
                stream = answer["Body"]
                try:
                    answer["Body"] = Body(await self._within(stream.read(), answer.get("ContentLength", 0)))
                finally:
                    stream.close()
        if method == "delete_objects" and answer.get("Errors"):
            # S3 answers 200 here also when keys could not be deleted.
            raise client.exceptions.ClientError({"Error": answer["Errors"][0]}, "DeleteObjects")
        return answer

    async def _within(self, answer: Awaitable[T], size: int) -> T:
        seconds = self._answer_within + size / SLOWEST
        try:
            return await asyncio.wait_for(answer, seconds)
        except asyncio.TimeoutError as error:
            if str(error):  # the client's own, which says more
                raise
            raise TimeoutError(f"{size} bytes took longer than {seconds:.0f} s") from error

    async def _with_reason(self, client: Any, error: Exception, method: str, kwargs: dict[str, Any]) -> Exception:
        """``error``, or where it answers a HEAD, and so has no body that says why, the error of a request that has."""
        if method not in ("head_object", "head_bucket") or status_of(error) not in (400, 403, 404):
            return error
        bucket = kwargs["Bucket"]
        if method == "head_bucket":
            probe = self._attempt(client, "list_objects_v2", Bucket=bucket, MaxKeys=1)
        elif status_of(error) != 404:
            probe = self._attempt(client, "get_object", Bucket=bucket, Key=kwargs["Key"], Range="bytes=0-0")
        else:
            return error
        count()
        try:
            await probe
        except Exception as reason:
            return reason
        return error

    async def _renew(self, client: Any) -> bool:
        """After expired credentials, read files and ask roles anew, and say whether that gave others."""
        async with self._renewing:
            if self._s3 is not client:
                return True
            try:
                before = await _credentials(client)
                await self.set_session(refresh=True)
                return before != await _credentials(self._s3)
            except Exception:
                # That they have expired is what there is to tell.
                return False

    async def _cat_file(
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        chunksize: int | None = None,
        max_concurrency: int | None = None,
    ) -> bytes:
        """The bytes of an object; those of most images take one request, not s3fs's two."""
        if start is not None or end is not None:
            return cast(bytes, await super()._cat_file(path, version_id=version_id, start=start, end=end))
        bucket, key, version = self.split_path(path)
        chosen = {"VersionId": version_id or version} if version_id or version else {}
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **chosen)
        if isinstance(answer["Body"], Body):
            return await answer["Body"].read()
        answer["Body"].close()
        return cast(
            bytes,
            await self._cat_file_concurrent(
                bucket,
                key,
                answer["ContentLength"],
                chunksize or self.default_block_size,
                max_concurrency=max_concurrency,
                version_id=version_id or version,
            ),
        )

    async def _remove(self, path: str) -> None:
        """Delete the object at a path, and those below it, by their keys: no name is taken for a pattern."""
        bucket, key, _ = self.split_path(path)
        keys = []
        if key:
            with contextlib.suppress(FileNotFoundError):
                await self._call_s3("head_object", Bucket=bucket, Key=key)
                keys.append(key)
        below = f"{key}/" if key else ""
        async for page in self._list_pages("list_objects_v2", Bucket=bucket, Prefix=below, **self.req_kw):
            keys += [found["Key"] for found in page.get("Contents", ())]
        batches = [keys[start : start + DELETED_AT_ONCE] for start in range(0, len(keys), DELETED_AT_ONCE)]
        await asyncio.gather(*(self._delete(bucket, batch) for batch in batches))

    remove = sync_wrapper(_remove)

    async def _delete(self, bucket: str, keys: list[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        await self._call_s3("delete_objects", Bucket=bucket, Delete=wanted)

    async def _read_version(self, path: str) -> tuple[bytes, str]:
        """An object and its entity tag."""
        bucket, key, _ = self.split_path(path)
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
        return await answer["Body"].read(), answer["ETag"]

    read_version = sync_wrapper(_read_version)

    async def _age(self, path: str) -> float:
        """Seconds since an object was written: its time and the time of the answer, both by the store's clock."""
        bucket, key, _ = self.split_path(path)
        answer = await self._call_s3("head_object", Bucket=bucket, Key=key)
        now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())

    age = sync_wrapper(_age)

    async def _put_if(self, path: str, data: bytes, **condition: str) -> str | None:
        """Write an object on a condition (``IfMatch`` or ``IfNoneMatch``): its entity tag, or None if not met."""
        bucket, key, _ = self.split_path(path)
        try:
            answer = await self._call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
            return str(answer["ETag"])
        except OSError as error:
            if not _unmet(error):
                raise
        # The answer to a request that was done may have been lost, and its repetition, by us or by the HTTP client
        # on a connection that broke, refused.
        try:
            found, version = await self._read_version(path)
        except FileNotFoundError:
            return None
        return version if found == data else None

    put_if = sync_wrapper(_put_if)

    async def _delete_if(self, path: str, version: str) -> bool:
        """Delete an object if it is at ``version``, and return whether it was."""
        bucket, key, _ = self.split_path(path)
        try:
            await self._call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version)
        except OSError as error:
            if not _unmet(error):
                raise
            return False
        return True

    delete_if = sync_wrapper(_delete_if)


def _unmet(error: OSError) -> bool:
    """Whether a conditional request failed for its condition."""
    return code_of(error) in ("PreconditionFailed", "412", "NoSuchKey", "404")


async def _credentials(client: Any) -> tuple[str, ...] | None:
    # The signer's are the ones in use; botocore gives no other way to them.
    source = client._request_signer._credentials
    return None if source is None else tuple(await source.get_frozen_credentials())
