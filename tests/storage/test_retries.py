"""The budget of attempts, and S3 behind a proxy that fails as networks and stores do."""

from __future__ import annotations

import http.server
import os
import pickle
import subprocess
import sys
import threading
import traceback
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import Faults, Proxy, running
from servers import answers, faulty, free_port, serving, wait_for

from raypurify import storage
from raypurify.data import DataError, files
from raypurify.storage import retries
from raypurify.storage.retries import Attempts, DeniedError, NoBucketError, Retries, UnavailableError

SIGNATURE = uuid.uuid4().hex
FAST = Retries(first_pause=0.01, longest_pause=0.02)


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    retries.use(FAST)
    yield
    retries.use(None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timeouts, as users set them."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"connect_timeout": 0.5, "read_timeout": 0.5}})


@pytest.fixture(scope="module")
def _proxy(s3: str) -> Iterator[Proxy]:
    with faulty(Faults()) as proxy:
        yield proxy


@pytest.fixture
def proxy(_proxy: Proxy) -> Iterator[Proxy]:
    """The proxy that S3 is behind. It does no harm until a test sets its faults."""
    _proxy.counts.clear()
    _proxy.asked.clear()
    yield _proxy
    _proxy.faults = Faults()


@pytest.fixture
def folder(s3: str, proxy: Proxy, request: pytest.FixtureRequest) -> str:
    """A folder of the test's own. Its name is always the same, so that the faults, which are drawn from it, are too."""
    return f"{s3}/{request.node.name.translate(str.maketrans('[]', '--'))}"


class Failing:
    """Fails a number of times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "done"


def test_transient_failures_are_tried_again_and_counted() -> None:
    before = retries.counts()
    assert retries.call(Failing(3, ConnectionResetError()), "http://host/a") == "done"
    assert retries.since(before) == {"requests": 4, "retries": 3}


def test_counts_are_right_from_many_threads() -> None:
    before = retries.counts()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: retries.call(Failing(1, TimeoutError()), "http://host/a"), range(200)))
    assert retries.since(before) == {"requests": 400, "retries": 200}


def test_other_failures_are_raised_at_once_as_they_came() -> None:
    before, error = retries.counts(), FileNotFoundError("gone")
    with pytest.raises(FileNotFoundError) as caught:
        retries.call(Failing(1, error), "http://host/a")
    assert caught.value is error
    assert retries.since(before) == {"requests": 1, "retries": 0}


def test_the_budget_ends_by_attempts_and_by_seconds() -> None:
    with pytest.raises(UnavailableError, match=r"host/a: no success in 3 attempts .*RAYPURIFY_RETRY_ATTEMPTS"):
        retries.call(Failing(9, TimeoutError()), "http://host/a", Retries(attempts=3, first_pause=0))
    with pytest.raises(UnavailableError, match=r"no success in 1 attempts"):
        retries.call(Failing(9, TimeoutError()), "http://host/a", Retries(seconds=0, first_pause=1e-3))


def test_pauses_are_drawn_evenly_below_a_bound_that_doubles() -> None:
    budget = Retries(attempts=100, seconds=1e9, first_pause=1.0, longest_pause=10.0)
    drawn: list[list[float]] = [[] for _ in range(7)]
    for _ in range(2000):
        attempts = Attempts(budget)
        for pauses in drawn:
            attempts.begin()
            pauses.append(attempts.pause(TimeoutError()) or 0.0)
    for pauses, bound in zip(drawn, (1, 2, 4, 8, 10, 10, 10), strict=True):
        assert 0.95 * bound < max(pauses) <= bound
        assert min(pauses) < 0.05 * bound
        assert sum(pauses) / len(pauses) == pytest.approx(bound / 2, rel=0.1)


def test_the_environment_sets_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    retries.use(None)
    monkeypatch.setenv("RAYPURIFY_RETRY_ATTEMPTS", "3")
    monkeypatch.setenv("RAYPURIFY_RETRY_SECONDS", "7.5")
    assert retries.current() == Retries(attempts=3, seconds=7.5)
    monkeypatch.setenv("RAYPURIFY_RETRY_ATTEMPTS", "often")
    with pytest.raises(ValueError, match="RAYPURIFY_RETRY_ATTEMPTS = 'often': expected a number"):
        retries.current()


@pytest.mark.parametrize(("field", "value"), [("attempts", 0), ("seconds", -1.0), ("longest_pause", float("nan"))])
def test_a_senseless_budget_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        Retries(**{field: value})  # type: ignore[arg-type]


def test_the_errors_survive_the_way_between_processes() -> None:
    for error in (DeniedError("a"), NoBucketError("b"), UnavailableError("c")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_everything_comes_right_through_a_bad_network(folder: str, proxy: Proxy, impatient: None) -> None:
    proxy.faults = Faults(
        seed=1, error=0.03, slow_down=0.03, reset=0.02, cut=0.02, hang=0.01, hang_seconds=4, trickle=0.005
    )
    contents = {f"{folder}/{number:03d}": os.urandom(100 + 50 * number) for number in range(150)}
    before = retries.counts()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(storage.write_bytes, contents, contents.values()))
        assert storage.list_files(folder) == list(contents)
        assert [data for _, data in storage.read_many(contents)] == list(contents.values())
        assert all(pool.map(storage.exists, contents))
        storage.remove(folder)
        assert storage.list_files(folder) == []
    for kind in ("error", "slow_down", "reset", "cut", "hang", "lost"):
        assert proxy.counts[kind], kind
    done = retries.since(before)
    # aiohttp sends a request again by itself where the server had closed a kept connection meanwhile.
    assert done["requests"] == pytest.approx(proxy.counts["requests"], rel=0.05)
    assert done["retries"] >= 0.05 * done["requests"]


ONE_KIND = [
    Faults(error=0.5, seed=3),
    Faults(slow_down=0.5, seed=3),
    Faults(reset=0.5, seed=3),
    Faults(cut=0.5, seed=3),
    Faults(hang=0.5, hang_seconds=30, seed=3),
    Faults(lost=("GET", "PUT", "HEAD", "DELETE", "POST")),
]


@pytest.mark.parametrize("faults", ONE_KIND, ids=["error", "slow_down", "reset", "cut", "hang", "lost"])
def test_each_kind_of_failure_is_overcome(folder: str, proxy: Proxy, faults: Faults, impatient: None) -> None:
    data, proxy.faults = os.urandom(2**18), faults
    storage.write_bytes(f"{folder}/a", data)
    assert storage.read_bytes(f"{folder}/a") == data
    with files.open_file(f"{folder}/a") as file:
        file.seek(2**17)
        assert file.read() == data[2**17 :]
    assert storage.list_files(folder) == [f"{folder}/a"]
    storage.remove(folder)
    assert not storage.exists(f"{folder}/a")
    assert sum(count for kind, count in proxy.counts.items() if kind not in ("requests", "most_at_once"))


def test_a_body_that_comes_too_slowly_is_asked_for_again(
    folder: str, proxy: Proxy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypurify.storage.s3.SLOWEST", 2**20)
    storage.write_bytes(f"{folder}/a", b"x" * 1000)
    # Bits come all the time, so that no timeout of a socket would end it.
    proxy.faults = Faults(trickle=0.5, trickle_seconds=8, seed=5)
    before = retries.counts()
    for _ in range(4):
        assert storage.read_bytes(f"{folder}/a") == b"x" * 1000
    assert proxy.counts["trickle"] > 0
    assert retries.since(before)["retries"] == proxy.counts["trickle"]


def test_attempts_of_the_layers_do_not_multiply(folder: str, proxy: Proxy) -> None:
    retries.use(Retries(attempts=3, first_pause=0))
    proxy.faults = Faults(error=1.0)
    with pytest.raises(UnavailableError, match=r"/a: no success in 3 attempts .*InternalError"):
        storage.read_bytes(f"{folder}/a")
    assert proxy.counts["requests"] == 3
    with pytest.raises(UnavailableError):
        next(storage.read_many([f"{folder}/a"]))


def test_parquet_is_read_and_an_outage_is_told_from_a_bad_file(folder: str, proxy: Proxy) -> None:
    url = f"{folder}/a.parquet"
    storage.write_table(url, pa.table({"n": range(1000)}))
    proxy.faults = Faults(cut=0.3, error=0.2, seed=2)
    with files.open_file(url) as file:
        assert pq.ParquetFile(file, pre_buffer=True).read().num_rows == 1000
    proxy.faults = Faults(slow_down=1.0)
    with pytest.raises(files.StoreError, match=r"no success in 12 attempts .*503"):
        files.open_file(url)
    proxy.faults = Faults()
    with files.open_file(url) as file:
        proxy.faults = Faults(slow_down=1.0)
        with pytest.raises(UnavailableError, match="SlowDown"):
            pq.ParquetFile(file)


def test_keys_that_could_not_be_deleted_are_no_silent_success(folder: str) -> None:
    page = b"<DeleteResult><Error><Key>a</Key><Code>InternalError</Code><Message>no</Message></Error></DeleteResult>"

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        fs, _ = storage.filesystem(folder)
        retries.use(Retries(attempts=2, first_pause=0))
        with pytest.raises(UnavailableError, match="InternalError"):
            fs.call_s3("delete_objects", Bucket="runs", Delete={"Objects": [{"Key": "a"}]})
        server.shutdown()


@pytest.fixture(scope="module")
def _credentials() -> list[str]:
    return [uuid.uuid4().hex, uuid.uuid4().hex]


@pytest.fixture
def credentials(_credentials: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A secret key and a session token that nothing else contains."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _credentials[0])
    monkeypatch.setenv("AWS_SESSION_TOKEN", _credentials[1])
    return _credentials


OPERATIONS = {
    "read": lambda url: storage.read_bytes(url),
    "write": lambda url: storage.write_bytes(url, b"x"),
    "exists": lambda url: storage.exists(url),
    "list": lambda url: storage.list_files(url),
    "remove": lambda url: storage.remove(url),
    "read_many": lambda url: list(storage.read_many([url])),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(denied=("secret",)), "access is denied"),
        (Faults(expired_after=0), "the temporary credentials have expired"),
        (Faults(signature=True), "the secret key does not fit the access key"),
    ],
    ids=["denied", "expired", "signature"],
)
def test_refusals_fail_at_once_and_say_which(
    folder: str, proxy: Proxy, credentials: list[str], operation: str, faults: Faults, words: str
) -> None:
    # A listing names its folder in the query, which the proxy does not look into.
    url = "s3://secret-bucket/secret" if operation in ("list", "remove", "exists") else f"{folder}/secret"
    proxy.faults = faults
    with pytest.raises(DeniedError, match=words) as caught:
        OPERATIONS[operation](url)
    # A HEAD has no body that says why: botocore asks for the region then, and another request for the reason.
    assert proxy.counts["requests"] <= 3
    assert url in str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    assert not any(secret in told for secret in [*credentials, "Signature="])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_bucket_fails_at_once(proxy: Proxy, operation: str) -> None:
    with pytest.raises(NoBucketError, match=r"s3://no-such-bucket/.*there is no such bucket"):
        OPERATIONS[operation]("s3://no-such-bucket/a")
    assert proxy.counts["requests"] <= 2
    with pytest.raises(files.StoreError, match="there is no such bucket"):
        files.stat("s3://no-such-bucket/a")


def test_missing_files_are_not_tried_again(folder: str) -> None:
    before = retries.counts()
    with pytest.raises(FileNotFoundError, match=f"there is no file {folder}/a"):
        storage.read_bytes(f"{folder}/a")
    assert files.stat(f"{folder}/a") is None
    assert retries.since(before)["retries"] == 0


WITHOUT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_no_credentials_and_no_such_profile_fail_at_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WITHOUT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    before = retries.counts()
    with pytest.raises(DeniedError, match=r"s3://runs/a: no credentials to use \(NoCredentialsError"):
        storage.read_bytes(f"{s3}/a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(DeniedError, match=r"ProfileNotFound: The config profile \(nobody\)"):
        storage.read_bytes(f"{s3}/a")
    assert retries.since(before) == {"requests": 2, "retries": 0}


def test_credentials_that_run_out_are_read_anew(
    folder: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(token: str) -> None:
        lines = ["[default]", "aws_access_key_id = KEY", "aws_secret_access_key = secret"]
        (tmp_path / "credentials").write_text("\n".join([*lines, f"aws_session_token = {token}", ""]))

    for name in WITHOUT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    write("first")
    urls = [f"{folder}/{number}" for number in range(8)]
    for url in urls:
        storage.write_bytes(url, b"x")
    proxy.faults = Faults(expired_tokens=("first",))
    proxy.counts.clear()
    with pytest.raises(DeniedError, match="the temporary credentials have expired"):
        storage.read_bytes(urls[0])
    assert proxy.counts["requests"] == 1
    write("second")
    assert [data for _, data in storage.read_many(urls)] == [b"x"] * 8
    assert storage.exists(urls[0])
    proxy.faults = Faults(expired_tokens=("first", "second"))
    write("third")
    assert storage.exists(urls[0])
    assert proxy.headers[-1]["x-amz-security-token"] == "third"


@pytest.fixture
def http_site(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder and the port at which a real HTTP server serves it."""
    with serving(tmp_path) as port:
        yield tmp_path, port


def test_http_is_tried_again_and_signed_addresses_are_not_shown(http_site: tuple[Path, int]) -> None:
    folder, port = http_site
    (folder / "a.bin").write_bytes(b"some" * 1000)
    with running(port, Faults(error=0.3, cut=0.2, seed=4)) as proxy:
        for _ in range(5):
            assert storage.read_bytes(f"{proxy.endpoint}/a.bin") == b"some" * 1000
            assert files.read_range(f"{proxy.endpoint}/a.bin", 4, 8) == b"some"
        assert proxy.counts["error"]
        assert proxy.counts["cut"]
        proxy.faults = Faults(denied=("a.bin",))
        check_refused(proxy)
        proxy.faults = Faults()
        for read in (storage.read_bytes, files.open_file):
            with pytest.raises((FileNotFoundError, DataError)) as caught:
                read(f"{proxy.endpoint}/none?X-Signature={SIGNATURE}")
            assert SIGNATURE not in "".join(traceback.format_exception(caught.value))


def check_refused(proxy: Proxy) -> None:
    proxy.counts.clear()
    with pytest.raises(DeniedError, match=r"a\.bin\?…: access is denied \(HTTP 403\)") as caught:
        storage.read_bytes(f"{proxy.endpoint}/a.bin?X-Signature={SIGNATURE}")
    assert proxy.counts["requests"] == 1
    assert SIGNATURE not in "".join(traceback.format_exception(caught.value))


def test_an_http_server_that_hangs_is_given_up(http_site: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypurify.storage.files.READ_TIMEOUT", 0.3)
    folder, port = http_site
    (folder / "a.bin").write_bytes(b"some")
    with running(port, Faults(hang=0.5, hang_seconds=60, seed=1)) as proxy:
        for number in range(4):
            (folder / f"{number}.bin").write_bytes(b"some")
            assert storage.read_bytes(f"{proxy.endpoint}/{number}.bin") == b"some"
        assert proxy.counts["hang"]


def test_the_proxy_runs_as_a_program(s3: str) -> None:
    port, target = free_port(), os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]
    program = Path(__file__).parents[1] / "fault_proxy.py"
    process = subprocess.Popen([sys.executable, program, str(port), "--target", target, "--faults", '{"error": 1.0}'])
    try:
        wait_for(lambda: answers(port), 30, "proxy")
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/runs", timeout=10)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_counts", timeout=10) as answer:
            assert b'"error": 1' in answer.read()
    finally:
        process.terminate()
        process.wait()
