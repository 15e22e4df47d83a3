"""Every format from places other than a local path: a real HTTP server, a real S3 server, memory."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import SIGNATURE, USER, WORD, QuietHandler, guarded_web, serving

from raypurify import images
from raypurify.data import DataError, labels_of, open_source, read_rows, take_rows
from raypurify.storage import retries

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
RECORDS = np.random.default_rng(1).integers(0, 10, (4, 3073), dtype=np.uint8)


@pytest.fixture
def local(tmp_path: Path, write_mnist) -> Path:
    """A folder with a dataset of each format."""
    root = tmp_path / "local"
    write_mnist(root / "idx")
    write_mnist(root / "idx_gz", gz=True)
    (root / "batches").mkdir()
    (root / "batches" / "data_batch_1.bin").write_bytes(RECORDS.tobytes())
    (root / "archive").mkdir()
    with tarfile.open(root / "archive" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.size = RECORDS.size
        archive.addfile(member, io.BytesIO(RECORDS.tobytes()))
    (root / "parquet").mkdir()
    encoded = [images.encode_png(image) for image in PIXELS]
    pq.write_table(pa.table({"image": encoded, "label": range(12)}), root / "parquet" / "a.parquet", row_group_size=5)
    for number, data in enumerate(encoded):
        path = root / "classes" / "train" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


FORMATS = ["idx", "idx_gz", "batches", "archive", "parquet", "classes"]


def check(local: Path, place: str) -> None:
    """Each dataset reads the same from ``place`` as from the local folder."""
    for name in FORMATS:
        here = open_source(str(local / name), split="train")
        there = open_source(f"{place}/{name}", split="train")
        assert (there.name, there.classes, there.image_shape) == (name, here.classes, here.image_shape)
        assert [(shard.key, shard.rows) for shard in there.shards] == [(shard.key, shard.rows) for shard in here.shards]
        labels = np.concatenate([read_rows(shard, 0, shard.rows).labels for shard in here.shards])
        np.testing.assert_array_equal(labels_of(there), labels)
        for shard, other in zip(here.shards, there.shards, strict=True):
            expected, got = read_rows(shard, 1, shard.rows), read_rows(other, 1, other.rows)
            assert got.ids == expected.ids
            np.testing.assert_array_equal(got.images, expected.images)
            np.testing.assert_array_equal(got.labels, expected.labels)
            backwards = np.arange(other.rows)[::-2]
            picked = take_rows(other, backwards)
            assert picked.ids == [read_rows(shard, row, row + 1).ids[0] for row in backwards]
            np.testing.assert_array_equal(picked.images, np.asarray(read_rows(shard, 0, shard.rows).images)[backwards])
            assert other.url.startswith(place)
    with pytest.raises(DataError, match=r"nowhere"):
        open_source(f"{place}/nowhere", split="train")


def test_http(local: Path, http_root) -> None:
    served, url = http_root
    local.rename(served / "local")
    check(served / "local", f"{url}/local")
    name = "parquet/a.parquet"
    assert sum(open_source(f"{url}/local/{name}", split=split).rows for split in ("train", "test")) == 12


def test_class_folders_of_a_server_that_is_busy_at_times(local: Path) -> None:
    seen: set[str] = set()

    class Busy(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802  # http.server's name
            if self.path in seen:
                super().do_GET()
            else:
                seen.add(self.path)
                self.send_error(503)

    retries.use(retries.Retries(first_pause=0.01, longest_pause=0.02))
    try:
        with serving(local, Busy) as port:
            source = open_source(f"http://127.0.0.1:{port}/classes", split="train")
            rows = [read_rows(shard, 0, shard.rows) for shard in source.shards]
    finally:
        retries.use(None)
    assert sum(len(one.ids) for one in rows) == 12
    assert not any(one.rejects for one in rows)
    assert sum(path.endswith(".png") for path in seen) == 12


def test_s3(local: Path, s3: str) -> None:
    fs, _ = fsspec.url_to_fs(s3)
    fs.put(str(local), f"{s3}/sets", recursive=True)
    check(local, f"{s3}/sets")
    with pytest.raises(DataError, match="no-such-bucket"):
        open_source("s3://no-such-bucket/a", split="train")


def test_memory(local: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(local), "/sets", recursive=True)
    try:
        check(local, "memory://sets")
    finally:
        fs.rm("/sets", recursive=True)


def test_a_file_url_is_a_local_path(local: Path) -> None:
    source = open_source(f"file://{local}/idx", split="train")
    assert source.shards[0].url == str(local / "idx" / "train-images-idx3-ubyte")
    assert source.fingerprint == open_source(str(local / "idx"), split="train").fingerprint


def test_a_relative_path_becomes_absolute(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(local)
    assert open_source("parquet", split="train").shards[0].url == str(local / "parquet" / "a.parquet")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match=r"nosuch://a/b.*: .*nosuch"):
        open_source("nosuch://a/b", split="train")


def test_ids_of_a_signed_url_have_no_signature(tmp_path: Path) -> None:
    image = images.encode_png(np.zeros((4, 4, 3), np.uint8))
    pq.write_table(pa.table({"image": [image, b"damaged"], "label": [0, 1]}), tmp_path / "rows.parquet")
    with guarded_web(tmp_path) as host:
        for url in (f"http://{host}/rows.parquet?sig={SIGNATURE}", f"http://{USER}:{WORD}@{host}/rows.parquet"):
            source = open_source(url, split="train")
            assert source.name == "rows.parquet"
            assert all(shard.key == "rows.parquet" for shard in source.shards)
