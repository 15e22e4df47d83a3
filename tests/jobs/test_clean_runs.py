"""Bulk cleaning: goes on, is updated, keeps what is beside the images, and refuses; in this process."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import accounts, encoded, pixels, put
from pictures import corpus as corpus

from raypurify import models, storage
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.images import decode, encode_png
from raypurify.jobs.clean import clean, dry_run
from raypurify.jobs.resources import ActorPool
from raypurify.runs import StoppedError

POOL = ActorPool(actors=1, batch=8, local=True)


def test_a_run_goes_on_where_it_stopped(corpus: dict[str, bytes], tmp_path: Path) -> None:
    source, output = put(str(tmp_path / "in"), corpus), str(tmp_path / "out")
    config = CleaningConfig(input=source, purifier="median_filter")
    clean(config, POOL, output)
    whole = {url: storage.read_bytes(url) for url in storage.list_files(output)}
    (manifest,) = storage.list_files(storage.join(output, "manifest"))
    storage.remove(manifest)
    storage.remove(storage.join(output, "_SUCCESS"))
    storage.remove(storage.join(output, "images", "cats"))
    put(source, {"later.png": corpus["same.png"]})  # the listing was frozen
    clean(config, POOL, output)
    again = {url: storage.read_bytes(url) for url in storage.list_files(output)}
    assert set(again) == set(whole)
    changed = {url for url in whole if whole[url] != again[url]}
    assert {url.rpartition("/")[2] for url in changed} <= {"run.json", "report.html"}


def test_accounts_of_an_earlier_version_count(corpus: dict[str, bytes], tmp_path: Path) -> None:
    source, output = put(str(tmp_path / "in"), corpus), str(tmp_path / "out")
    config = CleaningConfig(input=source, purifier="identity")
    cleaned = clean(config, POOL, output).cleaned
    (manifest,) = storage.list_files(storage.join(output, "manifest"))
    storage.write_table(manifest, storage.read_table(manifest).drop_columns(["detected"]))
    totals = clean(config, POOL, output)
    assert (totals.cleaned, totals.detected) == (cleaned, None)


def test_a_relative_input_is_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(str(tmp_path / "a" / "in"), {"x.png": encoded(0, 5, 5), "notes.txt": b"text"})
    put(str(tmp_path / "b" / "in"), {"y.png": encoded(1, 5, 5)})
    output = str(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "a")
    totals = clean(CleaningConfig(input="in", purifier="identity"), POOL, output)
    assert (totals.cleaned, totals.left_alone) == (1, "1 .txt")
    assert "named twice: 1 .txt" in Path(output, "report.html").read_text()
    assert clean(CleaningConfig(input=str(tmp_path / "a" / "in"), purifier="identity"), POOL, output).cleaned == 1
    assert "already finished" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match="holds a run with input"):
        clean(CleaningConfig(input="in", purifier="identity"), POOL, output)


def test_another_run_in_the_same_place_reads_its_own_plan(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    for name in ("first", "second"):
        source = put(str(tmp_path / name), {f"{name}.png": encoded(0, 5, 5)})
        clean(CleaningConfig(input=source, purifier="identity"), POOL, output, overwrite=True)
        assert [row["id"] for row in accounts(output, "manifest")] == [f"{name}.png"]


def test_an_update_cleans_what_is_new_or_changed(corpus: dict[str, bytes], tmp_path: Path) -> None:
    source, output = put(str(tmp_path / "in"), corpus), str(tmp_path / "out")
    config = CleaningConfig(input=source, purifier="threshold")
    clean(config, POOL, output)
    untouched = Path(output, "images", "cats", "002.png").stat().st_mtime_ns
    put(
        source,
        {"new.png": corpus["same.png"], "cats/000.png": encoded(500, 5, 6), "damaged.jpg": encoded(7, 4, 4, "JPEG")},
    )
    Path(source, "same.bmp").unlink()
    totals = clean(config, POOL, output, update=True)
    assert (totals.cleaned, totals.rejected) == (45, 0)
    rows = accounts(output, "manifest")
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) == 45
    assert {row["id"]: (row["height"], row["width"]) for row in rows}["cats/000.png"] == (5, 6)
    assert pixels(storage.join(output, "images", "cats/000.png")).shape == (5, 6, 3)
    assert Path(output, "images", "cats", "002.png").stat().st_mtime_ns == untouched
    assert clean(config, POOL, output).cleaned == 45


def test_an_update_of_an_unfinished_output_finishes_it_first(corpus: dict[str, bytes], tmp_path: Path) -> None:
    source, output = put(str(tmp_path / "in"), corpus), str(tmp_path / "out")
    config = CleaningConfig(input=source, purifier="threshold")
    with pytest.raises(StoppedError, match="1 of 44 images"):
        clean(config, POOL, output, max_rejects=0.01)
    (manifest,) = storage.list_files(storage.join(output, "manifest"))
    storage.remove(manifest)
    put(source, {"new.png": corpus["same.png"], "damaged.jpg": encoded(7, 4, 4, "JPEG")})
    totals = clean(config, POOL, output, max_rejects=0.01, update=True)
    assert (totals.cleaned, totals.rejected) == (45, 0)
    assert {row["id"] for row in accounts(output, "manifest")} == {*corpus, "new.png"} - {"notes.txt"}
    assert storage.is_success(output)


def test_parquet_keeps_its_columns(tmp_path: Path) -> None:
    images = [encoded(index, 8, 8) for index in range(1203)]
    images[7] = b"broken"
    column = pa.array([{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(images)])
    table = pa.table({"img": column, "label": pa.array(range(1203)), "split": ["a"] * 1203})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "train.parquet", row_group_size=700)
    output = str(tmp_path / "out")
    totals = clean(CleaningConfig(input=str(tmp_path / "in"), purifier="threshold"), POOL, output)
    assert (totals.cleaned, totals.rejected) == (1202, 1)
    assert [row["id"] for row in accounts(output, "rejects")] == ["train.parquet#7"]
    files = storage.list_files(storage.join(output, "images"))
    cleaned = pa.concat_tables([pq.read_table(url) for url in files])
    assert sorted(cleaned["label"].to_pylist()) == [index for index in range(1203) if index != 7]
    assert cleaned.schema.field("img").type == table.schema.field("img").type
    for row in accounts(output, "manifest")[::100]:
        index = int(row["id"].partition("#")[2])
        written = pq.read_table(row["output"])["img"][row["row"]].as_py()
        assert written["path"] == f"{index}.png"
        assert np.array_equal(decode(written["bytes"]), np.where(decode(images[index]) > 127, 255, 0))


def test_a_tar_keeps_its_samples_together(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "shard.tar", "w") as tar:
        for index in range(30):
            for name, data in (
                (f"{index:03d}.jpg", encoded(index, 10 + index % 3, 10, "JPEG") if index != 4 else b"?"),
                (f"{index:03d}.json", json.dumps({"index": index}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo("030.gif")
        member.size = len(encoded(0, 5, 5, "GIF"))
        tar.addfile(member, io.BytesIO(encoded(0, 5, 5, "GIF")))
    output = str(tmp_path / "out")
    totals = clean(CleaningConfig(input=str(tmp_path / "in"), purifier="identity"), POOL, output)
    assert (totals.cleaned, totals.rejected) == (29, 2)
    reasons = {row["id"]: row["reason"] for row in accounts(output, "rejects")}
    assert reasons["shard.tar#030.gif"] == "is a GIF; expected PNG, JPEG, WebP, BMP or TIFF"
    with tarfile.open(storage.join(output, "images", "shard.tar")) as tar:
        names = tar.getnames()
    expected = [f"{index:03d}.{kind}" for index in range(30) for kind in ("png", "json")]
    assert names == [name for name in expected if name != "004.png"]


def test_a_dry_run_counts_tries_and_writes_nothing(
    corpus: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put(str(tmp_path / "in"), corpus)
    config = CleaningConfig(input=source, purifier="identity")
    found = dry_run(config, POOL, str(tmp_path / "out"))
    assert (found["files"], found["images"], found["tried"], found["rejected"]) == (44, 44, 44, 1)
    assert found["skipped_files"] == "1 .txt"
    assert found["images_per_second"] > 0
    assert "rejected: damaged.jpg" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shards", ["parquet", "webdataset"])
def test_images_go_into_shards(shards: str, corpus: dict[str, bytes], tmp_path: Path) -> None:
    source, output = put(str(tmp_path / "in"), corpus), str(tmp_path / "out")
    clean(CleaningConfig(input=source, purifier="identity", shards=shards), POOL, output)  # type: ignore[arg-type]
    (url,) = storage.list_files(storage.join(output, "images"))
    for row in accounts(output, "manifest"):
        assert row["output"] == url
        if shards == "parquet":
            data = pq.read_table(url)["image"][row["row"]].as_py()
        else:
            with tarfile.open(url) as tar:
                data = tar.extractfile(tar.getmembers()[row["row"]]).read()  # type: ignore[union-attr]
        if row["id"] != "clear.png":
            assert np.array_equal(decode(data), decode(corpus[row["id"]]))


def test_refusals(corpus: dict[str, bytes], tmp_path: Path, small_purifier: str) -> None:
    source = put(str(tmp_path / "in"), {"a.png": corpus["same.png"]})
    with pytest.raises(ValueError, match="inside"):
        clean(CleaningConfig(input=source, purifier="identity"), POOL, f"{source}/out")
    with pytest.raises(ValueError, match="channel"):
        clean(CleaningConfig(input=source, purifier=small_purifier), POOL, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="no such file or folder"):
        clean(CleaningConfig(input=f"{source}-wrong", purifier="identity"), POOL, str(tmp_path / "out"))
    # What was refused leaves nothing that the next command would be held against.
    assert storage.list_files(str(tmp_path / "out")) == []
    bad = put(str(tmp_path / "bad"), {f"{index}.png": b"no" for index in range(1000)})
    with pytest.raises(StoppedError, match=r"Reasons so far: [\d,]+ x is not an image: .* it begins with b'no'"):
        clean(CleaningConfig(input=bad, purifier="identity"), POOL, str(tmp_path / "out2"), max_rejects=0.5)


def test_photographs_and_grey_images_are_cleaned_with_no_flag_but_input_and_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put(str(tmp_path / "in"), {"a.png": encoded(0, 40, 33), "grey.png": encoded(1, 24, 24, mode="L")})
    totals = clean(CleaningConfig(input=source), POOL, str(tmp_path / "out"))
    assert (totals.cleaned, totals.rejected) == (2, 0)
    assert "warning" not in "".join(capsys.readouterr())
    assert pixels(f"{tmp_path}/out/images/a.png").shape == (40, 33, 3)
    assert pixels(f"{tmp_path}/out/images/grey.png").shape == (24, 24, 1)
    by_path = CleaningConfig(input=source, purifier=str(Path(__file__).parents[2] / "raypurify/weights/photos/cru_net"))
    clean(by_path, POOL, str(tmp_path / "again"))
    for name in ("a.png", "grey.png"):
        assert storage.read_bytes(f"{tmp_path}/out/images/{name}") == storage.read_bytes(
            f"{tmp_path}/again/images/{name}"
        )


def test_the_projects_weights_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert models.load("purifier", "weights/photos/cru_net").config["kind"] == "purifier"
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*weights/photos/no_net"):
        models.load("purifier", "weights/photos/no_net")
    # A folder of that name here is meant first.
    (tmp_path / "weights/photos").mkdir(parents=True)
    (tmp_path / "weights/photos/cru_net").mkdir()
    (tmp_path / "weights/photos/cru_net/config.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        models.load("purifier", "weights/photos/cru_net")


def test_a_classifier_labels_images_in_the_view_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brightest.py").write_text(
        "import torch\n"
        "class Brightest(torch.nn.Module):\n"
        '    """Takes images of 16x16 only: the row whose mean is the highest."""\n'
        '    view = {"resize": 16, "crop": 16}\n'
        "    def forward(self, x):\n"
        "        assert x.shape[2:] == (16, 16), x.shape\n"
        "        return x.mean(dim=(1, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    image = np.zeros((32, 40, 3), np.uint8)
    image[14:16] = 255
    source = put(str(tmp_path / "in"), {"a.png": encode_png(image), "small.png": encoded(0, 8, 8)})
    config = CleaningConfig(input=source, purifier="identity", classifier="brightest:Brightest")
    clean(config, POOL, str(tmp_path / "out"))
    rows = {row["id"]: row for row in accounts(str(tmp_path / "out"), "manifest")}
    assert (rows["a.png"]["pred_input"], rows["a.png"]["pred_cleaned"]) == (7, 7)
    assert rows["small.png"]["pred_input"] is not None  # it is enlarged
