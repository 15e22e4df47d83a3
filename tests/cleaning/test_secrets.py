"""Signed URLs and passwords in an input: in the plan, and nowhere else."""

from __future__ import annotations

import io
import tarfile
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from one_process import clean, rows_of
from servers import SIGNATURE, USER, WORD, files_with, guarded_web

from raypurify import runs, storage
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.cleaning.inputs import check_apart
from raypurify.images import encode_png
from raypurify.storage.published import short_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, a tar and a Parquet file of them."""
    folder = tmp_path / "web"
    folder.mkdir()
    image = encode_png(np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8))
    for name in ("a.png", "noextension"):
        (folder / name).write_bytes(image)
    (folder / "broken.png").write_bytes(image[:40])
    pq.write_table(pa.table({"image": [image, b"broken"]}), folder / "rows.parquet")
    with tarfile.open(folder / "b.tar", "w") as tar:
        info = tarfile.TarInfo("b.png")
        info.size = len(image)
        tar.addfile(info, io.BytesIO(image))
    return folder


def test_secrets_of_urls_are_in_the_plan_only(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    output = tmp_path / "out"
    names = ("a.png", "broken.png", "gone.png", "noextension", "rows.parquet", "b.tar")
    with guarded_web(folder) as host:
        signed = [f"http://{host}/{name}?sig={SIGNATURE}&n={number}" for number, name in enumerate(names)]
        named = [f"http://{USER}:{WORD}@{host.replace('127.0.0.1', 'localhost')}/{name}" for name in names]
        (tmp_path / "list.txt").write_text("\n".join([*signed, *named]))
        totals = clean(CleaningConfig(input=str(tmp_path / "list.txt"), purifier="identity"), str(output))
        assert totals is not None
        assert (totals.cleaned, totals.rejected) == (8, 6)
        sources = {row["source"] for row in rows_of(str(output), "manifest")}
        assert sources >= {f"http://{host}/a.png?…", f"http://…@{host.replace('127.0.0.1', 'localhost')}/a.png"}
        alone = [f"http://{USER}:{WORD}@{host}/a.png", f"http://{host}/broken.png?sig={SIGNATURE}"]
        for number, url in enumerate(alone):
            clean(CleaningConfig(input=url, purifier="identity"), str(output / str(number)))
    for secret in (WORD, SIGNATURE):
        found = files_with(secret, output)
        assert found
        assert all(name.partition("plan/")[1] for name in found)
    said = capfd.readouterr()
    assert "s3cr3t" not in said.out + said.err


def test_another_signature_is_the_same_input(folder: Path, tmp_path: Path):
    with guarded_web(folder) as host:
        for parameter in ("&se=1", "&se=2"):
            url = f"http://{host}/a.png?sig={SIGNATURE}{parameter}"
            assert clean(CleaningConfig(input=url, purifier="identity"), str(tmp_path / "out")) is not None
        for other in (f"http://{host}/b.png", f"{url}&id=1"):
            with pytest.raises(ValueError, match=r"holds a run with input = 'http://.*/a\.png\?…'"):
                clean(CleaningConfig(input=other, purifier="identity"), str(tmp_path / "out"))


def test_links_that_differ_in_more_than_a_signature_are_inputs_apart(folder: Path, tmp_path: Path):
    output = str(tmp_path / "out")
    with guarded_web(folder) as host:
        names = ("a.png", "a.png?id=1", "a.png?id=2", "b.tar?id=1", "noextension?id=1")
        urls = [f"http://{host}/{name}{'&' if '?' in name else '?'}sig={SIGNATURE}" for name in names]
        (tmp_path / "list.txt").write_text("\n".join(urls))
        clean(CleaningConfig(input=str(tmp_path / "list.txt"), purifier="identity"), output)
        for url in urls[1:3]:
            clean(CleaningConfig(input=url, purifier="identity"), f"{output}/{short_hash(url)}")
            with pytest.raises(ValueError, match=r"holds a run with input = 'http://.*/a\.png\?…~\w{16}'"):
                clean(CleaningConfig(input=urls[0], purifier="identity"), f"{output}/{short_hash(url)}")
    one, two = (short_hash(f"id={number}") for number in (1, 2))
    ids = {row["id"].removeprefix(f"{host}/") for row in rows_of(output, "manifest")}
    assert ids == {"a.png", f"a~{one}.png", f"a~{two}.png", f"b~{one}.tar#b.png", f"noextension~{one}"}
    alone = rows_of(f"{output}/{short_hash(urls[2])}", "manifest")
    assert [row["id"] for row in alone] == [f"a~{two}.png"]


def test_an_old_output_that_names_a_secret_goes_on(tmp_path: Path):
    output = str(tmp_path / "out")
    identity = {"input": f"https://host/a.png?sig={SIGNATURE}"}
    storage.write_json(f"{output}/run.json", {"identity": identity, "attempts": []})
    runs.open_run(output, identity).begin()
    assert files_with(SIGNATURE, tmp_path / "out") == []


@pytest.mark.parametrize("path", ["a.json", "gone/", "gone.png", "x.txt", "*/a.png", "none[1].png"])
def test_messages_about_an_input_name_no_secret(folder: Path, tmp_path: Path, path: str):
    (folder / "a.json").write_text("{}")
    (folder / "x.txt").write_text("")
    with guarded_web(folder) as host:
        for url in (f"http://{USER}:{WORD}@{host}/{path}", f"http://{host}/{path}?sig={SIGNATURE}"):
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                clean(CleaningConfig(input=url, purifier="identity"), str(tmp_path / "out"), overwrite=True)
            assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
            with pytest.raises(ValueError, match="inside the") as caught:
                check_apart(url, f"{url}/x")
            assert "s3cr3t" not in str(caught.value)
