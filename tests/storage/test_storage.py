import gc
import io
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from fault_proxy import Faults
from servers import faulty

from raypurify import storage
from raypurify.storage import conditional


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "a.bin")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"second")
    assert storage.read_bytes(url) == b"second"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "a.bin")
    storage.write_bytes(url, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"old"


def test_json_and_tables_come_back(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "a.json"), {"name": "é"})
    assert storage.read_json(str(tmp_path / "a.json")) == {"name": "é"}
    table = pa.table({"n": [1, 2]})
    storage.write_table(str(tmp_path / "a.parquet"), table)
    assert storage.read_table(str(tmp_path / "a.parquet")).equals(table)
    assert storage.read_tables([], table.schema).num_rows == 0


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        storage.read_json(str(tmp_path / "nowhere.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        storage.read_json(str(tmp_path / "broken.json"))
    with pytest.raises(ValueError, match="nosuchscheme"):
        storage.exists("nosuchscheme://bucket/key")


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a") == str(tmp_path / "runs/a")
    assert storage.is_local("runs/a")
    assert not storage.is_local("memory://a")
    assert storage.absolute("memory://a/b").startswith("memory://")


def test_listing_and_removing(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    assert storage.list_files(root) == []
    for name in ("b.parquet", "a.parquet", "c.json"):
        storage.write_bytes(storage.join(root, "x", name), b"")
    assert [url.rpartition("/")[2] for url in storage.list_files(root, ".parquet")] == ["a.parquet", "b.parquet"]
    storage.remove(root)
    storage.remove(root)
    assert not storage.exists(root)


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    url = str(tmp_path / ("é" * 127))
    storage.write_bytes(url, b"x")
    assert storage.read_bytes(url) == b"x"


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of each kind of store."""
    if request.param == "local":
        return str(tmp_path / "folder")
    root = request.getfixturevalue("s3") if request.param == "s3" else "memory://runs"
    return f"{root}/{uuid.uuid4().hex}"


def test_every_operation_on_every_store(place: str) -> None:
    folder, url = place.rpartition("/")[2], storage.join(place, "deep/a.bin")
    assert not storage.exists(url)
    assert storage.list_files(place) == []
    storage.write_bytes(url, b"some", content_type="image/png")
    storage.write_file(storage.join(place, "b.bin"), io.BytesIO(b"more"), content_type="application/x-tar")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"some"
    assert [name.partition(folder)[2] for name in storage.list_files(place)] == ["/b.bin", "/deep/a.bin"]
    storage.remove(place)
    assert storage.list_files(place) == []
    with pytest.raises(FileNotFoundError, match=r"there is no file .*a\.bin"):
        storage.read_bytes(url)


NAMES = [
    *("a*", "a?", "a[1]", "[!a]", "{a,b}", "**", "a]b", "50%25", "%", "a%2Fb", "a#b", "#", "a b", " a", "a\nb", "a~"),
    "\udcff",
]
"""Of files and folders; the last one is no UTF-8."""


def paths(urls: list[str]) -> set[str]:
    return {storage.filesystem(url)[1] for url in urls}


def below(folder: str) -> set[str]:
    return paths(storage.list_files(folder))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_mean_themselves_to_every_operation(place: str, name: str) -> None:
    if name == "\udcff" and not storage.is_local(place):
        pytest.skip("a name that is no UTF-8 can be on a disk only")
    if "\n" in name and place.startswith("s3"):
        pytest.skip("the server of the tests has no route for a newline in a key")
    others = [storage.join(place, other) for other in ("a", "a1", "ab", "abc", "b", "a/b", "a1b", "50", " ", "50%")]
    folder, beside = storage.join(place, name), [f"{url}/x.bin" for url in others]
    for number, url in enumerate(beside):
        storage.write_bytes(url, str(number).encode())
    file, deep = storage.join(folder, name), storage.join(folder, name, name)
    assert not storage.exists(folder)
    assert storage.list_files(folder) == []
    storage.write_bytes(storage.join(folder, "first"), b"first")
    storage.write_file(file + ".tar", io.BytesIO(b"tar"))
    storage.write_bytes(deep, b"deep")
    assert conditional.create(file + ".once", b"1")
    assert not conditional.create(file + ".once", b"2")
    data, version = conditional.read(file + ".once")
    assert data == b"1"
    second = conditional.replace(file + ".once", b"2", version)
    assert second
    assert not conditional.remove(file + ".once", version)
    table = pa.table({"n": [1]})
    storage.write_table(file + ".parquet", table)
    storage.write_json(file + ".json", [name.isascii()])
    storage.mark_success(folder)
    ends = [".json", ".once", ".parquet", ".tar"]
    there = [f"{folder}/{storage.SUCCESS}", f"{folder}/first", deep, *(file + end for end in ends)]
    assert below(folder) == paths(there)
    assert paths(storage.list_files(folder, ".tar")) == paths([file + ".tar"])
    assert all(storage.exists(url) for url in (folder, file, *there))
    assert storage.is_success(folder)
    contents = [b"deep", b"first", b"tar", b"2"]
    assert [data for _, data in storage.read_many([deep, f"{folder}/first", file + ".tar", file + ".once"])] == contents
    assert storage.read_table(file + ".parquet").equals(table)
    assert storage.read_json(file + ".json") == [name.isascii()]
    storage.remove(file + "*")
    assert below(folder) == paths(there)
    assert conditional.remove(file + ".once", second)
    storage.remove(file + ".tar")
    storage.clear(folder, keep=["first", name + ".json"])
    assert below(folder) == paths([f"{folder}/first", file + ".json"])
    storage.remove(folder)
    assert not storage.exists(folder)
    assert [storage.read_bytes(url) for url in beside] == [str(number).encode() for number in range(len(beside))]


def test_an_object_and_those_below_it_go_together(s3: str) -> None:
    place = f"{s3}/{uuid.uuid4().hex}"
    for url in (place, f"{place}/a", f"{place}-beside"):
        storage.write_bytes(url, b"x")
    storage.remove(place)
    assert not storage.exists(place)
    assert storage.exists(f"{place}-beside")


def test_the_content_type_is_kept_on_s3(s3: str) -> None:
    for url, write in ((f"{s3}/typed/a", storage.write_bytes), (f"{s3}/typed/b", _write_as_file)):
        write(url, b"data", content_type="image/png")
        fs, path = storage.filesystem(url)
        assert fs.info(path)["ContentType"] == "image/png"


def _write_as_file(url: str, data: bytes, content_type: str) -> None:
    storage.write_file(url, io.BytesIO(data), content_type)


class Broken(io.BytesIO):
    """A file that cannot be read to its end."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 0:
            raise OSError("the disk failed")
        return super().read(10)


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_a_file_that_cannot_be_read_to_its_end_is_not_written(place: str) -> None:
    url = storage.join(place, "a.tar")
    with pytest.raises(OSError, match="the disk failed"):
        storage.write_file(url, Broken(b"x" * 100))
    gc.collect()
    assert storage.list_files(place) == []


def test_many_files_come_in_order_and_missing_ones_as_errors(place: str) -> None:
    urls = [storage.join(place, f"{number}.bin") for number in range(20)]
    for number, url in enumerate(urls):
        if number != 7:
            storage.write_bytes(url, str(number).encode())
    drawn = 0

    def names() -> Iterator[str]:
        nonlocal drawn
        for url in urls:
            drawn += 1
            yield url

    found = storage.read_many(names(), at_once=4)
    assert next(found) == (0, b"0")
    assert drawn <= 5
    rest = list(found)
    assert [number for number, _ in rest] == list(range(1, 20))
    assert isinstance(rest[6][1], FileNotFoundError)
    assert "7.bin" in str(rest[6][1])
    assert all(data == str(number).encode() for number, data in rest if number != 7)
    with pytest.raises(ValueError, match="at_once = 0"):
        next(storage.read_many(urls, at_once=0))


def test_many_small_files_take_one_request_each_at_once(s3: str) -> None:
    urls = [f"{s3}/small/{number}" for number in range(24)]
    for url in urls:
        storage.write_bytes(url, b"x")
    with faulty(Faults(trickle=1.0, trickle_seconds=0.3)) as proxy:
        assert [data for _, data in storage.read_many(urls, at_once=8)] == [b"x"] * 24
    assert proxy.counts["requests"] == 24
    assert 4 < proxy.counts["most_at_once"] <= 8


def test_a_large_object_is_read_in_ranges(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypurify.storage.s3.BUFFERED", 2**16)
    data = bytes(range(256)) * 1024
    storage.write_bytes(f"{s3}/large", data)
    fs, path = storage.filesystem(f"{s3}/large")
    assert fs.cat_file(path, chunksize=50_000) == data


def test_a_changed_environment_is_another_client(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same, _ = storage.filesystem(f"{s3}/a")
    assert storage.filesystem("s3://other/b")[0] is same
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert storage.filesystem(f"{s3}/a")[0] is not same


SETTINGS = """
import io, sys
from raypurify import storage
from raypurify.storage import conditional
url = sys.argv[1]
storage.write_bytes(url + "/bytes", b"x")
storage.write_file(url + "/file", io.BytesIO(b"x"))
conditional.create(url + "/new", b"x")
assert storage.read_bytes(url + "/bytes") == b"x"
assert len(storage.list_files(url)) == 3
"""


def run_with(settings: dict[str, str], s3: str, *, check: bool = True) -> list[dict[str, str]]:
    """Headers of the requests of a fresh process with these environment variables."""
    with faulty(Faults()) as proxy:
        environment = {name: value for name, value in {**os.environ, **settings}.items() if value}
        command = [sys.executable, "-c", SETTINGS, f"{s3}/{uuid.uuid4().hex}"]
        subprocess.run(command, env=environment, check=check, stderr=None if check else subprocess.DEVNULL)
        return proxy.headers


def test_encryption_and_requester_pays_come_from_the_environment(s3: str) -> None:
    options = '{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "some-key"}'
    headers = run_with({"FSSPEC_S3_S3_ADDITIONAL_KWARGS": options, "FSSPEC_S3_REQUESTER_PAYS": "true"}, s3)
    written = [sent for sent in headers if sent[":path"].startswith("PUT")]
    assert len(written) == 3
    for sent in written:
        assert sent["x-amz-server-side-encryption"] == "aws:kms"
        assert sent["x-amz-server-side-encryption-aws-kms-key-id"] == "some-key"
    assert all(sent["x-amz-request-payer"] == "requester" for sent in headers)


def test_anonymous_access_signs_nothing(s3: str) -> None:
    signed = run_with({}, s3)
    assert all("Credential=tests/" in sent["authorization"] for sent in signed)
    # It may write to the server of the tests, but not read.
    unsigned = run_with({"FSSPEC_S3_ANON": "true"}, s3, check=False)
    assert len(unsigned) == 4
    assert not any("authorization" in sent for sent in unsigned)


def test_profile_region_and_endpoint_come_from_the_usual_files(s3: str, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[night]\naws_access_key_id = NIGHTKEY\naws_secret_access_key = secret\naws_session_token = token\n"
    )
    (tmp_path / "config").write_text("[profile night]\nregion = eu-north-1\n")
    headers = run_with(
        {
            "AWS_PROFILE": "night",
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_DEFAULT_REGION": "",
        },
        s3,
    )
    assert headers
    for sent in headers:
        assert "Credential=NIGHTKEY/" in sent["authorization"]
        assert "/eu-north-1/s3/" in sent["authorization"]
        assert sent["x-amz-security-token"] == "token"


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_the_style_of_addresses_comes_from_the_environment(s3: str, style: str) -> None:
    settings = {
        "FSSPEC_S3_CONFIG_KWARGS": f'{{"s3": {{"addressing_style": "{style}"}}}}',
        "AWS_ENDPOINT_URL": "http://store.test",
        "RAYPURIFY_RETRY_ATTEMPTS": "1",
    }
    with faulty(Faults(error=1.0)) as proxy:
        code = "import sys; from raypurify import storage; storage.exists(sys.argv[1])"
        environment = {**os.environ, **settings, "HTTP_PROXY": proxy.endpoint}
        process = subprocess.run([sys.executable, "-c", code, f"{s3}/a"], env=environment, stderr=subprocess.PIPE)
    assert b"UnavailableError: s3://runs/a: no success in 1 attempts" in process.stderr
    assert [sent["host"] for sent in proxy.headers] == ["store.test" if style == "path" else "runs.store.test"]
